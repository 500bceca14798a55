"""Where texts lie in a packed batch: every token in one place, every beginning before the rows that continue it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.beginnings import common_beginnings
from evaluation.packing import pack
from models.packed.layout import TILE, Layout, make_layout

CPU = torch.device("cpu")
lengths = st.integers(1, 3 * TILE)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, list[tuple[int, int]]]:
    """A layout, and of each row its own tokens and those of its prefix."""
    prefixes = draw(st.lists(lengths, max_size=3))
    parents = draw(st.lists(st.integers(-1, len(prefixes) - 1), min_size=1, max_size=5))
    parents = draw(st.permutations([*parents, *range(len(prefixes))]))  # none is packed for nothing
    rows = [(draw(lengths), parent) for parent in parents]
    own, parent = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    keep = np.arange(int(own.sum()) + sum(prefixes))[::-1].copy()
    layout = make_layout(own, keep, device=CPU, prefix_lengths=np.array(prefixes, dtype=np.int64), prefix_of_row=parent)
    return layout, [(length, prefixes[p] if p >= 0 else 0) for length, p in rows]


def numbers(tensor: torch.Tensor) -> NDArray[np.int64]:
    return tensor.numpy().astype(np.int64)


@settings(deadline=None, derandomize=True)
@given(layouts())
def test_every_token_is_in_one_sequence_and_one_tile(made: tuple[Layout, list[tuple[int, int]]]) -> None:
    layout, _ = made
    in_sequences, in_tiles = np.zeros(len(layout), int), np.zeros(len(layout), int)
    for level in layout.levels:
        first, length = numbers(level.first_S), numbers(level.length_S)
        for at, count in zip(first, length, strict=True):
            in_sequences[at : at + count] += 1
        for sequence, at in zip(numbers(level.tile_sequence_K), numbers(level.tile_first_K), strict=True):
            assert 0 <= at < length[sequence]
            assert at % TILE == 0
            begin = first[sequence] + at
            in_tiles[begin : min(begin + TILE, first[sequence] + length[sequence])] += 1
        assert level.longest == length.max()
        assert level.longest_before == numbers(level.before_length_S).max()
        assert level.count == len(first)
    assert (in_sequences == 1).all()
    assert (in_tiles == 1).all()
    assert sorted(layout.keep_P.tolist()) == list(range(len(layout)))


@settings(deadline=None, derandomize=True)
@given(layouts())
def test_positions_go_on_from_the_prefix_of_a_row(made: tuple[Layout, list[tuple[int, int]]]) -> None:
    layout, rows = made
    level, position = layout.levels[-1], numbers(layout.position_N)
    parents = numbers(level.parent_S)
    for row, (own, before) in enumerate(rows):
        first = int(level.first_S[row])
        assert position[first : first + own].tolist() == list(range(before, before + own))
        assert int(level.before_length_S[row]) == before
        if before:
            prefixes = layout.levels[0]
            assert int(level.before_first_S[row]) == int(prefixes.first_S[parents[row]])
            at = int(prefixes.first_S[parents[row]])
            assert position[at : at + before].tolist() == list(range(before))
    assert layout.longest_text == max(own + before for own, before in rows)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=1, max_size=12), st.integers(10, 200))
def test_packed_texts_are_read_back_whole_through_the_layout(texts: list[list[int]], batch_tokens: int) -> None:
    """From tokens to batches to layout: what stands before a row, and the row, is the text."""
    rows = [np.array(text, dtype=np.int32) for text in texts]
    group, prefix = common_beginnings(rows)
    seen = []
    for batch in pack(rows, group, batch_tokens, prefix_R=prefix):
        layout = make_layout(
            batch.row_lengths_R,
            np.zeros(1, np.int64),
            device=CPU,
            prefix_lengths=batch.prefix_lengths_G,
            prefix_of_row=batch.prefix_of_row_R,
        )
        level = layout.levels[-1]
        places = zip(level.first_S, level.length_S, level.before_first_S, level.before_length_S, strict=True)
        for member, place in zip(batch.members_R.tolist(), places, strict=True):
            first, own, before, shared = map(int, place)
            read = [*batch.tokens_N[before : before + shared], *batch.tokens_N[first : first + own]]
            assert read == texts[member]
            seen.append(member)
    assert sorted(seen) == list(range(len(texts)))
