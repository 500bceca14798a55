"""Where texts lie in a packed batch: every token in one place, every beginning before the rows that continue it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from evaluation.beginnings import common_beginnings
from evaluation.packing import pack
from models.packed.exact import attend, rms_norm
from models.packed.kernels import AttentionShape
from models.packed.layout import TILE, Layout, make_layout
from models.packed.whole import WholeTexts

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


def numbers(tensor: Tensor) -> NDArray[np.int64]:
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


def texts_of(layout: Layout) -> list[list[int]]:
    """Packed tokens of each whole text: its prefix's, then its own."""
    where = zip(*(part.tolist() for part in layout.texts[:4]), strict=True)
    return [[*range(b, b + shared), *range(f, f + own)] for f, own, b, shared in where]


@settings(deadline=None, derandomize=True)
@given(layouts())
def test_each_text_is_whole_in_one_bucket_and_each_token_is_answered_once(
    made: tuple[Layout, list[tuple[int, int]]],
) -> None:
    layout, _ = made
    texts, answered = texts_of(layout), []
    for bucket in WholeTexts(layout).buckets:
        flat = bucket.token_BT.flatten()
        assert torch.equal(flat[bucket.own_M], bucket.token_M)
        answered += bucket.token_M.tolist()
        for row in bucket.token_BT.tolist():
            ends = [len(text) for text in texts if row[: len(text)] == text]
            assert ends or not any(row)  # a text, or what fills the bucket up
    assert sorted(answered) == list(range(len(layout)))


@settings(deadline=None, derandomize=True)
@given(layouts(), st.sampled_from([16, 64, 256]), st.integers(2, 4))
def test_chunks_cut_each_text_and_know_what_stands_before_each_token(
    made: tuple[Layout, list[tuple[int, int]]], length: int, taps: int
) -> None:
    layout, _ = made
    chunks, texts = WholeTexts(layout).chunks(length, taps), texts_of(layout)
    owner = {text[-own:][i]: (text, len(text) - own + i) for text, own in owned(layout) for i in range(own)}
    for token, past in enumerate(chunks.past_NW.tolist()):
        text, at = owner[token]
        assert past == [text[at - back] if at >= back else -1 for back in range(1, taps)]
    held = []
    for row, begin in zip(chunks.token_KL.tolist(), chunks.own_from_K.tolist(), strict=True):
        held += [token for token in row[begin:] if token >= 0]
        present = [token for token in row if token >= 0]
        assert any(present == text[at : at + len(row)] for text in texts for at in range(0, len(text), len(row)))
    assert sorted(held) == list(range(len(layout)))


def owned(layout: Layout) -> list[tuple[list[int], int]]:
    return list(zip(texts_of(layout), layout.texts.length_S.tolist(), strict=True))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(layouts(), st.sampled_from([(4, 4), (4, 2), (2, 1)]))
def test_attention_in_buckets_is_that_of_each_text_alone(
    made: tuple[Layout, list[tuple[int, int]]], heads: tuple[int, int]
) -> None:
    layout, _ = made
    shape = AttentionShape(query_heads=heads[0], key_heads=heads[1], width=4)
    torch.manual_seed(0)
    qkv = torch.randn(len(layout), (heads[0] + 2 * heads[1]) * 4)
    found = attend(qkv, shape, WholeTexts(layout).buckets).unflatten(-1, (heads[0], 4))
    for text, own in owned(layout):
        q, k, v = qkv[text].unflatten(-1, (-1, 4)).split([heads[0], heads[1], heads[1]], 1)
        k, v = (part.repeat_interleave(heads[0] // heads[1], 1) for part in (k, v))
        weights = torch.einsum("thp,shp->hts", q, k) / 2
        later = torch.ones(len(text), len(text), dtype=torch.bool).triu(1)
        expected = torch.einsum("hts,shp->thp", weights.masked_fill(later, -torch.inf).softmax(-1), v)
        torch.testing.assert_close(found[text[-own:]], expected[-own:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_of_llama_is_bit_for_bit_that_of_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    h, norm = torch.randn(9, 32).to(dtype), LlamaRMSNorm(32, 1e-5).to(dtype)
    norm.weight.data = torch.randn(32).to(dtype)
    assert torch.equal(rms_norm(h, norm.weight, 1e-5, llama=True), norm(h))
    of_llamba = rms_norm(h, norm.weight, 1e-5, llama=False)
    torch.testing.assert_close(of_llamba, norm(h), atol=1e-2 if dtype == torch.bfloat16 else 1e-6, rtol=1e-2)
