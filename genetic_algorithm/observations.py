"""From answers to what the surrogate learns from: a value and its uncertainty for each set and block.

Accuracies go in on the logit scale, where the effects of layers add up, and divergences as their square root. How much
of the noise all sets share, because they meet the same questions, is read off a two-way analysis of variance of one
block (sets by questions): the variance between questions is shared, the interaction is each set's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Ledger
from genetic_algorithm.signals import sharpened
from genetic_algorithm.surrogate import Observations

Array = NDArray[np.float64]
_LEAST = 1e-3  # nats: a mean divergence is taken to be no less
_MOST_SETS = 300  # for the analysis of variance
_LOWEST, _STEADY = 0.02, 0.2  # an accuracy's logit and its error are taken no nearer to 0 and 1 than this


def observe(ledger: Ledger, *, with_signals: bool) -> Observations:
    """Observations of all blocks that sets have answered whole.

    Args:
        ledger: the answers; at least one set has answered the lowest rung.
        with_signals: whether margins and divergences sharpen the values, as far as they are shown to.
    """
    blocks = ledger.questions.blocks
    answered = [(layers, ledger.level(layers)) for layers in ledger.known]
    sets = tuple(layers for layers, level in answered if level)
    keys = [(i, b) for i, layers in enumerate(sets) for b in range(ledger.level(layers))]
    first = {sets[i]: j for j, (i, b) in enumerate(keys) if b == 0}
    set_index, block = (np.array(column, dtype=np.int64) for column in zip(*keys, strict=True))
    own, shared = _noise(ledger, sets)
    means = np.empty(len(keys))
    weights = [ledger.questions.weighting(questions) for questions in blocks]
    counts = np.array([_effective(of_block) for of_block in weights])
    for j, (i, b) in enumerate(keys):
        values = ledger.values(sets[i], blocks[b])
        assert values is not None  # level() says that the block is answered
        means[j] = np.average(values, weights=weights[b])
    divergence = np.maximum(-means, _LEAST)
    variance = own / counts[block] * (1.0 if ledger.goal == "accuracy" else divergence**2)
    for layers, (mean, error) in (sharpened(ledger, sets) if with_signals else {}).items():
        j = first[layers]
        means[j], variance[j] = mean, min(variance[j], error)
    if ledger.goal != "accuracy":
        divergence = np.maximum(-means, _LEAST)
        block_variance = shared / counts * float(divergence.mean()) / 4
        return Observations(sets, set_index, block, -np.sqrt(divergence), variance / (4 * divergence), block_variance)
    asked = counts[block]
    rate = np.clip((means * asked + 0.5) / (asked + 1), _LOWEST, 1 - _LOWEST)
    steady = np.clip(rate, _STEADY, 1 - _STEADY)
    slope = steady * (1 - steady)  # of an accuracy by its logit
    middle = float(np.mean(slope))
    # `own` is for sets of middling accuracy; right and wrong vary most near a half.
    return Observations(
        sets, set_index, block, np.log(rate / (1 - rate)), variance / (middle * slope), shared / counts / middle**2
    )


def to_value(ledger: Ledger, sets: tuple[LayerSet, ...] | list[LayerSet], surrogate_scale: Array) -> Array:
    """From the surrogate's scale to utilities: values less what layers cost; shapes [n] or [n, k]."""
    is_logit = ledger.goal == "accuracy"
    values = 1 / (1 + np.exp(-surrogate_scale)) if is_logit else -(np.minimum(surrogate_scale, 0) ** 2)
    costs = ledger.layer_cost * np.array([len(layers) for layers in sets], dtype=np.float64)
    return values - costs.reshape((-1,) + (1,) * (values.ndim - 1))


def _effective(weights: Array) -> float:
    """How many questions of equal weight have the noise of these (Kish's effective sample size)."""
    return float(weights.sum() ** 2 / max(1e-12, (weights**2).sum()))


def _noise(ledger: Ledger, sets: tuple[LayerSet, ...]) -> tuple[float, float]:
    """Variance of one answer: the part of the set's own, and the part that all sets share.

    Of divergences, which vary as much as they are large, in units of the set's own mean squared.
    """
    first = ledger.questions.blocks[0]
    chosen = sets[:: max(1, len(sets) // _MOST_SETS)]
    table = np.array([ledger.values(layers, first) for layers in chosen])
    if ledger.goal != "accuracy":
        table /= np.maximum(np.abs(table.mean(1, keepdims=True)), _LEAST)
    if min(table.shape) < 3:  # nothing to tell the two apart by
        variance = max(1e-6, float(table.var()))
        return variance, variance / 2
    own = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    interaction = float((own**2).sum() / degrees)
    between = float(table.mean(0).var(ddof=1)) - interaction / table.shape[0]
    floor = 0.02 * max(1e-6, float(table.var()))
    return max(floor, interaction), max(floor, between)
