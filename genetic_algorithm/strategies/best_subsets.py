"""The best sets of a quadratic model, exactly, by branch and bound.

Choosing k layers of the largest sum of single and pair effects is a quadratic knapsack problem with unit weights. The
bound is that of Caprara, Pisinger and Toth (Exact solution of the quadratic knapsack problem, 1999): every pair effect
is divided between its two layers, each layer then takes the k - 1 partners that are best for it, and the k best layers
are chosen: never less than the optimum. The division of least bound is looked for by subgradient steps at the root and
kept below it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.strategies.quadratic import Quadratic

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
NODE_LIMIT = 20_000
_STEPS = 200  # of the subgradient method at the root
_DIGITS = 9  # values are rounded to these before they are compared


@dataclass(frozen=True, slots=True)
class Solution:
    """The best sets of one layer count with their values, best first; of equal ones, any.

    `bound` is what no set left out exceeds; the sets are the best ones for certain where `is_exact`.
    """

    sets: list[tuple[float, LayerSet]]
    nodes: int
    is_exact: bool
    bound: float


def best_subsets(
    model: Quadratic, space: SearchSpace, size: int, count: int = 1, node_limit: int = NODE_LIMIT
) -> Solution:
    """The `count` best sets of `size` layers by a model, or the best found within `node_limit` nodes.

    Args:
        model: Effects of single layers and pairs.
        space: Which layers must and which may be in a set.
        size: Layers of a set, one of `space.sizes`.
        count: How many sets.
        node_limit: Nodes of the search tree, each some fraction of a millisecond.
    """
    must, free = (np.array(layers, dtype=np.int64) for layers in (space.must_include, space.free))
    single = model.single[free] + model.pair[np.ix_(free, must)].sum(1)
    search = _Search(single, model.pair[np.ix_(free, free)], size - len(must), count, node_limit)
    search.run()
    fixed = model.value(space.root)
    found = [(fixed + value, space.of(free[list(chosen)].tolist())) for value, chosen in search.best]
    found.sort(key=lambda item: (-round(item[0], _DIGITS), item[1]))
    return Solution(found, search.nodes, not search.is_over, fixed + max(search.open_bound, search.threshold))


@dataclass(slots=True)
class _Search:
    """Depth first over sets of `size` indices into `single`."""

    single: Array
    pair: Array
    size: int
    count: int
    node_limit: int
    best: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    """A heap, the worst first."""
    nodes: int = 0
    is_over: bool = False
    """Whether the node limit was met."""
    open_bound: float = -np.inf
    """Of the branches that were left."""
    _seen: set[tuple[int, ...]] = field(default_factory=set)

    @property
    def threshold(self) -> float:
        """What a set must exceed to be among the best."""
        return self.best[0][0] if len(self.best) == self.count else -np.inf

    def run(self) -> None:
        everything = np.arange(len(self.single))
        if self.size == 0:
            self._offer(0.0, ())
            return
        self._climb(everything)
        divided = self._divided()
        self._branch((), 0.0, everything, self.single.copy(), divided)

    def _offer(self, value: float, chosen: tuple[int, ...]) -> None:
        chosen = tuple(sorted(chosen))
        if chosen in self._seen or value <= self.threshold:
            return
        self._seen.add(chosen)
        if len(self.best) == self.count:
            heapq.heapreplace(self.best, (value, chosen))
        else:
            heapq.heappush(self.best, (value, chosen))

    def _branch(self, chosen: tuple[int, ...], value: float, rest: Indices, gain: Array, divided: Array) -> None:
        """Complete `chosen` by indices of `rest`; `gain` is what each adds to it, float64 [rest]."""
        missing = self.size - len(chosen)
        if missing == 1:
            for i in np.argsort(-gain, kind="stable")[: self.count]:
                self._offer(value + float(gain[i]), (*chosen, int(rest[i])))
            return
        upper = gain + _top(divided, missing - 1)
        order = np.argsort(-upper, kind="stable")
        rest, gain, upper = rest[order], gain[order], upper[order]
        divided = divided[np.ix_(order, order)]
        totals = np.concatenate([[0.0], np.cumsum(upper)])
        for i in range(len(rest) - missing + 1):
            bound = value + float(totals[i + missing] - totals[i])
            if bound <= self.threshold:
                return
            if self.nodes >= self.node_limit:
                self.is_over, self.open_bound = True, max(self.open_bound, bound)
                return
            self.nodes += 1
            later = rest[i + 1 :]
            more = gain[i + 1 :] + self.pair[rest[i], later]
            self._branch((*chosen, int(rest[i])), value + float(gain[i]), later, more, divided[i + 1 :, i + 1 :])

    def _climb(self, everything: Indices) -> None:
        """A first set to beat: greedy, then swaps while one is better."""
        chosen: list[int] = []
        gain = self.single.copy()
        for _ in range(self.size):
            open_to = np.where(np.isin(everything, chosen), -np.inf, gain)
            chosen.append(int(open_to.argmax()))
            gain = gain + self.pair[chosen[-1]]
        while True:
            inside = np.array(sorted(chosen))
            outside = np.setdiff1d(everything, inside)
            if len(outside) == 0:
                break
            change = gain[outside][None] - gain[inside][:, None] - self.pair[np.ix_(inside, outside)]
            out, into = np.unravel_index(int(change.argmax()), change.shape)
            if change[out, into] <= 1e-12:
                break
            gain = gain - self.pair[inside[out]] + self.pair[outside[into]]
            chosen = [*inside[np.arange(len(inside)) != out].tolist(), int(outside[into])]
        value = self.single[chosen].sum() + self.pair[np.ix_(chosen, chosen)].sum() / 2
        self._offer(float(value), tuple(chosen))

    def _divided(self) -> Array:
        """Pair effects divided between their layers so that the bound at the root is low, float64 [n, n]."""
        divided = self.pair / 2
        if self.size < 3:
            return divided
        best, least, target = divided, np.inf, self.best[0][0]
        pace = 1.0
        for step in range(_STEPS):
            upper = self.single + _top(divided, self.size - 1)
            chosen = np.argpartition(-upper, self.size - 1)[: self.size]
            bound = float(upper[chosen].sum())
            if bound < least - 1e-9:
                best, least = divided, bound
            elif step % 10 == 9:
                pace /= 2
            partners = np.zeros_like(divided)
            nearest = np.argpartition(-_without_self(divided)[chosen], self.size - 2, axis=1)[:, : self.size - 1]
            partners[chosen[:, None], nearest] = 1
            uneven = partners - partners.T  # where one layer counts on a partner that does not count on it
            norm = float((uneven**2).sum())
            if norm == 0:
                break
            divided = divided - pace * max(bound - target, 1e-6) / norm * uneven
        return best


def _without_self(divided: Array) -> Array:
    copy = divided.copy()
    np.fill_diagonal(copy, -np.inf)
    return copy


def _top(divided: Array, partners: int) -> Array:
    """Sum of the best `partners` entries of each row, its own left out, float64 [n]."""
    own = _without_self(divided)
    if partners >= own.shape[1] - 1:
        return np.where(np.isfinite(own), own, 0.0).sum(1)
    return np.partition(own, -partners, axis=1)[:, -partners:].sum(1)
