"""What margins and divergences say of a set beside right and wrong, weighed by what they are shown to predict.

On few questions, how sure a set is tells more than whether it is right. How much more is measured on the run's own
answers: over the better half of the sets, the questions of the first block are split in two, and what varies alike in
both halves is the sets' doing (true covariance of accuracy and signals), what does not is noise. From these follow the
best linear prediction of a set's accuracy by all of them, and its error (a BLUP, Henderson 1975); it enters as an
accuracy with less noise. Where signals say nothing, it is the accuracy itself. They never decide a final choice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Ledger

Array = NDArray[np.float64]
_FEWEST_SETS = 24  # below this, the covariances are guesses
_RIDGE = 0.05  # of each signal's variance, against signals that follow from one another


def sharpened(ledger: Ledger, sets: tuple[LayerSet, ...]) -> dict[LayerSet, tuple[float, float]]:
    """Value and variance of sets on the first block, with the signals taken in; sets they cannot help are not there.

    Higher blocks have questions enough to go by right and wrong.
    """
    first = ledger.questions.blocks[0]
    features = {layers: of for layers in sets if (of := _features(ledger, layers, first)) is not None}
    better = sorted((s for s, of in features.items() if np.isfinite(of).all()), key=lambda s: -features[s][0].mean())
    better = better[: max(_FEWEST_SETS, len(better) // 2)]
    if len(better) < _FEWEST_SETS or len(first) < 8:
        return {}
    table = np.stack([features[layers] for layers in better])  # [sets, signals, questions]
    between, noise, centre = _covariances(table)
    true = float(between[0, 0])
    if true <= 0:
        return {}
    total = between + noise / len(first)
    weights = np.linalg.solve(total + _RIDGE * np.diag(np.diag(total)), between[:, 0])
    share = float(weights @ between[:, 0]) / true  # of the sets' variance that is predicted
    if not true / (true + noise[0, 0] / len(first)) < share < 1:
        return {}
    variance = true * (1 - share) / share
    deviations = (table.mean(2) - centre) @ weights / share
    return {layers: (float(centre[0] + off), variance) for layers, off in zip(better, deviations, strict=True)}


def _features(ledger: Ledger, layers: LayerSet, questions: NDArray[np.int64]) -> Array | None:
    """The goal's values, then each signal, float64 [signals, questions]; None where there is no signal."""
    values = ledger.values(layers, questions)
    signals = ledger.signals(layers, questions)
    if values is None or not signals:
        return None
    rows = [values]
    if "margin" in signals:  # as a probability: a few hopeless questions must not outweigh all others
        rows.append(1 / (1 + np.exp(-np.clip(signals["margin"], -30, 30))))
    if "divergence" in signals and ledger.goal != "kl":
        rows.append(-np.sqrt(np.maximum(signals["divergence"], 0)))
    return np.stack(rows)


def _covariances(table: Array) -> tuple[Array, Array, Array]:
    """Between sets, of one question's noise, and the means; [signals, signals] twice, [signals]."""
    odd, even = table[:, :, 1::2].mean(2), table[:, :, ::2].mean(2)
    centre = table.mean((0, 2))
    cross = (odd - odd.mean(0)).T @ (even - even.mean(0)) / (len(table) - 1)
    between = _positive((cross + cross.T) / 2)
    own = table - table.mean(2, keepdims=True) - table.mean(0) + centre[None, :, None]
    noise = np.einsum("siq,sjq->ij", own, own) / ((table.shape[0] - 1) * (table.shape[2] - 1))
    return between, noise, centre


def _positive(matrix: Array) -> Array:
    """The nearest matrix that can be a covariance: sampling may leave a negative eigenvalue."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0)) @ vectors.T)
