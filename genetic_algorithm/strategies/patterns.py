"""Pattern mining: small groups of layers that good candidates share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from genetic_algorithm.layer_set import LayerSet


@dataclass(frozen=True, slots=True)
class Pattern:
    """Layers that good candidates share.

    `frequency` is the share of the good candidates that hold them; `gain` how much better, in accuracy, all
    candidates that hold them are than the average candidate; `weight` is the product.
    """

    layers: LayerSet
    frequency: float
    gain: float

    @property
    def weight(self) -> float:
        """Frequency times gain, positive."""
        return self.frequency * self.gain

    def as_json(self) -> dict[str, Any]:
        """For the result."""
        return {
            "layers": list(self.layers.indices),
            "frequency": round(self.frequency, 6),
            "gain": round(self.gain, 6),
            "weight": round(self.weight, 6),
        }


def mine(
    accuracies: Mapping[LayerSet, float],
    *,
    good: Sequence[LayerSet] | None = None,
    good_share: float = 0.25,
    least: int = 2,
    largest: int = 3,
    most: int = 20,
) -> list[Pattern]:
    """The heaviest patterns of one to `largest` layers among the good candidates.

    Args:
        accuracies: of candidates, all on the same questions.
        good: those of them that count as good, where that is known otherwise.
        good_share: else the share of the candidates, by accuracy, that counts as good.
        least: good candidates that must hold a pattern; held by one, it says no more than the candidate does.
        largest: most layers in a pattern.
        most: how many patterns to return, heaviest first.
    """
    if not accuracies:
        return []
    if good is None:
        ranked = sorted(accuracies, key=lambda s: (-accuracies[s], len(s), s))
        good = ranked[: max(2, round(good_share * len(ranked)))]
    average = float(np.mean(list(accuracies.values())))
    counts = Counter(p for layers in good for p in _parts(layers, largest))
    totals: Counter[tuple[int, ...]] = Counter()
    holders: Counter[tuple[int, ...]] = Counter()
    for layers, accuracy in accuracies.items():
        for part in _parts(layers, largest):
            if part in counts:
                totals[part] += accuracy  # type: ignore[assignment]  # a Counter adds floats as well
                holders[part] += 1
    found = [
        Pattern(LayerSet(part), count / len(good), totals[part] / holders[part] - average)
        for part, count in counts.items()
        if count >= least
    ]
    found = [pattern for pattern in found if pattern.gain > 0]
    return sorted(found, key=lambda p: (-p.weight, len(p.layers), p.layers))[:most]


def draw(patterns: list[Pattern], rng: np.random.Generator) -> LayerSet:
    """Draw one pattern by weight."""
    weights = np.array([pattern.weight for pattern in patterns])
    return patterns[int(rng.choice(len(patterns), p=weights / weights.sum()))].layers


def _parts(layers: LayerSet, largest: int) -> list[tuple[int, ...]]:
    return [part for size in range(1, largest + 1) for part in combinations(layers.indices, size)]
