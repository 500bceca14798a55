"""An evaluator without models: a landscape of layer sets like the tiny pair's, answered by seeded chance.

The accuracy of a set comes from single layers and pairs on a logit scale, as measured landscapes do. Whether
a set has a question right is a threshold on a normal deviate, part of which is the question's difficulty
(shared by all sets), so that the answers of two sets are correlated as real ones are.

As `--evaluator tests.genetic_algorithm.simulator:factory`, it reads SIM_SEED, SIM_QUESTIONS (per subject),
SIM_SLEEP_S (per call and set), SIM_CALLS (a file that gets a line per set and call), SIM_BROKEN
(a set that raises).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm import Answers, LayerSet, SearchSpace

NUM_LAYERS, NUM_SUBJECTS = 12, 4


class Landscape:
    """True accuracies: base 0.38, 2 alone 0.75, 9 alone worthless and decisive with 2, best about 0.95."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 1])
        self.base = float(np.log(0.38 / 0.62))
        self.single = rng.normal(-0.15, 0.25, NUM_LAYERS)
        self.pair = {p: float(rng.normal(0.0, 0.15)) for p in combinations(range(NUM_LAYERS), 2)}
        self.single[[2, 9, 0, 1]] = [1.6, -0.05, 0.35, 0.1]
        self.pair[2, 9], self.pair[0, 2], self.pair[0, 9], self.pair[1, 2] = 0.6, 0.35, 0.2, 0.15

    def accuracy(self, layers: LayerSet) -> float:
        logit = self.base + sum(self.single[i] for i in layers.indices)
        logit += sum(self.pair[p] for p in combinations(layers.indices, 2))
        return float(1 / (1 + np.exp(-logit)))


class Simulator:
    """Deterministic: the same set has the same answers, in whatever batch and order it is asked."""

    num_layers = NUM_LAYERS

    def __init__(self, seed: int = 0, per_subject: int = 1000, correlation: float = 0.75) -> None:
        self.landscape = Landscape(seed)
        self.subjects = np.repeat(np.arange(NUM_SUBJECTS), per_subject).astype(np.int64)
        self.num_questions = len(self.subjects)
        self.seed, self.correlation = seed, correlation
        self.fingerprint = {"simulator": 1, "seed": seed, "per_subject": per_subject}
        self.seconds_per_question: float | None = 0.0015
        self.difficulty = np.random.default_rng([seed, 2]).standard_normal(self.num_questions)

    def describe(self) -> dict[str, str]:
        return {"device": "none", "memory": "0.1 GB"}

    def all_answers(self, layers: LayerSet) -> Answers:
        own = np.random.default_rng([self.seed, 3, *layers.indices]).standard_normal(self.num_questions)
        deviate = np.sqrt(self.correlation) * self.difficulty + np.sqrt(1 - self.correlation) * own
        margin = NormalDist().inv_cdf(self.landscape.accuracy(layers)) - deviate
        return Answers(margin > 0, margin.astype(np.float32), None)

    def accuracy(self, layers: LayerSet) -> float:
        """On all questions: what an exhaustive search would find."""
        return float(self.all_answers(layers).correct.mean())

    def exhaustive(self, space: SearchSpace) -> dict[LayerSet, float]:
        return {layers: self.accuracy(layers) for layers in space}

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        for layers in dict.fromkeys(batch):
            every = self.all_answers(layers)
            margin = None if every.margin is None else every.margin[questions]
            yield layers, Answers(every.correct[questions], margin, None)


class Counting:
    """Wraps an evaluator; counts every (set, question) it is asked, and can hand answers over shuffled."""

    def __init__(self, inner: Simulator, shuffle: int | None = None) -> None:
        self.inner = inner
        self.num_layers, self.num_questions, self.subjects = (
            inner.num_layers,
            inner.num_questions,
            inner.subjects,
        )
        self.asked: dict[LayerSet, NDArray[np.int64]] = {}
        self.batches: list[tuple[tuple[LayerSet, ...], int]] = []
        self._rng = None if shuffle is None else np.random.default_rng(shuffle)

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        self.batches.append((tuple(batch), len(questions)))
        for layers in batch:
            self.asked.setdefault(layers, np.zeros(self.num_questions, np.int64))[questions] += 1
        found = list(self.inner.answers(batch, questions))
        for i in range(len(found)) if self._rng is None else self._rng.permutation(len(found)):
            yield found[i]


class FromEnvironment(Simulator):
    """The simulator as a subprocess sees it: slow, counted or broken, as the environment says."""

    def __init__(self) -> None:
        super().__init__(int(os.environ.get("SIM_SEED", "0")), int(os.environ.get("SIM_QUESTIONS", "200")))
        self._sleep_s = float(os.environ.get("SIM_SLEEP_S", "0"))
        self._calls = os.environ.get("SIM_CALLS")
        self._broken = os.environ.get("SIM_BROKEN", "").split(",")

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        for layers, answers in super().answers(batch, questions):
            if str(layers) in self._broken or "all" in self._broken:
                raise RuntimeError(f"{layers} does not fit")
            time.sleep(self._sleep_s)
            if self._calls:
                with Path(self._calls).open("a") as file:
                    file.write(f"{layers} {questions[0]}-{questions[-1]} {len(questions)}\n")
            yield layers, answers


def factory() -> FromEnvironment:
    return FromEnvironment()
