from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation import beginnings
from evaluation.beginnings import common_beginnings
from evaluation.packing import MIN_PREFIX

Rows = list[NDArray[np.int32]]


def rows_of(*texts: list[int]) -> Rows:
    return [np.array(text, dtype=np.int32) for text in texts]


def shared_tokens(rows: Rows) -> int:
    """Tokens that all rows begin with, each keeping one of its own."""
    shared = 0
    while shared < min(map(len, rows)) - 1 and len({int(row[shared]) for row in rows}) == 1:
        shared += 1
    return shared


def most_saved(rows: Rows) -> int:
    """The definition: a node of the tree is one group, or what its children are."""
    if len(rows) < 2:
        return 0
    shared = shared_tokens(rows)
    children: dict[int, Rows] = {}
    for row in rows:
        if len(row) > shared + 1:
            children.setdefault(int(row[shared]), []).append(row)
    apart = sum(map(most_saved, children.values()))
    return max(apart, (shared if shared >= beginnings.MIN_PREFIX else 0) * (len(rows) - 1))


def test_groups_save_as_much_as_by_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "MIN_PREFIX", 2)
    draw = random.Random(0)
    for _ in range(300):
        rows = rows_of(*([draw.randint(0, 1) for _ in range(draw.randint(1, 9))] for _ in range(draw.randint(1, 9))))
        group_R, shared_R = common_beginnings(rows)
        saved = 0
        for group in np.unique(group_R):
            members = np.flatnonzero(group_R == group)
            shared = int(shared_R[members[0]])
            assert (shared_R[members] == shared).all()
            assert shared <= shared_tokens([rows[r] for r in members])
            assert all(shared < len(rows[r]) for r in members)
            saved += shared * (len(members) - 1)
        assert saved == most_saved(rows)


def test_questions_share_examples_or_else_choices_share_their_question() -> None:
    examples, first, second = list(range(100)), list(range(200, 220)), list(range(300, 320))
    with_examples = rows_of(examples + first + [1], examples + first + [2], examples + second + [1])
    assert common_beginnings(with_examples)[1].tolist() == [100] * 3
    group_R, shared_R = common_beginnings(rows_of([*first, 1], [*second, 1], [*first, 2], [*second, 2, 3]))
    assert shared_R.tolist() == [20] * 4
    assert group_R[0] == group_R[2] != group_R[1] == group_R[3]


def test_short_beginnings_and_single_rows_are_not_shared() -> None:
    same = list(range(MIN_PREFIX - 1))
    group_R, shared_R = common_beginnings(rows_of([*same, 50], [*same, 60]))
    assert shared_R.tolist() == [0, 0]
    assert group_R[0] != group_R[1]
    assert [array.tolist() for array in common_beginnings(rows_of([7]))] == [[0], [0]]
    assert [array.tolist() for array in common_beginnings([])] == [[], []]


def test_a_row_that_is_the_beginning_of_another_keeps_a_token() -> None:
    text = list(range(40))
    assert common_beginnings(rows_of(text, text[:20]))[1].tolist() == [19, 19]


def test_nesting_as_deep_as_a_text_is_long() -> None:
    text = np.arange(3000, dtype=np.int32)
    group_R, shared_R = common_beginnings([text[:length] for length in range(1, 3001)])
    assert len(group_R) == len(shared_R) == 3000
