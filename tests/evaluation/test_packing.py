from __future__ import annotations

import numpy as np
import pytest

from evaluation.packing import MAX_WASTE, pack, padded


def lengths_like_mmlu(count: int) -> np.ndarray:
    return np.minimum(np.random.default_rng(0).lognormal(4.6, 0.6, count).astype(np.int64) + 20, 1008)


@pytest.mark.parametrize("batch_tokens", [1, 50, 512, 4096, 10**9])
def test_every_row_is_in_exactly_one_batch_within_the_budget(batch_tokens: int) -> None:
    lengths = lengths_like_mmlu(300)
    batches = pack(lengths, batch_tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= batch_tokens


@pytest.mark.parametrize("batch_tokens", [512, 4096, 65536])
def test_padding_of_a_batch_is_bounded(batch_tokens: int) -> None:
    lengths = lengths_like_mmlu(2000)
    for rows in pack(lengths, batch_tokens):
        assert len(rows) * lengths[rows].max() - lengths[rows].sum() <= MAX_WASTE * batch_tokens


def test_padding_is_small_in_all() -> None:
    lengths = lengths_like_mmlu(2000)
    run = sum(len(rows) * lengths[rows].max() for rows in pack(lengths, 4096))
    assert lengths.sum() / run > 0.95


def test_longest_rows_run_first_and_equal_ones_keep_their_order() -> None:
    assert [rows.tolist() for rows in pack(np.array([3, 5, 5, 3]), 6)] == [[1], [2], [0, 3]]


def test_no_rows_make_no_batches() -> None:
    assert pack(np.zeros(0, dtype=np.int64), 100) == []


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        pack(np.array([3]), 0)


def test_rows_are_padded_on_the_right() -> None:
    rows = [np.array([5, 6, 7], dtype=np.int32), np.array([8], dtype=np.int32)]
    np.testing.assert_array_equal(padded(rows), [[5, 6, 7], [8, 0, 0]])
