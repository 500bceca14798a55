"""Evaluators that tests give to workers, and what is asked of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm import Answers, LayerSet, SearchSpace
from tests.genetic_algorithm.simulator import Simulator

SPACE = SearchSpace(12, 1, 3)
ALL = np.arange(0, 40, dtype=np.int64)
BAD = LayerSet((2, 9))


def population(size: int, seed: int = 0) -> list[LayerSet]:
    rng = np.random.default_rng(seed)
    found = {BAD: None}
    while len(found) < size:
        found[SPACE.random(rng)] = None
    return list(found)


class Slow(Simulator):
    """Waits before each set, and tells what it is asked; `before` may raise."""

    def __init__(
        self,
        seconds: float = 0.0,
        before: Callable[[LayerSet], None] = lambda layers: None,
        per_subject: int = 10,
    ) -> None:
        super().__init__(per_subject=per_subject)
        self.seconds, self.before = seconds, before
        self.calls: list[tuple[LayerSet, int]] = []

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        for layers in batch:
            self.before(layers)
            time.sleep(self.seconds)
            self.calls.append((layers, len(questions)))
            yield from super().answers([layers], questions)


def raising(bad: LayerSet) -> Callable[[LayerSet], None]:
    def before(layers: LayerSet) -> None:
        if layers == bad:
            raise RuntimeError(f"{layers} does not fit")

    return before


def same(found: dict[LayerSet, Answers], sets: Sequence[LayerSet], questions: NDArray[np.int64] = ALL) -> bool:
    expected = dict(Simulator(per_subject=10).answers(sets, questions))
    return set(found) == set(expected) and all(
        np.array_equal(found[s].correct, expected[s].correct) and np.array_equal(found[s].margin, expected[s].margin)
        for s in expected
    )
