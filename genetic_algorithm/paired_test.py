"""Paired comparison of two layer sets on the same questions."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.errors import SearchError
from genetic_algorithm.intervals import Z95


class Comparison(Protocol):
    """What a paired comparison of two sets says."""

    @property
    def difference(self) -> float:
        """Value of the first less that of the second."""

    @property
    def standard_error(self) -> float:
        """Of `difference`."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of `difference`."""

    @property
    def p_value(self) -> float:
        """Two-sided, of no difference."""


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
    def interval(self) -> tuple[float, float]:
        """95 % interval, half a question added to each cell so that few discordant pairs do not make it too short.

        Agresti and Min 2005, Simple improved confidence intervals for comparing matched proportions.
        """
        asked = self.asked + 2
        discordant = self.first_only + self.second_only + 1
        difference = (self.first_only - self.second_only) / asked
        half = Z95 * sqrt(discordant - asked * difference**2) / asked
        return max(-1.0, difference - half), min(1.0, difference + half)

    @property
    def p_value(self) -> float:
        """Two-sided exact p-value of no difference (exact McNemar test)."""
        return sign_test(self.first_only, self.second_only)


def compare(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Pair two sets' answers, bool [n] each, to the same n questions."""
    if first.shape != second.shape or first.size == 0:
        raise SearchError(f"only answers to the same questions compare, got {first.size} and {second.size} answers")
    return Paired(int((first & ~second).sum()), int((second & ~first).sum()), int(first.size))


class PairedMeans(NamedTuple):
    """Weighted mean of paired differences, and its standard error."""

    difference: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, by the normal approximation."""
        half = Z95 * self.standard_error
        return self.difference - half, self.difference + half

    @property
    def p_value(self) -> float:
        """Two-sided, by the normal approximation."""
        if self.standard_error == 0:
            return 1.0 if self.difference == 0 else 0.0
        return 2 * NormalDist().cdf(-abs(self.difference) / self.standard_error)


def compare_means(differences: NDArray[np.float64], weights: NDArray[np.float64]) -> PairedMeans:
    """Compare two sets by their differences, float64 [n], on n questions of these weights."""
    mean = float(np.average(differences, weights=weights))
    error = float(np.sqrt((weights**2 * (differences - mean) ** 2).sum()) / weights.sum())
    return PairedMeans(mean, error)


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
