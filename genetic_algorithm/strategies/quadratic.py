"""What single layers and pairs add to a set, fitted to answers, and the sets that are best by it.

    value(S) = constant + sum of single[i] over i in S + sum of pair[i, j] over i < j in S

is fitted by ridge regression (Hoerl and Kennard 1970) on the scale of `observations`. The penalties are those of
largest marginal likelihood (MacKay 1992), so that noise in few questions is not taken for effects.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.surrogate import Observations

Array = NDArray[np.float64]
_LAYER_VARIANCES = (0.03, 0.1, 0.3, 1.0)  # in units of the variance of all values
_PAIR_VARIANCES = (0.0003, 0.003, 0.03, 0.1)
_MOST_FOR_VARIANCES = 500  # observations by which they are chosen: the cost is cubic
_CONSTANT = 3.0


@dataclass(frozen=True, slots=True, eq=False)  # arrays do not compare to one truth value
class Quadratic:
    """Effects: `single` float64 [num_layers], `pair` float64 [num_layers, num_layers], symmetric, 0 on the diagonal."""

    constant: float
    single: Array
    pair: Array

    def value(self, layers: LayerSet) -> float:
        """Of a set."""
        chosen = list(layers.indices)
        return float(self.constant + self.single[chosen].sum() + self.pair[np.ix_(chosen, chosen)].sum() / 2)


def fit(data: Observations, num_layers: int) -> Quadratic:
    """Fit to observations, at least one, in the dual form: the cost does not grow with the number of pairs."""
    from scipy.linalg import cho_factor, cho_solve  # late: slow to import, and most commands fit nothing

    mean = float(np.average(data.value, weights=1 / data.variance))
    values = data.value - mean
    unit = float(np.var(data.value)) or 1.0
    rows = np.zeros((len(data.sets), num_layers))
    for row, layers in zip(rows, data.sets, strict=True):
        row[list(layers.indices)] = 1
    rows = rows[data.set_index]
    shared = rows @ rows.T
    noise = np.diag(data.variance) + (data.block[:, None] == data.block) * data.block_variance[data.block]

    def covariance(layer: float, pair: float, chosen: slice | NDArray[np.int64]) -> Array:
        of = shared[chosen][:, chosen]
        return noise[chosen][:, chosen] + unit * (_CONSTANT + layer * of + pair * of * (of - 1) / 2)

    some = np.arange(0, len(values), 1 + len(values) // _MOST_FOR_VARIANCES)

    def cost(variances: tuple[float, float]) -> float:
        factor = cho_factor(covariance(*variances, some), lower=True)
        fitted = float(values[some] @ cho_solve(factor, values[some]))
        return round(fitted / 2 + float(np.log(np.diag(factor[0])).sum()), 6)

    layer, pair = min(product(_LAYER_VARIANCES, _PAIR_VARIANCES), key=cost)
    weights = cho_solve(cho_factor(covariance(layer, pair, slice(None)), lower=True), values)
    pairs = unit * pair * (rows.T * weights) @ rows
    np.fill_diagonal(pairs, 0.0)
    return Quadratic(mean + unit * _CONSTANT * float(weights.sum()), unit * layer * (rows.T @ weights), pairs)
