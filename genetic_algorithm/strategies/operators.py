"""Crossover, mutation and pattern planting: how new layer sets come from old ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genetic_algorithm.config import SearchConfig
from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.strategies.patterns import Pattern, draw


class Operators:
    """Draw children from parents, all in the space.

    Args:
        config: rates.
        space: the sets that may be made; parents are of it.
        rng: the only source of chance.
    """

    def __init__(self, config: SearchConfig, space: SearchSpace, rng: np.random.Generator) -> None:
        self._config, self._space, self._rng = config, space, rng

    def child(self, population: Sequence[LayerSet], patterns: Sequence[Pattern], guidance: float) -> LayerSet:
        """One child of a population that is sorted, best first; it may have been seen before.

        `guidance` is the share of mutations that plant a mined pattern.
        """
        if self._rng.random() < self._config.crossover_rate:
            child = self.cross(self._parent(population), self._parent(population))
            if self._rng.random() < self._config.mutation_rate:
                child = self.mutate(child, patterns, guidance)
            return child
        return self.mutate(self._parent(population), patterns, guidance)

    def _parent(self, population: Sequence[LayerSet]) -> LayerSet:
        """Tournament: the best of a few drawn at random."""
        drawn = self._rng.integers(len(population), size=min(self._config.tournament, len(population)))
        return population[int(drawn.min())]

    def cross(self, one: LayerSet, other: LayerSet) -> LayerSet:
        """What both parents hold, and a draw of what one of them holds."""
        shared = [i for i in one.indices if i in other.indices]
        single = sorted(set(one.indices) ^ set(other.indices))
        low = max(self._space.min_layers, len(shared))
        high = min(self._space.max_layers, len(shared) + len(single))
        if low > high:
            return one
        lengths = sorted({min(max(len(p), low), high) for p in (one, other)})
        size = lengths[int(self._rng.integers(len(lengths)))]
        chosen = self._rng.choice(np.array(single, dtype=np.int64), size=size - len(shared), replace=False)
        return LayerSet.from_indices([*shared, *chosen.tolist()])

    def mutate(self, layers: LayerSet, patterns: Sequence[Pattern], guidance: float) -> LayerSet:
        """Plant a mined pattern, or else swap, add or drop one layer."""
        if patterns and self._rng.random() < guidance:
            return self._plant(draw(list(patterns), self._rng), layers)
        outside = [i for i in self._space.free if i not in layers.indices]
        inside = [i for i in layers if i not in self._space.must_include]
        moves = ["swap"] * 2 if inside and outside else []
        moves += ["add"] if outside and len(layers) < self._space.max_layers else []
        moves += ["drop"] if inside and len(layers) > self._space.min_layers else []
        if not moves:
            return layers
        move = moves[int(self._rng.integers(len(moves)))]
        if move != "add":
            layers = layers.without(inside[int(self._rng.integers(len(inside)))])
        if move != "drop":
            layers = layers.with_(outside[int(self._rng.integers(len(outside)))])
        return layers

    def _plant(self, pattern: LayerSet, host: LayerSet) -> LayerSet:
        """The pattern, filled up with layers of the host to the host's size or one more."""
        pattern = self._space.of(pattern)  # the layers that must be there, besides
        rest = [i for i in host.indices if i not in pattern.indices]
        least = max(self._space.min_layers, len(pattern))
        size = min(max(len(host) + int(self._rng.integers(2)), least), self._space.max_layers)
        keep = min(max(size - len(pattern), 0), len(rest))
        kept = self._rng.choice(np.array(rest, dtype=np.int64), size=keep, replace=False).tolist()
        child = LayerSet.from_indices([*pattern.indices, *kept])
        outside = [i for i in self._space.free if i not in child.indices]
        if len(child) < size and outside:
            child = child.with_(outside[int(self._rng.integers(len(outside)))])
        return child
