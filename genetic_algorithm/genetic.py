"""Stage 1: a genetic algorithm on the fast questions.

Everything draws from the one generator it is given, in an order that depends on scores alone: the same seed
and the same answers give the same proposals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.config import SearchConfig
from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.ledger import FAST, Ledger, Request, distinct
from genetic_algorithm.patterns import Pattern, draw, mine

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


@dataclass(slots=True)
class Genetic:
    """The genetic algorithm; `run` is its strategy.

    Args:
        config: rates and sizes.
        space: the sets it may propose.
        ledger: where answers are found once a request has been told.
        rng: the only source of chance.
        single_scores: accuracy by layer, where known; else they are measured first.
        elite: sets to begin with, where known; else they are made of the best single layers.
    """

    config: SearchConfig
    space: SearchSpace
    ledger: Ledger
    rng: np.random.Generator
    single_scores: Mapping[int, float] | None = None
    elite: Sequence[LayerSet] = ()
    history: list[Generation] = field(default_factory=list)
    patterns: list[Pattern] = field(default_factory=list)

    def run(self) -> Iterator[Request]:
        """Yield requests until the generations, the patience or the space are at an end."""
        if self.single_scores is None:
            singles = [LayerSet((i,)) for i in range(self.space.num_layers)]
            yield from self._ask([LayerSet(()), *singles], "single layers")
        population = self._first_population()
        yield from self._ask(population, "first population")
        # Single layers, measured before, may be parents too.
        population = self._survivors(population, list(self._accuracies()))
        stale = 0
        for number in range(1, self.config.generations + 1):
            before = self._note(number - 1, population)
            self.patterns = mine(self._accuracies())
            children = self._children(population, number)
            if not children:
                return  # the whole space is known
            yield from self._ask(children, f"generation {number}")
            population = self._survivors(population, children)
            after = self._best_correct()
            stale = 0 if after > before else stale + 1
            if stale >= self.config.no_improve:
                break
        self._note(len(self.history), population)
        self.patterns = mine(self._accuracies())

    def _ask(self, sets: Sequence[LayerSet], label: str) -> Iterator[Request]:
        return self.ledger.wanted(sets, FAST, STAGE, label)

    # First population.

    def _first_population(self) -> list[LayerSet]:
        size = min(self.config.population, self.space.size)
        elites = max(1, round(self.config.elite_fraction * size)) if self.config.elite_fraction else 0
        elites = max(elites, min(len(self.elite), size))  # whoever names elites wants them all tried
        scored = round(self.config.scored_fraction * size)
        scores = self._layer_scores()
        chosen = dict.fromkeys(islice(self._elite_seeds(scores), elites))
        for _ in range(_TRIES * size):
            if len(chosen) >= min(size, elites + scored):
                break
            chosen[self._scored_set(scores)] = None
        for _ in range(_TRIES * size):
            if len(chosen) >= size:
                break
            chosen[self._unmeasured_space().random(self.rng)] = None
        return list(chosen)

    def _layer_scores(self) -> NDArray[np.float64]:
        """Accuracy of each layer alone, float64 [num_layers]; a layer that failed counts as the worst."""
        if self.single_scores is not None:
            return np.array([self.single_scores[i] for i in range(self.space.num_layers)], dtype=np.float64)
        measured = [self.ledger.score(LayerSet((i,)), FAST) for i in range(self.space.num_layers)]
        worst = min((score.accuracy for score in measured if score is not None), default=0.0)
        return np.array([worst if score is None else score.accuracy for score in measured])

    def _elite_seeds(self, scores: NDArray[np.float64]) -> Iterator[LayerSet]:
        """Elites given, or else groups of the best single layers, the best group first."""
        if self.elite:
            yield from distinct(self.elite)
            return
        # No more than the twelve best: the groups of a few more are too many to sort.
        best = np.argsort(-scores, kind="stable")[: min(12, 2 + self.space.max_layers)].tolist()
        sizes = [k for k in self.space.sizes if k >= 2] or list(self.space.sizes)
        groups = [group for size in sizes for group in combinations(best, size)]
        for group in sorted(groups, key=lambda g: (-float(scores[list(g)].sum()) / max(1, len(g)), g)):
            yield LayerSet.from_indices(group)

    def _scored_set(self, scores: NDArray[np.float64]) -> LayerSet:
        """Draw layers in proportion to exp(standardised single-layer score)."""
        spread = float(scores.std()) or 1.0
        weights = np.exp((scores - scores.max()) / spread)
        sizes = self._unmeasured_space().sizes
        size = int(self.rng.integers(sizes.start, sizes.stop))
        chosen = self.rng.choice(self.space.num_layers, size=size, replace=False, p=weights / weights.sum())
        return LayerSet.from_indices(chosen.tolist())

    def _unmeasured_space(self) -> SearchSpace:
        """The space without the single layers, where these have been measured first."""
        if self.single_scores is not None or self.space.max_layers < 2:
            return self.space
        return replace(self.space, min_layers=max(2, self.space.min_layers))

    # Generations.

    def _children(self, population: Sequence[LayerSet], number: int) -> list[LayerSet]:
        """New sets, never one that has been proposed before."""
        wanted = max(1, self.config.population - self.config.elitism)
        guidance = self.config.guidance * number / max(1, self.config.generations)
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
        for _ in range(_TRIES if population else 0):
            if self.rng.random() < self.config.crossover_rate:
                child = self._cross(self._parent(population), self._parent(population))
                if self.rng.random() < self.config.mutation_rate:
                    child = self._mutate(child, guidance)
            else:
                child = self._mutate(self._parent(population), guidance)
            if self._new(child, taken):
                return child
        for parent in population:  # best first
            near = [s for s in self.space.neighbours(parent) if self._new(s, taken)]
            if near:
                return near[int(self.rng.integers(len(near)))]
        if self.space.size <= _ENUMERABLE:
            rest = [s for s in self.space if self._new(s, taken)]
            return rest[int(self.rng.integers(len(rest)))] if rest else None
        drawn = (self.space.random(self.rng) for _ in range(50 * _TRIES))
        return next((s for s in drawn if self._new(s, taken)), None)

    def _new(self, layers: LayerSet, taken: Mapping[LayerSet, None]) -> bool:
        known = self.ledger.score(layers, FAST) is not None or layers in self.ledger.failed
        return not known and layers not in taken and self.space.contains(layers)

    def _parent(self, population: Sequence[LayerSet]) -> LayerSet:
        """Tournament: the best of a few drawn at random; `population` is sorted, best first."""
        drawn = self.rng.integers(len(population), size=min(self.config.tournament, len(population)))
        return population[int(drawn.min())]

    def _cross(self, one: LayerSet, other: LayerSet) -> LayerSet:
        """What both parents hold, and a draw of what one of them holds."""
        shared = [i for i in one.indices if i in other.indices]
        single = sorted(set(one.indices) ^ set(other.indices))
        low = max(self.space.min_layers, len(shared))
        high = min(self.space.max_layers, len(shared) + len(single))
        if low > high:
            return one
        lengths = sorted({min(max(len(p), low), high) for p in (one, other)})
        size = lengths[int(self.rng.integers(len(lengths)))]
        chosen = self.rng.choice(np.array(single, dtype=np.int64), size=size - len(shared), replace=False)
        return LayerSet.from_indices([*shared, *chosen.tolist()])

    def _mutate(self, layers: LayerSet, guidance: float) -> LayerSet:
        """Plant a mined pattern, or else swap, add or drop one layer."""
        if self.patterns and self.rng.random() < guidance:
            return self._plant(draw(self.patterns, self.rng), layers)
        outside = [i for i in range(self.space.num_layers) if i not in layers.indices]
        moves = ["swap"] * 2 if layers.indices and outside else []
        moves += ["add"] if outside and len(layers) < self.space.max_layers else []
        moves += ["drop"] if len(layers) > self.space.min_layers else []
        if not moves:
            return layers
        move = moves[int(self.rng.integers(len(moves)))]
        if move != "add":
            layers = layers.without(layers.indices[int(self.rng.integers(len(layers)))])
        if move != "drop":
            layers = layers.with_(outside[int(self.rng.integers(len(outside)))])
        return layers

    def _plant(self, pattern: LayerSet, host: LayerSet) -> LayerSet:
        """The pattern, filled up with layers of the host to the host's size or one more."""
        rest = [i for i in host.indices if i not in pattern.indices]
        least = max(self.space.min_layers, len(pattern))
        size = min(max(len(host) + int(self.rng.integers(2)), least), self.space.max_layers)
        keep = min(max(size - len(pattern), 0), len(rest))
        kept = self.rng.choice(np.array(rest, dtype=np.int64), size=keep, replace=False).tolist()
        child = LayerSet.from_indices([*pattern.indices, *kept])
        outside = [i for i in range(self.space.num_layers) if i not in child.indices]
        if len(child) < size and outside:
            child = child.with_(outside[int(self.rng.integers(len(outside)))])
        return child

    def _survivors(self, population: Sequence[LayerSet], children: Sequence[LayerSet]) -> list[LayerSet]:
        """The best of the old generation and of its children, best first."""
        best = self.ledger.ranked([*population, *children], FAST)
        return best[: self.config.population]

    # Reading the ledger.

    def _accuracies(self) -> dict[LayerSet, float]:
        return {s: score.accuracy for s, score in self.ledger.scored(FAST).items() if self.space.contains(s)}

    def _best_correct(self) -> float:
        return max(self._accuracies().values(), default=-1.0)

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
