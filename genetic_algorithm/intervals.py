"""How sure a share is, and how sure several statements made at once are."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)
"""Standard errors to either side that hold 95 % of a normal distribution."""


def wilson(correct: int, asked: int) -> tuple[float, float]:
    """95 % interval of a share, `correct` of `asked`, which is at least 1.

    Wilson 1927: unlike the accuracy with twice its standard error to either side, it stays within [0, 1] and covers
    the truth as often as it says near both ends, too.
    """
    share, extra = correct / asked, Z95**2 / asked
    middle = (share + extra / 2) / (1 + extra)
    half = Z95 * sqrt(share * (1 - share) / asked + extra / (4 * asked)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of statements made together, in the order given, so that any is wrong as rarely as one alone.

    Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = highest
    return corrected
