"""Cuts what is asked into parts for several workers, so that sets of a part share their lower layers.

The price of a part is what a walk runs for it (evaluation/walk.py): the layers of each set that no set before it has
run, times the tokens of its questions.

Suffixes: S layer sets, Q questions.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm import LayerSet

Job = tuple[Sequence[LayerSet], NDArray[np.int64]]
"""Layer sets and the questions, int64 [n], that all of them are asked."""

_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_PART_SHARE = 0.002
"""What handing out one part costs, as a share of what a worker does in all."""


@dataclass(frozen=True, slots=True, eq=False)  # arrays do not compare to one truth value
class Part:
    """What one worker is asked at once."""

    sets: tuple[LayerSet, ...]
    questions: NDArray[np.int64]
    price: float


def cut(jobs: Sequence[Job], workers: int, depth: int, tokens_Q: NDArray[np.float64]) -> list[Part]:
    """Parts of all jobs, the longest first.

    Questions of a job stay together, so that answers do not depend on how many workers there are. Into how many parts
    its sets are cut is tried: more parts end together more evenly and share less.

    Args:
        jobs: What is asked.
        workers: How many take parts, the longest that is left whenever one is free.
        depth: Layers of the models.
        tokens_Q: Of each question; in any unit.
    """
    ordered = [(sorted(sets, key=_tree_order), questions) for sets, questions in jobs if sets]
    weights = [float(tokens_Q[questions].sum()) for _, questions in ordered]
    steps = [_steps(sets, depth) for sets, _ in ordered]
    best, least = list[Part](), np.inf
    largest = max((len(sets) for sets, _ in ordered), default=0)
    for count in _COUNTS if workers > 1 else _COUNTS[:1]:
        parts = [
            Part(tuple(sets[low:high]), questions, weight * price)
            for (sets, questions), weight, each in zip(ordered, weights, steps, strict=True)
            for low, high, price in _even(each, count, depth)
        ]
        ends = _finish(sorted((part.price for part in parts), reverse=True), workers)
        ends *= 1 + _PART_SHARE * len(parts) / workers
        if ends < least:
            best, least = parts, ends
        if count >= largest or len(parts) > 64 * workers:
            break
    return sorted(best, key=lambda part: -part.price)


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


def _even(steps: Sequence[int], count: int, depth: int) -> list[tuple[int, int, int]]:
    """At most `count` runs of sets of about the same price: first set, one behind the last, layers run."""
    left, runs, low, price = float(sum(steps)), list[tuple[int, int, int]](), 0, 0
    for i, step in enumerate(steps):
        step = step if i > low else depth
        open_runs = count - len(runs)
        if i > low and open_runs > 1 and price + step / 2 > left / open_runs:
            runs.append((low, i, price))
            left -= price
            low, price, step = i, 0, depth
        price += step
    return [*runs, (low, len(steps), price)]


def _finish(prices: Sequence[float], workers: int) -> float:
    """When all is done if a free worker always takes the longest part that is left (Graham, 1969)."""
    free = [0.0] * min(workers, max(1, len(prices)))
    for price in prices:
        heapq.heappush(free, heapq.heappop(free) + price)
    return max(free)
