from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genetic_algorithm import SearchError
from genetic_algorithm.paired_test import compare, sign_test


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_the_two_sided_binomial(wins: int, losses: int) -> None:
    n = wins + losses
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    assert sign_test(wins, losses) == pytest.approx(min(1.0, 2 * tail))
    assert sign_test(wins, losses) == sign_test(losses, wins)


def test_known_values() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(10, 10) == 1.0
    assert sign_test(9, 1) == pytest.approx(0.021484375)
    assert 0.0 <= sign_test(9_000, 5_042) < 1e-200  # far beyond what floats can sum


def test_pairing_counts_only_questions_on_which_two_sets_differ() -> None:
    first = np.array([1, 1, 1, 0, 0, 1], dtype=bool)
    second = np.array([1, 0, 0, 0, 1, 1], dtype=bool)
    paired = compare(first, second)
    assert (paired.first_only, paired.second_only, paired.asked) == (2, 1, 6)
    assert paired.difference == pytest.approx(first.mean() - second.mean())
    assert paired.standard_error == pytest.approx((first.astype(float) - second).std() / np.sqrt(6))
    assert paired.p_value == 1.0


def test_answers_to_different_questions_do_not_compare() -> None:
    with pytest.raises(SearchError, match="same questions"):
        compare(np.ones(3, bool), np.ones(4, bool))


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 80), st.integers(0, 80))
def test_the_sign_test_is_that_of_scipy(wins: int, losses: int) -> None:
    if wins + losses:
        assert sign_test(wins, losses) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_the_p_value_is_the_share_of_sign_flips_that_differ_as_much(pairs: list[tuple[bool, bool]]) -> None:
    """By brute force: were both sets alike, each question on which they differ could be the other's as well."""
    first, second = np.array(pairs).T
    paired = compare(first, second)
    differences = first.astype(int) - second
    discordant = np.abs(differences[differences != 0])
    sums = [abs(sum(s * d for s, d in zip(signs, discordant, strict=True))) for signs in flips(len(discordant))]
    assert paired.p_value == pytest.approx(np.mean([s >= abs(differences.sum()) for s in sums]))
    assert paired.difference == pytest.approx(differences.mean())
    assert paired.standard_error == pytest.approx(differences.std() / np.sqrt(len(pairs)))


def flips(count: int) -> Iterator[tuple[int, ...]]:
    return product((-1, 1), repeat=count)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_who_comes_first_changes_only_the_sign(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs).T
    one, other = compare(first, second), compare(second, first)
    assert one.difference == -other.difference
    assert (one.standard_error, one.p_value) == (other.standard_error, other.p_value)
    low, high = one.interval
    assert other.interval == pytest.approx((-high, -low))
    assert -1 <= low <= one.difference + 1e-12
    assert one.difference - 1e-12 <= high <= 1
