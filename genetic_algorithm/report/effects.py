"""Which layers matter, by the model of all sets that was asked: effects of layers and pairs, with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from genetic_algorithm.intervals import Z95
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Ledger
from genetic_algorithm.observations import observe, to_value
from genetic_algorithm.surrogate import Array, Surrogate, evenly

MOST_OBSERVATIONS = 1200  # to which the model is fitted: the cost is cubic
_DIGITS = 5


def fitted(ledger: Ledger, num_layers: int) -> Surrogate | None:
    """The model of right and wrong alone, or of divergences, of all answered rungs; None while there are none."""
    if not any(ledger.level(layers) for layers in ledger.known):
        return None
    return Surrogate(num_layers, evenly(observe(ledger, with_signals=False), MOST_OBSERVATIONS))


def of_layers(model: Surrogate, ledger: Ledger, num_layers: int) -> dict[str, Any]:
    """Effects of single layers and of pairs, in the order of `combinations`; null where no set held them."""
    singles = [LayerSet((i,)) for i in range(num_layers)]
    pairs = [LayerSet(pair) for pair in combinations(range(num_layers), 2)]
    held = {i for layers in ledger.known for i in layers}
    together = {pair for layers in ledger.known for pair in combinations(layers.indices, 2)}
    return {
        "scale": "log-odds" if ledger.goal == "accuracy" else "root nats",
        "singles": _listed(model, singles, [i in held for i in range(num_layers)]),
        "pairs": _listed(model, pairs, [pair.indices in together for pair in pairs]),
    }


def of_patterns(model: Surrogate, patterns: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """What the layers of each mined pattern add to the base, and the standard deviation of that."""
    if not patterns:
        return []
    mean, deviation = model.gains([LayerSet.from_indices(pattern["layers"]) for pattern in patterns])
    return np.round(np.stack([mean, deviation], axis=1), _DIGITS).tolist()


def expected(model: Surrogate, ledger: Ledger, sets: Sequence[LayerSet]) -> dict[str, list[float]]:
    """By the spelling of each set: the value that the model expects, and its 95 % interval."""
    if not sets:
        return {}
    mean, deviation = model.mean_and_deviation(sets)
    columns: list[Array] = []
    for side in (0, -1, 1):
        value = to_value(ledger, list(sets), mean + side * Z95 * deviation)
        columns.append(value + ledger.layer_cost * np.array([len(layers) for layers in sets]))
    rows = np.round(np.stack(columns, axis=1), _DIGITS).tolist()
    return {str(layers): row for layers, row in zip(sets, rows, strict=True)}


def _listed(model: Surrogate, groups: Sequence[LayerSet], is_held: Sequence[bool]) -> dict[str, list[float | None]]:
    if not groups:
        return {"mean": [], "deviation": []}
    mean, deviation = (np.round(values, _DIGITS).tolist() for values in model.effects(groups))
    return {
        "mean": [value if held else None for value, held in zip(mean, is_held, strict=True)],
        "deviation": [value if held else None for value, held in zip(deviation, is_held, strict=True)],
    }
