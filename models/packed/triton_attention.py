"""Causal attention with grouped heads over packed texts (Dao, arXiv:2307.08691), reading [q | k | v] where it lies.

A program has one query head of one tile of a sequence; it goes through the keys of the prefix, then its own, with a
running softmax. Suffixes as in kernels.py.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.packed.kernels import AttentionShape
from models.packed.layout import TILE, Layout


def attend(qkv_NE: Tensor, shape: AttentionShape, layout: Layout) -> Tensor:
    """Attention of queries and keys that are rotated already; qkv contiguous; one launch for each level."""
    is_full = qkv_NE.dtype == torch.float32
    out_NE = torch.empty(len(layout), shape.query_heads * shape.width, dtype=qkv_NE.dtype, device=qkv_NE.device)
    for level in layout.levels:
        _attend_kernel[(len(level.tile_sequence_K) * shape.query_heads,)](
            qkv_NE,
            out_NE,
            level.first_S,
            level.length_S,
            level.before_first_S,
            level.before_length_S,
            level.tile_sequence_K,
            level.tile_first_K,
            math.log2(math.e) / math.sqrt(shape.width),
            QUERY_HEADS=shape.query_heads,
            KEY_HEADS=shape.key_heads,
            HAS_BEFORE=level.longest_before > 0,
            WIDTH=shape.width,
            BLOCK_WIDTH=max(triton.next_power_of_2(shape.width), 16),
            TILE=TILE,
            KEYS=32 if is_full else 64,
            PRECISION="ieee" if is_full else "tf32",
            num_warps=8 if is_full else 4,
            num_stages=2 if level.longest_before and not is_full else 1,  # beside a prefix, loops are long
        )
    return out_NE


@triton.jit
def _see(
    q,
    out,
    largest,
    total,
    k_ptr,
    v_ptr,
    row,
    there,
    seen,
    at,
    in_width,
    scale,
    ROW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take a block of keys into a running softmax.

    Args:
        q: [queries, width].
        out: [queries, width], sum of the values so far, weighed with exp2(score - largest).
        largest: Score so far, of each query.
        total: Sum of the weights so far.
        k_ptr: Of the sequence's first key.
        v_ptr: Likewise.
        row: Which keys.
        there: Which of them exist.
        seen: [queries, keys].
        at: Columns of the width.
        in_width: Which of them exist.
        scale: Of scores, to the base 2.
        ROW: Elements from one token to the next.
        PRECISION: Of products.
    """
    k = tl.load(k_ptr + row[None, :] * ROW + at[:, None], mask=there[None, :] & in_width[:, None], other=0.0)
    v = tl.load(v_ptr + row[:, None] * ROW + at[None, :], mask=there[:, None] & in_width[None, :], other=0.0)
    score = tl.where(seen, tl.dot(q, k, input_precision=PRECISION) * scale, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(score, axis=1))
    weight = tl.exp2(score - new_largest[:, None])
    shrink = tl.exp2(largest - new_largest)
    total = total * shrink + tl.sum(weight, axis=1)
    out = tl.dot(weight.to(v.dtype), v, acc=out * shrink[:, None], input_precision=PRECISION)
    return out, new_largest, total


@triton.jit
def _attend_kernel(
    qkv_ptr,
    out_ptr,
    first_ptr,
    length_ptr,
    before_first_ptr,
    before_length_ptr,
    tile_sequence_ptr,
    tile_first_ptr,
    scale,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HAS_BEFORE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    ROW: tl.constexpr = (QUERY_HEADS + 2 * KEY_HEADS) * WIDTH
    program = tl.program_id(0)
    tile, head = program // QUERY_HEADS, program % QUERY_HEADS
    sequence = tl.load(tile_sequence_ptr + tile)
    tile_first = tl.load(tile_first_ptr + tile)
    first = tl.load(first_ptr + sequence).to(tl.int64)
    length = tl.load(length_ptr + sequence)

    at = tl.arange(0, BLOCK_WIDTH)
    in_width = at < WIDTH
    i = tile_first + tl.arange(0, TILE)
    in_tile = (i < length)[:, None] & in_width[None, :]
    q_ptr = qkv_ptr + first * ROW + head * WIDTH
    q = tl.load(q_ptr + i[:, None] * ROW + at[None, :], mask=in_tile, other=0.0)
    k_ptr = qkv_ptr + (QUERY_HEADS + head // (QUERY_HEADS // KEY_HEADS)) * WIDTH
    v_ptr = k_ptr + KEY_HEADS * WIDTH
    out = tl.zeros((TILE, BLOCK_WIDTH), tl.float32)
    largest = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)

    # The first block of either loop has a key for every query, so `largest` is finite from then on.
    j = tl.arange(0, KEYS)
    if HAS_BEFORE:
        before_first = tl.load(before_first_ptr + sequence).to(tl.int64) * ROW
        before_length = tl.load(before_length_ptr + sequence)
        for start in range(0, before_length, KEYS):
            there = start + j < before_length
            seen = there[None, :] & (i >= 0)[:, None]
            out, largest, total = _see(
                q, out, largest, total, k_ptr + before_first, v_ptr + before_first, start + j, there, seen,
                at, in_width, scale, ROW, PRECISION,
            )  # fmt: skip
    for start in range(0, tl.minimum(tile_first + TILE, length), KEYS):
        there = start + j < length
        seen = there[None, :] & (i[:, None] >= start + j[None, :])
        out, largest, total = _see(
            q, out, largest, total, k_ptr + first * ROW, v_ptr + first * ROW, start + j, there, seen,
            at, in_width, scale, ROW, PRECISION,
        )  # fmt: skip

    out = (out / total[:, None]).to(q.dtype)
    out_at = (first + i)[:, None] * (QUERY_HEADS * WIDTH) + head * WIDTH + at[None, :]
    tl.store(out_ptr + out_at, out, mask=in_tile)
