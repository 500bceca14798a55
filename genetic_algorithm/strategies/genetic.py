"""Stage 1: a genetic algorithm on the fast questions.

Everything draws from the one generator it is given, in an order that depends on scores alone: the same seed
and the same answers give the same proposals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.ledger import Request, distinct
from genetic_algorithm.questions import FAST
from genetic_algorithm.strategies.operators import Operators
from genetic_algorithm.strategies.patterns import Pattern, mine
from genetic_algorithm.strategies.strategy import Setting

STAGE = "stage 1"
_TRIES = 20  # draws for one child before its neighbourhood, then the whole space, is looked through
_ENUMERABLE = 100_000


@dataclass(frozen=True, slots=True)
class Generation:
    """One line of the history: accuracies on the fast questions."""

    number: int
    new_sets: int
    best: LayerSet
    best_accuracy: float
    mean_accuracy: float

    def as_json(self) -> dict[str, Any]:
        """For the result."""
        return {
            "generation": self.number,
            "new_sets": self.new_sets,
            "best": list(self.best.indices),
            "best_accuracy": round(self.best_accuracy, 6),
            "mean_accuracy": round(self.mean_accuracy, 6),
        }


@dataclass(slots=True)
class Genetic:
    """The genetic algorithm; `run` is its strategy.

    Where no scores of single layers are known they are measured first; where no elite is, it is made of the best ones.
    """

    setting: Setting
    history: list[Generation] = field(default_factory=list)
    patterns: list[Pattern] = field(default_factory=list)

    def run(self) -> Iterator[Request]:
        """Yield requests until the generations, the patience or the space are at an end."""
        if self.setting.single_scores is None:
            yield from self._ask([LayerSet(()), *self._singles().values()], "single layers")
        population = self.first_population()
        yield from self._ask(population, "first population")
        # Single layers, measured before, may be parents too.
        population = self._survivors(population, list(self._accuracies()))
        stale = 0
        for number in range(1, self.setting.config.generations + 1):
            before = self._note(number - 1, population)
            self.patterns = mine(self._accuracies())
            children = self._children(population, number)
            if not children:
                return  # the whole space is known
            yield from self._ask(children, f"generation {number}")
            population = self._survivors(population, children)
            after = self._best_correct()
            stale = 0 if after > before else stale + 1
            if stale >= self.setting.config.no_improve:
                break
        self._note(len(self.history), population)
        self.patterns = mine(self._accuracies())

    def _ask(self, sets: Sequence[LayerSet], label: str) -> Iterator[Request]:
        return self.setting.ledger.wanted(sets, FAST, STAGE, label)

    # First population.

    def first_population(self) -> list[LayerSet]:
        """Elites, sets drawn by single-layer scores, and random ones."""
        size = min(self.setting.config.population, self.setting.space.size)
        elites = max(1, round(self.setting.config.elite_fraction * size)) if self.setting.config.elite_fraction else 0
        elites = max(elites, min(len(self.setting.elite), size))  # whoever names elites wants them all tried
        scored = round(self.setting.config.scored_fraction * size)
        scores = self._layer_scores()
        chosen = dict.fromkeys(islice(self._elite_seeds(scores), elites))
        for _ in range(_TRIES * size):
            if len(chosen) >= min(size, elites + scored):
                break
            chosen[self._scored_set(scores)] = None
        for _ in range(_TRIES * size):
            if len(chosen) >= size:
                break
            chosen[self._unmeasured_space().random(self.setting.rng)] = None
        return list(chosen)

    def _layer_scores(self) -> NDArray[np.float64]:
        """Value of each free layer alone, float64 [free layers]; a layer that failed counts as the worst."""
        if self.setting.single_scores is not None:
            return np.array([self.setting.single_scores[i] for i in self.setting.space.free], dtype=np.float64)
        measured = [self.setting.ledger.score(layers, FAST) for layers in self._singles().values()]
        worst = min((score.value for score in measured if score is not None), default=0.0)
        return np.array([worst if score is None else score.value for score in measured])

    def _singles(self) -> dict[int, LayerSet]:
        """Each free layer, alone or beside those that must be there."""
        return {i: self.setting.space.of([i]) for i in self.setting.space.free}

    def _elite_seeds(self, scores: NDArray[np.float64]) -> Iterator[LayerSet]:
        """Elites given, or else groups of the best single layers, the best group first."""
        if self.setting.elite:
            yield from distinct(self.setting.elite)
            return
        # No more than the twelve best: the groups of a few more are too many to sort.
        best = np.argsort(-scores, kind="stable")[: min(12, 2 + self.setting.space.max_layers)].tolist()
        fixed = len(self.setting.space.must_include)
        sizes = [k - fixed for k in self.setting.space.sizes if k - fixed >= 2] or [
            k - fixed for k in self.setting.space.sizes
        ]
        groups = [group for size in sizes for group in combinations(best, size)]
        for group in sorted(groups, key=lambda g: (-float(scores[list(g)].sum()) / max(1, len(g)), g)):
            yield self.setting.space.of(self.setting.space.free[i] for i in group)

    def _scored_set(self, scores: NDArray[np.float64]) -> LayerSet:
        """Draw layers in proportion to exp(standardised single-layer score)."""
        spread = float(scores.std()) or 1.0
        weights = np.exp((scores - scores.max()) / spread)
        sizes = self._unmeasured_space().sizes
        size = int(self.setting.rng.integers(sizes.start, sizes.stop)) - len(self.setting.space.must_include)
        free = np.array(self.setting.space.free, dtype=np.int64)
        return self.setting.space.of(
            self.setting.rng.choice(free, size=size, replace=False, p=weights / weights.sum()).tolist()
        )

    def _unmeasured_space(self) -> SearchSpace:
        """The space without the single layers, where these have been measured first."""
        two = len(self.setting.space.must_include) + 2
        if self.setting.single_scores is not None or self.setting.space.max_layers < two:
            return self.setting.space
        return replace(self.setting.space, min_layers=max(two, self.setting.space.min_layers))

    # Generations.

    def _children(self, population: Sequence[LayerSet], number: int) -> list[LayerSet]:
        """New sets, never one that has been proposed before."""
        wanted = max(1, self.setting.config.population - self.setting.config.elitism)
        guidance = self.setting.config.guidance * number / max(1, self.setting.config.generations)
        children: dict[LayerSet, None] = {}
        for _ in range(wanted):
            child = self._child(population, guidance, children)
            if child is None:
                break
            children[child] = None
        return list(children)

    def _child(
        self, population: Sequence[LayerSet], guidance: float, taken: Mapping[LayerSet, None]
    ) -> LayerSet | None:
        operators = Operators(self.setting.config, self.setting.space, self.setting.rng)
        for _ in range(_TRIES if population else 0):
            child = operators.child(population, self.patterns, guidance)
            if self._new(child, taken):
                return child
        for parent in population:  # best first
            near = [s for s in self.setting.space.neighbours(parent) if self._new(s, taken)]
            if near:
                return near[int(self.setting.rng.integers(len(near)))]
        if self.setting.space.size <= _ENUMERABLE:
            rest = [s for s in self.setting.space if self._new(s, taken)]
            return rest[int(self.setting.rng.integers(len(rest)))] if rest else None
        drawn = (self.setting.space.random(self.setting.rng) for _ in range(50 * _TRIES))
        return next((s for s in drawn if self._new(s, taken)), None)

    def _new(self, layers: LayerSet, taken: Mapping[LayerSet, None]) -> bool:
        known = self.setting.ledger.score(layers, FAST) is not None or layers in self.setting.ledger.failed
        return not known and layers not in taken and self.setting.space.contains(layers)

    def _survivors(self, population: Sequence[LayerSet], children: Sequence[LayerSet]) -> list[LayerSet]:
        """The best of the old generation and of its children, best first."""
        best = self.setting.ledger.ranked([*population, *children], FAST)
        return best[: self.setting.config.population]

    # Reading the ledger.

    def _accuracies(self) -> dict[LayerSet, float]:
        return {
            s: self.setting.ledger.utility(s, score)
            for s, score in self.setting.ledger.scored(FAST).items()
            if self.setting.space.contains(s)
        }

    def _best_correct(self) -> float:
        return max(self._accuracies().values(), default=float("-inf"))

    def _note(self, number: int, population: Sequence[LayerSet]) -> float:
        """Add a line to the history; return the best accuracy so far."""
        accuracies = self._accuracies()
        if accuracies and population:
            best = next(iter(accuracies))
            mean = float(np.mean([accuracies[s] for s in population]))
            known = len(accuracies)
            new = known - sum(line.new_sets for line in self.history)
            self.history.append(Generation(number, new, best, accuracies[best], mean))
        return self._best_correct()
