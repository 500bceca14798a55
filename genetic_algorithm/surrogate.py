"""A model of all layer sets from the few that were asked: a Gaussian process over sets.

The value of a set is a constant, an effect of each layer, of each pair and of each triple that it holds, and a
remainder of its own, all with normal priors. Because the effects of one order share a variance, the covariance of two
sets depends only on how many layers they share (o of them):

    k(S, T) = c0 + c1 o + c2 C(o, 2) + c3 C(o, 3) + d [S = T]

so nothing grows with the number of possible sets, pairs or triples: this is Bayesian linear regression on all singles,
pairs and triples, in its dual form (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.23
to 2.26), exact. The variances are those of largest marginal likelihood (ibid., eq. 5.8), held near a prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.layer_set import LayerSet

Array = NDArray[np.float64]
_MOST_FOR_VARIANCES = 400  # observations by which variances are fitted: the cost is cubic
_NEAR = 4  # layers by which sets differ that are two swaps apart
_FEWEST_SETS = 24  # to fit variances to
_SPREAD = 2.0  # of the prior of a log variance
_JITTER = 1e-9


@dataclass(frozen=True, slots=True)
class Observations:
    """Noisy values of sets on blocks of questions.

    All sets of one block meet the same questions, so their errors have a part in common: `block_variance` is its
    variance by block, float64 [num_blocks], and `variance` that of the part of its own, float64 [n].
    """

    sets: tuple[LayerSet, ...]
    set_index: NDArray[np.int64]
    block: NDArray[np.int64]
    value: Array
    variance: Array
    block_variance: Array


@dataclass(frozen=True, slots=True)
class Variances:
    """Prior variances of the effects of layers, pairs and triples, and of each set's remainder."""

    layer: float = 0.1
    pair: float = 0.01
    triple: float = 0.001
    remainder: float = 0.001
    constant: float = 1.0

    def covariance(self, shared: Array) -> Array:
        """Of sets that share so many layers, the remainder left out."""
        pairs = shared * (shared - 1) / 2
        return self.constant + self.layer * shared + self.pair * pairs + self.triple * pairs * (shared - 2) / 3


class Surrogate:
    """The posterior given observations.

    Args:
        num_layers: depth of the model.
        observations: at least one.
        start: variances to begin the fit with; those of an earlier one save time.
        refit: whether to fit the variances, or take `start` as it is.
        around: fit the variances to the sets near this one alone, at most two swaps away, where these are enough.
    """

    def __init__(
        self,
        num_layers: int,
        observations: Observations,
        start: Variances | None = None,
        *,
        refit: bool = True,
        around: LayerSet | None = None,
    ) -> None:
        from scipy.linalg import cho_solve  # late: slow to import, and most commands ask no surrogate

        self._num_layers, self._data = num_layers, observations
        weights = 1 / observations.variance
        self._mean = float(np.average(observations.value, weights=weights))
        unit = float(np.var(observations.value)) or 1.0
        self.variances = start or Variances(0.3 * unit, 0.03 * unit, 0.003 * unit, 0.003 * unit, 3 * unit)
        if refit:
            data = _thinned(observations if around is None else _near(observations, around), _MOST_FOR_VARIANCES)
            self.variances = _fitted(data, self._mean, self.variances, num_layers)
        self._known = {layers: i for i, layers in enumerate(observations.sets)}
        self._rows = _rows(observations.sets, num_layers)
        fixed, shared, same = _parts(observations, num_layers)
        covariance = fixed + self.variances.covariance(shared) + self.variances.remainder * same
        self._factor = np.linalg.cholesky(covariance)
        self._weights = cho_solve((self._factor, True), observations.value - self._mean)

    def mean(self, sets: Sequence[LayerSet]) -> Array:
        """Posterior mean of each set, float64 [n]."""
        _, cross = self._cross(sets)
        return np.asarray(self._mean + cross @ self._weights)

    def posterior(self, sets: Sequence[LayerSet]) -> tuple[Array, Array]:
        """Posterior mean, float64 [n], and covariance, float64 [n, n]."""
        rows, cross = self._cross(sets)
        explained = _solved(self._factor, cross.T)
        prior = self.variances.covariance(rows @ rows.T) + self.variances.remainder * np.eye(len(sets))
        return self._mean + cross @ self._weights, prior - explained.T @ explained

    def mean_and_deviation(self, sets: Sequence[LayerSet]) -> tuple[Array, Array]:
        """Posterior mean and standard deviation of each set, float64 [n] both."""
        rows, cross = self._cross(sets)
        explained = _solved(self._factor, cross.T)
        prior = self.variances.covariance(rows.sum(1)) + self.variances.remainder
        variance = prior - (explained**2).sum(0)
        return self._mean + cross @ self._weights, np.sqrt(np.maximum(variance, _JITTER))

    def effects(self, groups: Sequence[LayerSet]) -> tuple[Array, Array]:
        """What each group of one to three layers adds beyond its parts: posterior mean and deviation, float64 [n] both.

        Of one layer, what it adds to the base; of two, what both together add beyond what each adds; of three, what is
        left beyond the three layers and their three pairs.
        """
        of_order = np.array([0.0, self.variances.layer, self.variances.pair, self.variances.triple])
        sizes = np.array([len(layers) for layers in groups])
        holds = _rows(groups, self._num_layers) @ self._rows.T == sizes[:, None]
        return self._effect(of_order[sizes][:, None] * holds, of_order[sizes])

    def gains(self, groups: Sequence[LayerSet]) -> tuple[Array, Array]:
        """What each group of layers adds to the base, all effects in it: posterior mean and deviation, float64 [n]."""
        rows, constant = _rows(groups, self._num_layers), self.variances.constant
        cross = self.variances.covariance(rows @ self._rows.T) - constant
        return self._effect(cross, self.variances.covariance(rows.sum(1)) - constant)

    def _effect(self, cross: Array, prior: Array) -> tuple[Array, Array]:
        """Posterior mean and deviation of sums of effects, of these covariances with the sets and prior variances."""
        cross = cross[:, self._data.set_index]
        explained = _solved(self._factor, cross.T)
        return cross @ self._weights, np.sqrt(np.maximum(prior - (explained**2).sum(0), 0.0))

    def draw(self, sets: Sequence[LayerSet], count: int, rng: np.random.Generator) -> Array:
        """Joint draws from the posterior, float64 [n, count]."""
        mean, covariance = self.posterior(sets)
        scale = float(np.trace(covariance)) / len(sets)
        factor = np.linalg.cholesky(covariance + _JITTER * max(scale, 1.0) * np.eye(len(sets)))
        return np.asarray(mean[:, None] + factor @ rng.standard_normal((len(sets), count)))

    def _cross(self, sets: Sequence[LayerSet]) -> tuple[Array, Array]:
        """Rows of the sets, and their covariance with each observation."""
        rows = _rows(sets, self._num_layers)
        covariance = self.variances.covariance(rows @ self._rows.T)
        for i, layers in enumerate(sets):
            if (j := self._known.get(layers)) is not None:
                covariance[i, j] += self.variances.remainder
        return rows, covariance[:, self._data.set_index]


