"""Paired comparison of two layer sets on the same questions."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.errors import SearchError


class Paired(NamedTuple):
    """Questions that only the first of two sets had right, and that only the second had right."""

    first_only: int
    second_only: int
    asked: int

    @property
    def difference(self) -> float:
        """Accuracy of the first less that of the second."""
        return (self.first_only - self.second_only) / self.asked

    @property
    def standard_error(self) -> float:
        """Of `difference`: only discordant questions carry noise (McNemar's variance)."""
        discordant = self.first_only + self.second_only
        variance = discordant - (self.first_only - self.second_only) ** 2 / self.asked
        return sqrt(max(variance, 0.0)) / self.asked

    @property
    def p_value(self) -> float:
        """Two-sided exact p-value of no difference (exact McNemar test)."""
        return sign_test(self.first_only, self.second_only)


def compare(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Pair two sets' answers, bool [n] each, to the same n questions."""
    if first.shape != second.shape or first.size == 0:
        raise SearchError(f"only answers to the same questions compare, got {first.size} and {second.size} answers")
    return Paired(int((first & ~second).sum()), int((second & ~first).sum()), int(first.size))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact binomial p-value of `wins` against `losses` under a fair coin.

    Whole numbers throughout, so it neither overflows nor rounds before the final division.
    """
    n, fewer = wins + losses, min(wins, losses)
    term = tail = 1  # C(n, 0)
    for k in range(1, fewer + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / (1 << n))
