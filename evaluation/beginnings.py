"""Finds which texts should share the computation of their beginnings, where nothing is known of them but their tokens.

Suffix: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.packing import MIN_PREFIX


class _Group(NamedTuple):
    """Rows that share a beginning, up to where in sorted order the next group begins."""

    first: int
    shared: int
    """Tokens."""


class _Node(NamedTuple):
    """Rows, side by side in sorted order, that begin alike; the last child of an open node is still to come."""

    shared: int
    first: int
    saved: int
    """Tokens that `groups` save."""
    groups: list[_Group]


def common_beginnings(rows: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group rows so that running the beginning of each group once saves many tokens.

    Sorted, the rows that begin alike lie side by side, and make a tree: n rows with d tokens in common become one
    group where the (n - 1) * d tokens that this saves are more than the groups among them save. The tree is walked from
    its leaves (Abouelhoda, Kurtz and Ohlebusch, "Replacing suffix trees with enhanced suffix arrays", 2004).

    Args:
        rows: Tokens of each, at least 1.

    Returns:
        The group of each row and the tokens that it shares with its group, both int64 [R], as `packing.pack` takes
        them: less than the row has, and 0 where they are too few.
    """
    order = sorted(range(len(rows)), key=lambda r: rows[r].astype(">u4").tobytes())
    unfinished: list[_Node] = []
    groups: list[_Group] = []
    for i, r in enumerate(order):
        shared = _shared(rows[r], rows[order[i + 1]]) if i + 1 < len(order) else -1
        first, saved, groups = i, 0, [_Group(i, 0)]
        while unfinished and unfinished[-1].shared >= shared:
            node = unfinished.pop()
            node.groups.extend(groups)
            first, saved, groups = node.first, node.saved + saved, node.groups
            together = node.shared * (i - first)
            if node.shared > shared and together > saved:
                saved, groups = together, [_Group(first, node.shared)]
        if shared >= 0:
            unfinished.append(_Node(shared, first, saved, groups))
    group_R, shared_R = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    sizes = np.diff([group.first for group in groups] + [len(rows)])
    group_R[order] = np.repeat(np.arange(len(groups)), sizes)
    shared_R[order] = np.repeat([group.shared for group in groups], sizes)
    return group_R, shared_R


def _shared(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Tokens that both begin with, each keeping one of its own; 0 where they are too few to be run apart."""
    length = min(len(a), len(b)) - 1
    differ = np.flatnonzero(a[:length] != b[:length])
    shared = int(differ[0]) if len(differ) else length
    return shared if shared >= MIN_PREFIX else 0
