"""Packed texts seen whole, each from its first token: tables of where their tokens lie, cut as the model's code cuts.

A sum of floats depends on the order of its terms, and one that differs in its last bit sooner or later rounds to
another number of 16 bits. What is to give the model's own bits must therefore begin every text at its beginning, also
one that continues a shared prefix, and end its chunks where the model ends them.

Suffixes: N packed tokens, S texts, K chunks, L tokens of a chunk, W tokens seen by the convolution before its own, B
texts of a bucket, T tokens of the longest of them, M own tokens of a bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.packed.layout import Layout, Texts, to_device

TOKEN_BYTES = 84 * 1024
"""What may stand between a mixer's products for each token; heads are taken so many at a time."""
BUCKET_TOKENS = 16384
"""Most tokens of a bucket, padding included, unless one text has more; a power of two."""
BUCKET_STEP = 64
"""Texts of a bucket are padded to a multiple of it, those of more than 512 tokens to an eighth of a power of two."""
_MULTIPLE = 16
"""Chunks are padded to it where all texts are shorter than a chunk."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """Every text cut into chunks, of those that continue a prefix the ones that hold tokens of their own.

    So the first chunk of such a text may begin with tokens of its prefix. Tensors are on the device.
    """

    token_KL: Tensor
    """int32: which packed token; -1 behind the end of a text."""
    own_from_K: Tensor
    """int32: the tokens of a chunk that come before are its prefix's."""
    past_NW: Tensor
    """int32: the packed tokens that come one, two, ... before in the text; -1 where there are none."""
    adding_J: Tensor
    """int64: chunks that are followed by another; what they add to the state is needed."""
    entered_I: Tensor
    """int64: chunks that a state enters, as they follow another."""
    added_K: Tensor
    """int32: the place of a chunk in `adding_J`; -1 where it has none."""
    entering_K: Tensor
    """int32: the place of a chunk in `entered_I`; -1 where it has none."""
    chain_S4: Tensor
    """int32: of each text of several chunks: the first chunk of its prefix, how many of these it skips, its first own
    chunk, how many it has."""


class Bucket(NamedTuple):
    """Texts of about the same length, padded behind; int64, on the device."""

    token_BT: Tensor
    """Which packed token; any where there is none."""
    own_M: Tensor
    """Which of the B * T are tokens of their text alone, not of its prefix."""
    token_M: Tensor
    """Which packed tokens these are."""


class WholeTexts:
    """Of one layout; tables are made once, when they are asked for."""

    def __init__(self, layout: Layout) -> None:
        self._texts, self._device = layout.texts, layout.position_N.device
        self._longest = layout.longest_text
        self._chunks: dict[tuple[int, int], Chunks] = {}

    def chunks(self, length: int, taps: int) -> Chunks:
        """Chunks of `length` tokens, for a convolution of so many taps."""
        length = min(length, -(-self._longest // _MULTIPLE) * _MULTIPLE)
        if (length, taps) not in self._chunks:
            self._chunks[length, taps] = _cut(self._texts, length, taps, self._device)
        return self._chunks[length, taps]

    @cached_property
    def buckets(self) -> list[Bucket]:
        """All texts, the longest first, in buckets of few different shapes.

        cuDNN makes a plan for each shape that it has not seen, which takes longer than to run it: tens of milliseconds.
        """
        totals = self._texts.before_length_S + self._texts.length_S
        padded = np.array([_padded(tokens) for tokens in totals.tolist()])
        tables = list[NDArray[np.int64]]()
        for length in sorted({*padded.tolist()}, reverse=True):
            members, most = np.flatnonzero(padded == length), max(1, BUCKET_TOKENS // _power_of_two(length))
            for begin in range(0, len(members), most):
                tables += _bucket(self._texts, members[begin : begin + most], length)
        tensors = iter(to_device(tables, self._device))
        return [Bucket(*three) for three in zip(tensors, tensors, tensors, strict=True)]


def _tokens(texts: Texts, of: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.int64]:
    """Packed tokens at `position` of the whole texts `of`, arrays that broadcast; -1 before and behind a text."""
    first, length, before_first, before = (part[of] for part in texts[:4])
    token = np.where(position < before, before_first + position, first + position - before)
    return np.where((position >= 0) & (position < before + length), token, -1)


def _cut(texts: Texts, length: int, taps: int, device: torch.device) -> Chunks:
    totals, before = texts.before_length_S + texts.length_S, texts.before_length_S
    skipped_S = before // length  # whole chunks of the prefix
    count_S = -(-totals // length) - skipped_S
    first_S = np.cumsum(count_S) - count_S
    text_K = np.repeat(np.arange(len(totals)), count_S)
    nth_K = np.arange(len(text_K)) - first_S[text_K]
    start_K = (skipped_S[text_K] + nth_K) * length
    before_chunk_S = np.where(skipped_S > 0, first_S[texts.parent_S], 0)  # prefixes continue nothing, so skip nothing

    adds_K = nth_K < count_S[text_K] - 1
    for first, count in {(f, c) for f, c in zip(before_chunk_S.tolist(), skipped_S.tolist(), strict=True) if c}:
        adds_K[first : first + count] = True
    several_S = (count_S > 1) | (skipped_S > 0)
    chain_S4 = np.stack([before_chunk_S, skipped_S, first_S, count_S], -1)[several_S]

    text_N = np.repeat(np.arange(len(totals)), texts.length_S)
    position_N = np.arange(len(text_N)) - texts.first_S[text_N] + before[text_N]
    back_W = np.arange(1, taps)

    tables = [
        _tokens(texts, text_K[:, None], start_K[:, None] + np.arange(length)),
        np.maximum(before[text_K] - start_K, 0),
        _tokens(texts, text_N[:, None], position_N[:, None] - back_W),
        np.where(adds_K, np.cumsum(adds_K) - 1, -1),
        np.where(start_K > 0, np.cumsum(start_K > 0) - 1, -1),
        chain_S4,
    ]
    token_KL, own_from_K, past_NW, added_K, entering_K, chain_S4_, adding_J, entered_I = to_device(
        [*(table.astype(np.int32) for table in tables), np.flatnonzero(adds_K), np.flatnonzero(start_K > 0)], device
    )
    return Chunks(
        token_KL=token_KL,
        own_from_K=own_from_K,
        past_NW=past_NW,
        adding_J=adding_J,
        entered_I=entered_I,
        added_K=added_K,
        entering_K=entering_K,
        chain_S4=chain_S4_,
    )


def _power_of_two(number: int) -> int:
    """The least that is not below."""
    return 1 << (number - 1).bit_length()


def _padded(tokens: int) -> int:
    """The length to which a text is padded in its bucket."""
    step = max(BUCKET_STEP, _power_of_two(tokens) // 8)
    return -(-tokens // step) * step


def _bucket(texts: Texts, members_B: NDArray[np.int64], longest: int) -> list[NDArray[np.int64]]:
    """The tensors of a `Bucket`, in its order; rows without a text fill it up to a power of two."""
    position_T = np.arange(longest)
    token_BT = np.full((_power_of_two(len(members_B)), longest), -1)
    token_BT[: len(members_B)] = _tokens(texts, members_B[:, None], position_T)
    own_BT = token_BT >= 0
    own_BT[: len(members_B)] &= position_T >= texts.before_length_S[members_B, None]
    return [np.maximum(token_BT, 0), np.flatnonzero(own_BT), token_BT[own_BT]]