def _thinned(data: Observations, most: int) -> Observations:
    """The observations of highest value, and as many others: the top is where the fit must be good."""
    if len(data.value) <= most:
        return data
    order = np.argsort(-data.value, kind="stable")
    step = max(1, (len(order) - most // 2) // (most // 2))
    return _only(data, np.sort(np.concatenate([order[: most // 2], order[most // 2 :: step][: most // 2]])))


def _near(data: Observations, layers: LayerSet) -> Observations:
    """The observations of sets that differ from one in at most two swaps; all, where these are few."""
    near = np.array([len({*s.indices} ^ {*layers.indices}) <= _NEAR for s in data.sets])
    return data if near.sum() < _FEWEST_SETS else _only(data, np.flatnonzero(near[data.set_index]))


def _only(data: Observations, chosen: NDArray[np.int64]) -> Observations:
    return replace(
        data,
        set_index=data.set_index[chosen],
        block=data.block[chosen],
        value=data.value[chosen],
        variance=data.variance[chosen],
    )


def evenly(data: Observations, most: int) -> Observations:
    """At most so many of the observations, whatever their values: every second, or third, or so on."""
    step = -(-len(data.value) // most)
    return data if step <= 1 else _only(data, np.arange(0, len(data.value), step))


def _solved(factor: NDArray[np.floating[Any]], values: Array) -> Array:
    """`x` of `factor @ x = values`, where factor is lower triangular."""
    from scipy.linalg import solve_triangular  # late, too

    return np.asarray(solve_triangular(factor, values, lower=True, check_finite=False))


def _rows(sets: Sequence[LayerSet], num_layers: int) -> Array:
    rows = np.zeros((len(sets), num_layers))
    for i, layers in enumerate(sets):
        rows[i, list(layers.indices)] = 1
    return rows


def _parts(data: Observations, num_layers: int) -> tuple[Array, Array, Array]:
    """Covariance of the noise, layers shared and whether the set is the same, float64 [n, n] each."""
    rows = _rows(data.sets, num_layers)[data.set_index]
    same_block = data.block[:, None] == data.block[None]
    noise = np.diag(data.variance) + same_block * data.block_variance[data.block][:, None]
    return noise, rows @ rows.T, (data.set_index[:, None] == data.set_index[None]).astype(np.float64)


def _fitted(data: Observations, mean: float, start: Variances, num_layers: int) -> Variances:
    """Variances of largest posterior density, by coordinate search in factors of four, then two, then less."""
    noise, shared, same = _parts(data, num_layers)
    values = data.value - mean
    unit = float(np.var(data.value)) or 1.0
    prior = Variances(0.3 * unit, 0.03 * unit, 0.003 * unit, 0.003 * unit, start.constant)
    names = ("layer", "pair", "remainder", "triple")

    def cost(variances: Variances) -> float:
        try:
            factor = np.linalg.cholesky(noise + variances.covariance(shared) + variances.remainder * same)
        except np.linalg.LinAlgError:
            return float("inf")
        white = _solved(factor, values)
        far = sum((log(getattr(variances, name) / getattr(prior, name)) / _SPREAD) ** 2 / 2 for name in names)
        return float(white @ white / 2 + np.log(np.diag(factor)).sum() + far)

    best, least = start, cost(start)
    for step in (4.0, 2.0, 2.0, 1.5):
        for name in names:
            for factor in (step, 1 / step):
                while 1e-6 < getattr(best, name) * factor / unit < 1e2:
                    candidate = replace(best, **{name: getattr(best, name) * factor})
                    if (found := cost(candidate)) >= least - 1e-3:
                        break
                    best, least = candidate, found
    return best
