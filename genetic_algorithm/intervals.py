"""How sure a share is, and how sure several statements made at once are."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = NormalDist().inv_cdf(0.975)
"""Standard errors to either side that hold 95 % of a normal distribution."""


_FEWEST = 3
"""Questions by which a subject has a variance of its own."""


def wilson(correct: int, asked: int, error: float | None = None) -> tuple[float, float]:
    """95 % interval of a share, `correct` of `asked`, which is at least 1.

    Wilson 1927: unlike the accuracy with twice its standard error to either side, it stays within [0, 1] and covers
    the truth as often as it says near both ends, too.

    Args:
        correct: questions.
        asked: questions.
        error: standard error of the share, where they are no simple random sample. It stands in for the number of
            questions that would have it if they were (Kish, Survey Sampling, 1965, the design effect; in Wilson's
            interval: Franco, Little, Louis and Slud 2019). Neither it nor that of a simple sample is taken to be less
            than that of one question that differs: no difference seen is not certainty.
    """
    share = correct / asked
    size = float(asked)
    if error is not None:
        size *= max(share * (1 - share), 1 / asked) / max(asked * error**2, 1 / asked)
    extra = Z95**2 / size
    middle = (share + extra / 2) / (1 + extra)
    half = Z95 * sqrt(share * (1 - share) / size + extra / (4 * size)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def stratified_error(values: ArrayLike, subjects: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Standard error of the mean of a sample that takes its share of each subject: what differs is questions within.

    sqrt(sum over subjects h of W_h^2 s_h^2 / n_h), with n_h questions of the subject, the share W_h = n_h / n of all,
    and the variance s_h^2 of their values, of n_h - 1 degrees of freedom (Cochran, Sampling Techniques, 1977, 5.4).
    Questions of other weights enter by their weight times their distance from the mean.

    There is no finite population correction: the statement is of new questions like these, in the same subjects. What
    a set has right of the very questions asked is known without error.

    Subjects of fewer than three questions are taken together as one, and with the next smallest where even that is
    fewer: such collapsed strata make the error too large rather than too small (ibid., 5A.12).

    Args:
        values: of each question, [n]; n is at least 1.
        subjects: of each question, integers [n].
        weights: of each question, [n]; all alike when None.
    """
    given = np.asarray(values, dtype=np.float64)
    weight = np.ones(len(given)) if weights is None else np.asarray(weights, dtype=np.float64)
    deviation = weight * (given - np.average(given, weights=weight))
    stratum, count = np.unique(_collapsed(np.asarray(subjects)), return_inverse=True, return_counts=True)[1:]
    within = np.bincount(stratum, deviation**2) - np.bincount(stratum, deviation) ** 2 / count
    variance = float((within * count / np.maximum(count - 1, 1)).sum())
    return sqrt(max(variance, 0.0)) / float(weight.sum())


def _collapsed(subjects: NDArray[np.int64]) -> NDArray[np.int64]:
    """Stratum of each question, int64 [n]: its subject, or the one that small subjects share."""
    _, subject, count = np.unique(subjects, return_inverse=True, return_counts=True)
    shares = count < _FEWEST
    if 0 < count[shares].sum() < _FEWEST and not shares.all():
        shares[np.where(shares, count.max() + 1, count).argmin()] = True
    return np.where(shares, 0, 1 + np.arange(len(count)))[subject]


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
