from __future__ import annotations

from itertools import combinations
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genetic_algorithm.evaluator import Score, together
from genetic_algorithm.intervals import Z95, holm, stratified_error, wilson
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


def test_an_error_given_counts_as_that_of_so_many_questions() -> None:
    assert wilson(300, 1000, sqrt(0.3 * 0.7 / 1000)) == pytest.approx(wilson(300, 1000))
    assert wilson(300, 1000, sqrt(0.3 * 0.7 / 2000)) == pytest.approx(wilson(600, 2000))
    for correct in (0, 1000):
        assert wilson(correct, 1000, 0.0) == pytest.approx(wilson(correct, 1000))
    low, high = wilson(500, 1000, 0.0)  # one subject all right, one all wrong
    assert low < 0.499
    assert high > 0.501


def test_the_stratified_error_is_that_of_the_textbook() -> None:
    """By its formula, the sum over subjects of W^2 s^2 / n, done subject by subject."""
    rng = np.random.default_rng(0)
    subjects = rng.permutation(np.repeat([7, 3, 5], [10, 40, 150]))
    values = rng.random(200) < 0.1 * subjects
    parts = [values[subjects == h].astype(float) for h in (7, 3, 5)]
    expected = sqrt(sum((len(part) / 200) ** 2 * part.var(ddof=1) / len(part) for part in parts))
    assert stratified_error(values, subjects) == pytest.approx(expected)
    assert stratified_error(values, subjects, np.full(200, 3.0)) == pytest.approx(expected)
    assert stratified_error(5 * values, subjects) == pytest.approx(5 * expected)


def test_weights_enter_the_stratified_error_by_subject() -> None:
    """A mixture of two tasks, one half of the score each: halves of their errors, as of independent means."""
    rng = np.random.default_rng(1)
    values, subjects = rng.random(120), np.repeat([0, 1], [100, 20])
    of_each = [values[subjects == h].std(ddof=1) / sqrt(n) for h, n in enumerate((100, 20))]
    found = stratified_error(values, subjects, np.where(subjects == 0, 0.5 / 100, 0.5 / 20))
    assert found == pytest.approx(sqrt(sum((0.5 * error) ** 2 for error in of_each)))


def test_subjects_of_one_or_two_questions_are_taken_together() -> None:
    values = np.array([1, 0, 1, 0, 1, 1, 0, 0, 1, 1])
    alone = np.array([0, 0, 0, 0, 0, 1, 2, 3, 3, 4])
    pooled = np.array([0, 0, 0, 0, 0, 9, 9, 9, 9, 9])
    assert stratified_error(values, alone) == stratified_error(values, pooled)
    # A single small one joins the next smallest.
    assert stratified_error(values, np.array([0] * 6 + [1] * 3 + [2])) == stratified_error(
        values, np.array([0] * 6 + [1] * 4)
    )
    assert stratified_error(values, np.arange(10)) == pytest.approx(values.std(ddof=1) / sqrt(10))
    assert stratified_error([1], [0]) == 0.0


@pytest.mark.parametrize("per_subject", [1, 2, 4, 25])
def test_the_stratified_interval_covers_the_truth_of_new_questions(per_subject: int) -> None:
    """40 subjects whose shares differ as widely as those of MMLU or more, and new questions in each draw."""
    rng = np.random.default_rng(2)
    truths, subjects = rng.uniform(0.2, 0.95, 40), np.repeat(np.arange(40), per_subject)
    drawn = rng.random((2000, len(subjects))) < truths[subjects]
    scores = [Score(int(one.sum()), len(one), "", accuracy_error=stratified_error(one, subjects)) for one in drawn]
    covered = np.mean([low <= truths.mean() <= high for low, high in (score.interval for score in scores)])
    # Two questions in each are taken together, for want of a better way: that covers more than it says.
    assert 0.935 <= covered <= (0.965 if per_subject > 2 else 1.0)
    plain = np.mean([low <= truths.mean() <= high for low, high in (wilson(s.correct, s.asked) for s in scores)])
    assert plain > 0.965


def test_scores_of_subjects_together_are_a_stratified_one() -> None:
    score = together([Score(30, 40, "full"), Score(5, 60, "full")], "full")
    assert (score.correct, score.asked, score.part) == (35, 100, "full")
    values = np.repeat([1, 0, 1, 0], [30, 10, 5, 55])
    assert score.standard_error == stratified_error(values, np.repeat([0, 1], [40, 60]))
    assert score.standard_error < sqrt(0.35 * 0.65 / 100)


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


@settings(deadline=None, derandomize=True)
@given(shares)
def test_wilson_is_that_of_scipy(share: tuple[int, int]) -> None:
    theirs = stats.binomtest(*share).proportion_ci(0.95, method="wilson")
    assert wilson(*share) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """By brute force: a statement stands if every group of statements with it is rejected together."""
    every = range(len(p_values))
    groups = [group for size in every for group in combinations(every, size + 1)]
    rejected_at = {group: min(1.0, len(group) * min(p_values[i] for i in group)) for group in groups}
    expected = [max(p for group, p in rejected_at.items() if i in group) for i in every]
    assert holm(p_values) == pytest.approx(expected)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=60), st.floats(0.5, 4))
def test_the_stratified_error_does_not_depend_on_the_order_and_scales(rows: list[tuple[int, bool]], k: float) -> None:
    subjects, values = np.array([row[0] for row in rows]), np.array([float(row[1]) for row in rows])
    found = stratified_error(values, subjects)
    assert 0 <= found <= sqrt(len(rows)) / 2
    assert stratified_error(values[::-1], 10 * subjects[::-1] + 7) == pytest.approx(found)
    assert stratified_error(k * values, subjects) == pytest.approx(k * found)
    assert stratified_error(values + k, subjects) == pytest.approx(found)
    assert stratified_error(values, subjects, np.full(len(rows), k)) == pytest.approx(found)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 4)), min_size=2, max_size=30))
def test_whole_weights_have_the_mean_of_so_many_questions(rows: list[tuple[float, int]]) -> None:
    differences, weights = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    found = compare_means(differences, weights)
    assert found.difference == pytest.approx(np.repeat(differences, weights.astype(int)).mean(), abs=1e-12)
    alike = compare_means(differences, np.ones(len(rows)))
    assert alike.standard_error == pytest.approx(differences.std() / sqrt(len(rows)))
    if alike.standard_error > 1e-6:
        z = alike.difference / alike.standard_error
        assert alike.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-12)
