"""Where the texts of a packed batch lie: no padding, and beginnings that several texts share lie there once.

A packed batch is one row of N tokens: first the shared beginnings (`prefixes`), then the rest of every text (`rows`).
A row that continues a prefix sees it as if its tokens stood right before its own: the convolution reads the prefix's
last tokens, the scan starts from the prefix's last state, attention sees the prefix's keys.

Suffixes: N packed tokens, S sequences of a level, K tiles of a level, P positions that are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE = 64
"""Tokens of a tile: what one program of a GPU's attention kernel answers for."""


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
    return Layout(
        levels=tuple(_level(*part, device) for part in parts),
        texts=texts,
        position_N=to_device(position, device),
        keep_P=to_device(keep.astype(np.int64), device),
        longest_text=int((lengths + starts).max()),
    )


def _level(
    first: NDArray[np.int64],
    length: NDArray[np.int64],
    before_first: NDArray[np.int64],
    before_length: NDArray[np.int64],
    parent: NDArray[np.int64],
    device: torch.device,
) -> Level:
    tiles = -(-length // TILE)
    sequence = np.repeat(np.arange(len(length)), tiles)
    at = (np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * TILE

    def tensor(array: NDArray[np.int64]) -> Tensor:
        return to_device(array.astype(np.int32), device)

    return Level(
        first_S=tensor(first),
        length_S=tensor(length),
        before_first_S=tensor(before_first),
        before_length_S=tensor(before_length),
        parent_S=tensor(parent),
        tile_sequence_K=tensor(sequence),
        tile_first_K=tensor(at),
        longest=int(length.max()),
        longest_before=int(before_length.max()),
    )


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A tensor of its own on the device; a copy to a GPU does not wait for the GPU."""
    tensor = torch.from_numpy(np.array(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
