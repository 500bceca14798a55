"""Packs rows of tokens end to end into batches without padding; what rows share at their beginning is in a batch once.

Batches depend on the rows alone, never on the layer sets that will be asked.

Suffixes: R rows, G shared beginnings (prefixes) of a batch, N packed tokens, M positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_PREFIX = 8
"""Fewest tokens that are worth a sequence of their own."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows that run together: first their prefixes, then the rest of each."""

    tokens_N: NDArray[np.int32]
    members_R: NDArray[np.int64]
    """Which rows."""
    row_lengths_R: NDArray[np.int64]
    """Tokens of each row behind its prefix."""
    prefix_lengths_G: NDArray[np.int64]
    prefix_of_row_R: NDArray[np.int64]
    """-1 where a row has none."""

    def at(self, row_M: NDArray[np.int64], position_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the pack position `position_M` of the `row_M`-th member lies."""
        ends = np.cumsum(np.concatenate([self.prefix_lengths_G, self.row_lengths_R]))
        first = np.concatenate([[0], ends])
        prefix_M = self.prefix_of_row_R[row_M]
        before_M = np.where(prefix_M >= 0, np.append(self.prefix_lengths_G, 0)[prefix_M], 0)
        own_M = first[len(self.prefix_lengths_G) + row_M] + position_M - before_M
        return np.where(position_M < before_M, first[np.maximum(prefix_M, 0)] + position_M, own_M)


def pack(
    rows: Sequence[NDArray[np.int32]],
    group_R: NDArray[np.int64],
    batch_tokens: int,
    *,
    prefix_R: NDArray[np.int64],
) -> list[PackedBatch]:
    """Pack rows into batches of about equal size, group by group.

    Args:
        rows: Tokens of each row, at least 1.
        group_R: Rows of one group share a beginning.
        batch_tokens: Most tokens in one batch; a longer row is a batch of its own.
        prefix_R: Tokens of the beginning that each row shares with the others of its group, less than its length; 0
            for none. See `beginnings.common_beginnings`.

    Returns:
        Every row in exactly one batch. Groups with long rows come first, so that kernels that pad pad little, and a
        batch too large for the device fails at once.

    Raises:
        ValueError: if `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    if not len(rows):
        return []
    lengths_R = np.array([len(row) for row in rows], dtype=np.int64)
    longest_R = _largest_of_group(lengths_R, group_R)
    order = np.lexsort((np.arange(len(rows)), -lengths_R, group_R, -longest_R))
    lengths, shared, groups = lengths_R[order].tolist(), prefix_R[order].tolist(), group_R[order].tolist()
    cuts = _fill(lengths, shared, groups, batch_tokens)
    # The smallest budget with as few batches makes them about equally large.
    low, high = 0, batch_tokens
    while high - low > 1:
        middle = (low + high) // 2
        tried = _fill(lengths, shared, groups, middle)
        low, high = (low, middle) if len(tried) == len(cuts) else (middle, high)
    cuts = _fill(lengths, shared, groups, high)
    bounds = zip([0, *cuts], [*cuts, len(rows)], strict=True)
    return [_batch(rows, order[first:last], group_R, prefix_R) for first, last in bounds]


def _fill(lengths: list[int], shared: list[int], groups: list[int], budget: int) -> list[int]:
    """Where new batches begin if each takes rows, in order, as long as they fit."""
    cuts, tokens, last = [], 0, None
    for at, (length, prefix, group) in enumerate(zip(lengths, shared, groups, strict=True)):
        cost = length - prefix if group == last else length
        if at and tokens + cost > budget:
            cuts.append(at)
            tokens, cost = 0, length
        tokens += cost
        last = group
    return cuts


def _largest_of_group(lengths_R: NDArray[np.int64], group_R: NDArray[np.int64]) -> NDArray[np.int64]:
    _, group_R = np.unique(group_R, return_inverse=True)
    largest_G = np.zeros(group_R.max() + 1, dtype=np.int64)
    np.maximum.at(largest_G, group_R, lengths_R)
    return largest_G[group_R]


def _batch(
    rows: Sequence[NDArray[np.int32]],
    members: NDArray[np.int64],
    group_R: NDArray[np.int64],
    prefix_R: NDArray[np.int64],
) -> PackedBatch:
    # Groups lie together, so each begins where the one before ends.
    begins_R = np.append(True, np.diff(group_R[members]) != 0)
    first, group = np.flatnonzero(begins_R), np.cumsum(begins_R) - 1
    has_G = prefix_R[members[first]] > 0
    number_G = np.where(has_G, np.cumsum(has_G) - 1, -1)
    prefix_rows = members[first][has_G]
    prefixes = [rows[r][: prefix_R[r]] for r in prefix_rows]
    own = [rows[r][prefix_R[r] :] for r in members]
    return PackedBatch(
        tokens_N=np.concatenate([*prefixes, *own]),
        members_R=members,
        row_lengths_R=np.array([len(row) for row in own], dtype=np.int64),
        prefix_lengths_G=np.array([len(prefix) for prefix in prefixes], dtype=np.int64),
        prefix_of_row_R=number_G[group],
    )
