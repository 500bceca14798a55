from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genetic_algorithm.intervals import Z95, holm, wilson
from genetic_algorithm.paired_test import Paired, PairedMeans, compare_means

shares = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
p_lists = st.lists(st.floats(0, 1), max_size=12)


def test_wilson_is_as_published() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


@settings(deadline=None, derandomize=True)
@given(shares)
def test_wilson_holds_the_share_and_stays_within_bounds(share: tuple[int, int]) -> None:
    correct, asked = share
    low, high = wilson(correct, asked)
    assert 0 <= low <= correct / asked + 1e-12
    assert correct / asked - 1e-12 <= high <= 1
    assert high - low < 2 * Z95 * sqrt(0.25 / asked) + 1e-12


@pytest.mark.parametrize("truth", [0.27, 0.6, 0.95])
def test_wilson_covers_the_truth_as_often_as_it_says(truth: float) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.binomial(1000, truth, size=4000)
    covered = [low <= truth <= high for low, high in (wilson(int(k), 1000) for k in drawn)]
    assert 0.935 <= np.mean(covered) <= 0.965


def test_holm_is_as_published() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@settings(deadline=None, derandomize=True)
@given(p_lists)
def test_holm_keeps_the_order_and_never_helps(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert [corrected[i] for i in order] == sorted(corrected)


def test_of_many_true_hypotheses_holm_rejects_one_as_rarely_as_it_says() -> None:
    rng = np.random.default_rng(0)
    wrong = [min(holm(rng.random(6).tolist())) < 0.05 for _ in range(4000)]
    assert 0.035 <= np.mean(wrong) <= 0.06


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.12, 0.08), (0.05, 0.01), (0.3, 0.1)])
def test_the_interval_of_a_paired_difference_covers_the_truth(shares: tuple[float, float]) -> None:
    """`shares` of the questions are right for the first set alone, and for the second alone."""
    drawn = np.random.default_rng(1).multinomial(300, [*shares, 1 - sum(shares)], size=4000)
    bounds = (Paired(int(first), int(second), 300).interval for first, second, _ in drawn)
    covered = [low <= shares[0] - shares[1] <= high for low, high in bounds]
    assert 0.935 <= np.mean(covered) <= 0.97


def test_intervals_of_paired_comparisons_hold_the_difference() -> None:
    assert Paired(0, 0, 50).interval == pytest.approx((-0.0377, 0.0377), abs=1e-3)  # not of no length
    low, high = Paired(30, 10, 400).interval
    assert low < 0.05 < high
    assert low > 0  # as the exact test says
    assert Paired(30, 10, 400).p_value < 0.01
    assert PairedMeans(0.1, 0.05).interval == pytest.approx((0.1 - 0.098, 0.1 + 0.098), abs=1e-3)


def test_weighted_differences_are_averaged_by_weight() -> None:
    differences, weights = np.array([1.0, 0.0, -1.0, 1.0]), np.array([2.0, 1.0, 0.0, 1.0])
    found = compare_means(differences, weights)
    assert found.difference == pytest.approx(0.75)
    assert 0 < found.p_value < 1
    assert compare_means(np.zeros(4), weights).p_value == 1.0
