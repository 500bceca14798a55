"""Where the texts of a packed batch lie: no padding, and beginnings that several texts share lie there once.

A packed batch is one row of N tokens: first the shared beginnings (`prefixes`), then the rest of every text (`rows`).
A row that continues a prefix sees it as if its tokens stood right before its own: the convolution reads the prefix's
last tokens, the scan starts from the prefix's last state, attention sees the prefix's keys.

Suffixes: N packed tokens, S sequences of a level, K tiles of a level, P positions that are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE = 64
"""Tokens of a tile: what one program of a GPU's attention kernel answers for."""
_ALIGNED = 256
"""Bytes; a kernel is compiled anew for addresses that are not multiples of 16."""


class Texts(NamedTuple):
    """Where the sequences of all levels lie, prefixes first, then rows; on the host. Fields as those of `Level`."""

    first_S: NDArray[np.int64]
    length_S: NDArray[np.int64]
    before_first_S: NDArray[np.int64]
    before_length_S: NDArray[np.int64]
    parent_S: NDArray[np.int64]
    """The sequence that is its prefix; -1 where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """Sequences that can run at once: the prefixes, or the rows. Tensors are int32, on the device."""

    first_S: Tensor
    """First packed token of each sequence."""
    length_S: Tensor
    """Its tokens, at least 1."""
    before_first_S: Tensor
    """First packed token of the prefix that it continues; 0 where there is none."""
    before_length_S: Tensor
    """Tokens of that prefix; 0 where there is none."""
    parent_S: Tensor
    """Which sequence of the level before that prefix is; -1 where there is none."""
    tile_sequence_K: Tensor
    tile_first_K: Tensor
    """Tile k holds tokens tile_first[k] to tile_first[k] + TILE of sequence tile_sequence[k], as far as there are."""
    longest: int
    longest_before: int

    @property
    def count(self) -> int:
        """Sequences."""
        return len(self.first_S)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Layout:
    """A packed batch."""

    levels: tuple[Level, ...]
    """The rows, or the prefixes and then the rows."""
    texts: Texts
    """The same, all in a row."""
    position_N: Tensor
    """int64: of each token within its whole text, from 0."""
    keep_P: Tensor
    """int64: packed tokens whose hidden states are read in the end."""
    longest_text: int
    """Tokens of the longest text, prefix included."""

    def __len__(self) -> int:
        return len(self.position_N)


def make_layout(
    row_lengths: NDArray[np.int64],
    keep: NDArray[np.int64],
    *,
    device: torch.device,
    prefix_lengths: NDArray[np.int64] | None = None,
    prefix_of_row: NDArray[np.int64] | None = None,
) -> Layout:
    """The layout of a batch whose packed tokens are all prefixes in order, then all rows in order.

    Args:
        row_lengths: Tokens of each row, its prefix not counted; at least 1.
        keep: Packed tokens that are read in the end.
        device: Where the tensors go.
        prefix_lengths: Tokens of each prefix, at least 1; None for no prefixes.
        prefix_of_row: The prefix that each row continues, -1 for none; None for no prefixes.
    """
    prefixes = np.zeros(0, np.int64) if prefix_lengths is None else prefix_lengths
    parent = np.full(len(row_lengths), -1, np.int64) if prefix_of_row is None else prefix_of_row
    first = np.cumsum(np.concatenate([[0], prefixes, row_lengths]))[:-1]
    prefix_first, row_first = first[: len(prefixes)], first[len(prefixes) :]
    has = parent >= 0
    before_first, before_length = np.zeros_like(parent), np.zeros_like(parent)
    before_first[has], before_length[has] = prefix_first[parent[has]], prefixes[parent[has]]

    nothing = np.zeros_like(prefixes)
    parts = [(row_first, row_lengths, before_first, before_length, parent)]
    if len(prefixes):
        parts.insert(0, (prefix_first, prefixes, nothing, nothing, nothing - 1))
    texts = Texts(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    lengths, starts = texts.length_S, texts.before_length_S
    position = np.arange(lengths.sum()) - np.repeat(first, lengths) + np.repeat(starts, lengths)
    tables = chain.from_iterable(_tables(*part) for part in parts)
    tensors = iter(to_device([position, keep.astype(np.int64), *tables], device))
    return Layout(
        position_N=next(tensors),
        keep_P=next(tensors),
        levels=tuple(_level(tensors, length, before_length) for _, length, _, before_length, _ in parts),
        texts=texts,
        longest_text=int((lengths + starts).max()),
    )


def _level(tensors: Iterator[Tensor], length_S: NDArray[np.int64], before_length_S: NDArray[np.int64]) -> Level:
    """Takes the tensors of `_tables`."""
    return Level(
        first_S=next(tensors),
        length_S=next(tensors),
        before_first_S=next(tensors),
        before_length_S=next(tensors),
        parent_S=next(tensors),
        tile_sequence_K=next(tensors),
        tile_first_K=next(tensors),
        longest=int(length_S.max()),
        longest_before=int(before_length_S.max()),
    )


def _tables(
    first: NDArray[np.int64],
    length: NDArray[np.int64],
    before_first: NDArray[np.int64],
    before_length: NDArray[np.int64],
    parent: NDArray[np.int64],
) -> list[NDArray[np.int32]]:
    """The tensors of a `Level`, in its order."""
    tiles = -(-length // TILE)
    sequence = np.repeat(np.arange(len(length)), tiles)
    at = (np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * TILE
    arrays = first, length, before_first, before_length, parent, sequence, at
    return [array.astype(np.int32) for array in arrays]


def to_device(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[Tensor]:
    """Tensors of their own on the device; to a GPU in one copy, which does not wait for the GPU.

    One, as page-locked memory for each of the thousands of small tables of a large plan takes longer than the copies.
    """
    if device.type != "cuda":
        return [torch.from_numpy(np.array(array)) for array in arrays]
    ends = np.cumsum([-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays]).tolist()
    host = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8, pin_memory=True)
    places = [slice(begin, begin + array.nbytes) for begin, array in zip([0, *ends], arrays, strict=False)]
    for place, array in zip(places, arrays, strict=True):
        host.numpy()[place] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = host.to(device, non_blocking=True)
    kinds = [torch.from_numpy(np.empty(0, array.dtype)).dtype for array in arrays]
    return [there[place].view(kind).view(array.shape) for place, kind, array in zip(places, kinds, arrays, strict=True)]
