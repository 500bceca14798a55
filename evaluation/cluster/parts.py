"""Cuts what is asked into parts for several workers, so that sets of a part share their lower layers.

The price of a part is what a walk runs for it (evaluation/walk.py): the layers of each set that no set before it has
run, times the tokens of its questions.

Suffixes: S layer sets, Q questions.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm import LayerSet

Job = tuple[Sequence[LayerSet], NDArray[np.int64]]
"""Layer sets and the questions, int64 [n], that all of them are asked."""

_LARGEST, _SMALLEST = 4.0, 1 / 16
"""Prices of the longest part that are tried, as shares of what each worker would have to do if nothing were cut."""
_TRIES, _STEPS = (30, 200), 400_000
"""How many are tried, least and most, and how many sets are looked at in all of them: about a tenth of a second."""
_PART_SHARE = 0.002
"""What handing out one part costs, as a share of what a worker does in all."""
_LATE = 0.1
"""How much later than its price says the longest part may end."""
MOST_SETS = 64
"""Sets of a part, so that answers come, and are kept, every quarter of a minute or so: a GPU answers a part whole."""


@dataclass(frozen=True, slots=True, eq=False)  # arrays do not compare to one truth value
class Part:
    """What one worker is asked at once."""

    sets: tuple[LayerSet, ...]
    questions: NDArray[np.int64]
    price: float
    slice: int = field(init=False)
    """The same for the same questions."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slice", hash(self.questions.tobytes()))


def cut(jobs: Sequence[Job], workers: int, depth: int, tokens_Q: NDArray[np.float64]) -> list[Part]:
    """Parts of all jobs, the longest first.

    Questions of a job stay together, so that answers do not depend on how many workers there are. How long the longest
    part may be is tried: shorter parts end together more evenly and share less.

    Args:
        jobs: What is asked.
        workers: How many take parts, the longest that is left whenever one is free.
        depth: Layers of the models.
        tokens_Q: Of each question; in any unit.
    """
    ordered = [(sorted(sets, key=_tree_order), questions) for sets, questions in jobs if sets]
    weights = [float(tokens_Q[questions].sum()) for _, questions in ordered]
    steps = [_steps(sets, depth) for sets, _ in ordered]
    prices = [weight * sum(each) for weight, each in zip(weights, steps, strict=True)]
    count = sum(map(len, steps))
    tries = min(max(_STEPS // max(count, 1), _TRIES[0]), _TRIES[1]) if workers > 1 else 0
    best, least = list[tuple[float, int, int, int]](), np.inf
    for longest in _longest(sum(prices) / workers, depth * max(weights, default=0.0), tries):
        runs = [
            (weight * price, job, low, high)
            for job, (weight, each) in enumerate(zip(weights, steps, strict=True))
            for low, high, price in _runs(each, longest / weight if weight else np.inf, depth)
        ]
        runs.sort(key=lambda run: -run[0])
        ends = _finish([price for price, *_ in runs], workers) * (1 + _PART_SHARE * len(runs) / workers)
        ends += _LATE * max((price for price, *_ in runs), default=0.0)
        if ends < least:
            best, least = runs, ends
    return [Part(tuple(ordered[job][0][low:high]), ordered[job][1], price) for price, job, low, high in best]


def _longest(share: float, one_set: float, tries: int) -> Iterator[float]:
    """Prices that the longest part may have; no part is shorter than one set."""
    yield np.inf
    if tries:
        prices = share * np.geomspace(_LARGEST, _SMALLEST, tries)
        yield from prices[prices > one_set].tolist()
        yield one_set


def _tree_order(layers: LayerSet) -> tuple[float, ...]:
    """As a walk meets the sets, so that neighbours share most."""
    return (*layers.indices, np.inf)


def _steps(sets: Sequence[LayerSet], depth: int) -> list[int]:
    """Layers of each set that the set before it does not share."""
    steps = [depth] * len(sets)
    for i in range(1, len(sets)):
        differing = {*sets[i - 1].indices} ^ {*sets[i].indices}
        steps[i] = depth - min(differing, default=depth)
    return steps


def _runs(steps: Sequence[int], longest: float, depth: int) -> Iterator[tuple[int, int, int]]:
    """Runs of sets as long as allowed, and one set at least: first set, one behind the last, layers run."""
    low, price = 0, depth
    for i in range(1, len(steps)):
        if price + steps[i] > longest or i - low == MOST_SETS:
            yield low, i, price
            low, price = i, depth
        else:
            price += steps[i]
    yield low, len(steps), price


def _finish(prices: Sequence[float], workers: int) -> float:
    """When all is done if a free worker always takes the longest part that is left (Graham, 1969)."""
    free = [0.0] * min(workers, max(1, len(prices)))
    for price in prices:
        heapq.heappush(free, heapq.heappop(free) + price)
    return max(free)
