"""How general optimisers would search for layers: Optuna's TPE, a plain genetic algorithm by DEAP, random search.

Each is used as its users do: a candidate is scored on the same fixed number of questions of every subject, and the last
part of the budget verifies the best few on all questions. Scoring a set again costs nothing, and verification asks only
what is not known yet. Optuna and DEAP come with `pip install -e '.[benchmarks]'`.

The settings did best of a few tried. On the replayed 8B pair at 16 full-MMLU units (20 seeds; 40 for the genetic
algorithm) the mean regret was, in points, with 10 or 20 questions of each subject: TPE 0.7 or 1.5, genetic algorithm
0.7 or 1.2; with a quarter or half of the budget for verification: TPE 0.7 or 1.0, genetic algorithm 0.7 and 0.7. On the
tiny pair, which has four subjects only, 20 questions did best of 10, 20 and 40 at 4 and 8 units, for both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from math import ceil, comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm import Evaluator, LayerSet, SearchSpace
from genetic_algorithm.errors import SearchError
from genetic_algorithm.evaluator import limit_questions

Trail = list[tuple[int, LayerSet]]
"""Question-evaluations spent so far, and the set that would be chosen if the search stopped there."""
Score = Callable[[LayerSet], float]
"""Accuracy of a candidate on the questions that all candidates are asked."""

PER_SUBJECT, LOOK = 10, 80  # questions of a candidate at least: of each subject and in all
VERIFYING = 0.25  # share of the budget
TRIALS = 2000  # of TPE, whose own time grows with their square; repeats count
PATIENCE = 100  # proposals in a row without a new set: the optimiser has converged, or the space is used up
POPULATION, CROSSOVER, MUTATION, TOURNAMENT = 20, 0.5, 0.3, 3


def tpe(evaluator: Evaluator, space: SearchSpace, budget: int, seed: int, per_subject: int | None = None) -> Trail:
    """Optuna's tree of Parzen estimators.

    A set is as many categorical slots as it may have layers, each of which holds a layer or, beyond the least count,
    nothing; a layer named twice counts once. The estimator is multivariate. Of the ways tried this did best. Mean
    regret on the replayed 8B pair at 16 full-MMLU units, in points: this 0.7, independent slots 1.5, whole numbers
    instead of categories 0.9 (multivariate 1.5), yes or no for each layer with the excess dropped at random 4.4 (3
    seeds, and several times as slow).

    Args:
        evaluator: Answers questions.
        space: Sets that may be proposed.
        budget: Question-evaluations.
        seed: Of all chance.
        per_subject: Questions of each subject that a candidate is scored on; when not given `PER_SUBJECT`, or as many
            more as make `LOOK` in all.

    Raises:
        SearchError: without Optuna, or if the budget does not pay for one candidate.
    """
    optuna = _optional("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    layers = list(range(space.num_layers))

    def search(score: Score) -> None:
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True)
        )
        for _ in range(TRIALS):
            trial = study.ask()
            named = {
                trial.suggest_categorical(f"slot {i}", layers if i < space.min_layers else [*layers, None])
                for i in range(space.max_layers)
            }
            study.tell(trial, score(LayerSet.from_indices(named - {None})))

    return _spend(evaluator, space, budget, per_subject, search)


def deap_ga(evaluator: Evaluator, space: SearchSpace, budget: int, seed: int, per_subject: int | None = None) -> Trail:
    """DEAP's simple genetic algorithm: one bit per layer, uniform crossover, bit flips, tournaments.

    Too many or too few layers are mended by dropping or adding some at random. Arguments and errors as for `tpe`.
    """
    algorithms, base, tools = (_optional(f"deap.{name}") for name in ("algorithms", "base", "tools"))

    fitness = type("Fitness", (base.Fitness,), {"weights": (1.0,)})

    class Bits(list[int]):
        def __init__(self, bits: list[int]) -> None:
            super().__init__(bits)
            self.fitness = fitness()

    def mend(bits: Bits) -> Bits:
        on = [i for i, bit in enumerate(bits) if bit]
        off = [i for i, bit in enumerate(bits) if not bit]
        dropped = random.sample(on, max(0, len(on) - space.max_layers))
        for i in (*dropped, *random.sample(off, max(0, space.min_layers - len(on)))):
            bits[i] = 1 - bits[i]
        return bits

    def search(score: Score) -> None:
        rng = np.random.default_rng(seed)
        starts = [_draw(space, rng) for _ in range(POPULATION)]
        tools_of_ga = base.Toolbox()
        tools_of_ga.register("evaluate", lambda bits: (score(_chosen(bits)),))
        tools_of_ga.register("mate", lambda one, other: tuple(map(mend, tools.cxUniform(one, other, 0.5))))
        tools_of_ga.register("mutate", lambda bits: (mend(*tools.mutFlipBit(bits, 2 / space.num_layers)),))
        tools_of_ga.register("select", tools.selTournament, tournsize=TOURNAMENT)
        population = [Bits([int(i in start) for i in range(space.num_layers)]) for start in starts]
        with _seeded(seed):
            while True:  # eaSimple wants a number of generations; the budget ends it
                algorithms.eaSimple(population, tools_of_ga, CROSSOVER, MUTATION, ngen=10**6, verbose=False)

    return _spend(evaluator, space, budget, per_subject, search)


def random_search(
    evaluator: Evaluator, space: SearchSpace, budget: int, seed: int, per_subject: int | None = None
) -> Trail:
    """Sets drawn evenly. Arguments and errors as for `tpe`, but for Optuna."""

    def search(score: Score) -> None:
        rng = np.random.default_rng(seed)
        while True:
            score(_draw(space, rng))

    return _spend(evaluator, space, budget, per_subject, search)


class _Over(Exception):
    """The part of the budget that is for looking at candidates is spent, or nothing new comes."""


class _Purse:
    """Looks at candidates and verifies the best, spending no more than the budget."""

    def __init__(self, evaluator: Evaluator, space: SearchSpace, budget: int, per_subject: int | None) -> None:
        subjects = evaluator.subjects
        per_subject = per_subject or max(PER_SUBJECT, ceil(LOOK / len(np.unique(subjects))))
        self._evaluator, self._space, self._budget = evaluator, space, budget
        self._first = limit_questions(subjects, per_subject)
        self._rest = limit_questions(subjects, None, skip=per_subject)
        self._right: dict[LayerSet, int] = {}
        self._spent = self._unchanged = 0
        self.trail: Trail = []
        if budget < len(self._first):
            raise SearchError(f"a budget of {budget} questions does not pay for one look at {len(self._first)} of them")

    def look(self, layers: LayerSet) -> float:
        """Accuracy on the first questions; 0 for a set outside the space.

        Raises:
            _Over: when it is time to verify.
        """
        if layers in self._right or not self._space.contains(layers):
            self._unchanged += 1
            if self._unchanged >= PATIENCE:
                raise _Over
            return self._right.get(layers, 0) / len(self._first)
        if self._right and self._spent + len(self._first) > (1 - VERIFYING) * self._budget:
            raise _Over
        self._unchanged = 0
        self._right[layers] = self._ask(layers, self._first)
        self._note(layers, self._right)
        return self._right[layers] / len(self._first)

    def verify(self) -> None:
        """Ask the best by their looks all other questions, as many as the budget allows."""
        verified: dict[LayerSet, int] = {}
        for layers in sorted(self._right, key=self._right.__getitem__, reverse=True):
            if self._spent + len(self._rest) > self._budget:
                break
            verified[layers] = self._right[layers] + self._ask(layers, self._rest)
            if len(verified) == 1:
                self.trail.append((self._spent, layers))
            else:
                self._note(layers, verified)

    def _note(self, layers: LayerSet, right: dict[LayerSet, int]) -> None:
        """Let a newly scored set be the choice if it beats the one so far."""
        chosen = self.trail[-1][1] if self.trail else layers
        self.trail.append((self._spent, layers if right[layers] > right[chosen] else chosen))

    def _ask(self, layers: LayerSet, questions: NDArray[np.int64]) -> int:
        ((_, answers),) = self._evaluator.answers([layers], questions)
        self._spent += len(questions)
        return int(answers.correct.sum())


def _spend(
    evaluator: Evaluator,
    space: SearchSpace,
    budget: int,
    per_subject: int | None,
    search: Callable[[Score], None],
) -> Trail:
    """Run a search until it ends or its part of the budget is spent, then verify."""
    purse = _Purse(evaluator, space, budget, per_subject)
    with suppress(_Over):
        search(purse.look)
    purse.verify()
    return purse.trail


def _draw(space: SearchSpace, rng: np.random.Generator) -> LayerSet:
    """Any set as likely as any other: most are as large as allowed, as the best sets are."""
    counts = np.array([comb(space.num_layers, size) for size in space.sizes], dtype=np.float64)
    size = rng.choice(space.sizes, p=counts / counts.sum())
    return LayerSet.from_indices(rng.choice(space.num_layers, size=size, replace=False).tolist())


def _chosen(bits: list[int]) -> LayerSet:
    return LayerSet.from_indices(i for i, bit in enumerate(bits) if bit)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generator that DEAP draws from, which is Python's own, and leave it as it was."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _optional(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise SearchError(f"{error.name or name} is not installed; pip install -e '.[benchmarks]'") from None
