from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.beginnings import common_beginnings
from evaluation.packing import PackedBatch, pack

Rows = list[np.ndarray]


def texts(draw_tokens: list[list[int]]) -> Rows:
    return [np.array(row, dtype=np.int32) for row in draw_tokens]


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    """Rows of few kinds of tokens behind a few long beginnings, so that many begin alike."""
    beginnings = draw(st.lists(st.lists(st.integers(0, 1), min_size=0, max_size=30), min_size=1, max_size=3))
    own = st.tuples(st.sampled_from(beginnings), st.lists(st.integers(0, 1), min_size=1, max_size=12))
    return texts([begin + rest for begin, rest in draw(st.lists(own, min_size=1, max_size=25))])


def packed(rows: Rows, batch_tokens: int) -> list[PackedBatch]:
    group_R, prefix_R = common_beginnings(rows)
    return pack(rows, group_R, batch_tokens, prefix_R=prefix_R)


@given(some_rows(), st.integers(1, 200))
def test_every_token_of_every_row_is_found_where_it_is_said_to_lie(rows: Rows, batch_tokens: int) -> None:
    seen = []
    for batch in packed(rows, batch_tokens):
        seen.extend(batch.members_R.tolist())
        for i, row in enumerate(batch.members_R):
            at = batch.at(np.full(len(rows[row]), i), np.arange(len(rows[row])))
            np.testing.assert_array_equal(batch.tokens_N[at], rows[row])
        assert (batch.row_lengths_R >= 1).all()
        assert len(batch.tokens_N) == batch.row_lengths_R.sum() + batch.prefix_lengths_G.sum()
        assert set(batch.prefix_of_row_R[batch.prefix_of_row_R >= 0]) == set(range(len(batch.prefix_lengths_G)))
        assert len(batch.tokens_N) <= batch_tokens or len(batch.members_R) == 1
    assert sorted(seen) == list(range(len(rows)))


@given(some_rows())
def test_sharing_never_costs_tokens(rows: Rows) -> None:
    [batch] = packed(rows, 10**6)
    assert len(batch.tokens_N) <= sum(map(len, rows))


def test_a_beginning_is_packed_once_in_each_batch_that_has_it() -> None:
    rows = texts([[7] * 20 + [i, i + 1] for i in range(10)])
    [whole] = packed(rows, 10**6)
    assert len(whole.tokens_N) == 20 + 10 * 2
    halves = packed(rows, 31)
    assert [len(batch.tokens_N) for batch in halves] == [30, 30]


def test_batches_are_about_equally_large() -> None:
    lengths = np.minimum(np.random.default_rng(0).lognormal(4.6, 0.6, 2000).astype(np.int64) + 20, 1008)
    rows = [np.random.default_rng(i).integers(0, 1000, n).astype(np.int32) for i, n in enumerate(lengths)]
    sizes = [len(batch.tokens_N) for batch in packed(rows, 16384)]
    assert max(sizes) <= 16384
    assert min(sizes) >= 0.8 * max(sizes)


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    rows = texts([[1] * 5, [2] * 50, [3] * 5])
    assert sorted(len(batch.tokens_N) for batch in packed(rows, 12)) == [10, 50]  # the short ones together


def test_no_rows_make_no_batches() -> None:
    assert pack([], np.zeros(0, np.int64), 100, prefix_R=np.zeros(0, np.int64)) == []


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        packed(texts([[3]]), 0)
