"""All of a Llamba mixer between its projections in one kernel, for work in 8 bits: operands of products are rounded.

A program has one head of one sequence and goes through it chunk by chunk, the state in registers; inside a chunk it
takes the quadratic form of `models/scan.py`. A sequence's result depends on that sequence and its prefix alone.
Suffixes as in kernels.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.packed.kernels import MixerWeights
from models.packed.layout import Layout

TAPS = 4
"""Most that a convolution's kernel may be wide."""


@dataclass(frozen=True, slots=True)
class MixerBlocks:
    """How the work is cut; changes speed and rounding."""

    chunk: int
    """Tokens of a chunk, a power of two from 16."""
    width: int
    """Most of a head's width that one program takes, a power of two from 16."""
    warps: int
    registers: int | None
    """Most of a thread; fewer let more programs share a multiprocessor, until they spill. None for no limit."""
    stages: int = 1
    """Chunks whose loads are under way at once."""


HALF_PRECISION = MixerBlocks(chunk=64, width=128, warps=4, registers=None)
FULL_PRECISION = MixerBlocks(chunk=16, width=32, warps=4, registers=None)
"""Products in float32 have no matrix unit: small blocks, so that they fit into the registers."""


def mix(projected_NE: Tensor, mixer: MixerWeights, layout: Layout, blocks: MixerBlocks | None = None) -> Tensor:
    """See `Kernels.mix`; one launch for each level.

    Args:
        projected_NE: [x | B | C | z | a].
        mixer: With a convolution's kernel of `TAPS` or less.
        layout: Where the texts lie.
        blocks: Other than those meant for the dtype.
    """
    if projected_NE.stride(1) != 1:
        projected_NE = projected_NE.contiguous()
    is_full = projected_NE.dtype == torch.float32
    blocks = blocks or (FULL_PRECISION if is_full else HALF_PRECISION)
    channels, taps = mixer.conv_CW.shape
    heads, width = mixer.heads, mixer.inner // mixer.heads
    out_NI = torch.empty(len(layout), mixer.inner, dtype=projected_NE.dtype, device=projected_NE.device)
    # Neighbours along channels, so that loads are wide.
    taps_WC = torch.zeros(TAPS, channels, dtype=torch.float32, device=projected_NE.device)
    taps_WC[TAPS - taps :] = mixer.conv_CW.t()
    block_width = min(max(triton.next_power_of_2(width), 16), blocks.width)
    parts = triton.cdiv(width, block_width)
    states_SHNP = None
    for index, level in enumerate(layout.levels):
        is_last = index == len(layout.levels) - 1
        shape = (level.count, heads, mixer.states, width)
        after_SHNP = None if is_last else torch.empty(shape, dtype=torch.float32, device=projected_NE.device)
        _mix_kernel[(level.count * heads * parts,)](
            projected_NE,
            taps_WC,
            mixer.conv_bias_C,
            mixer.z_bias_I,
            mixer.D_H,
            out_NI,
            states_SHNP,
            after_SHNP,
            level.first_S,
            level.length_S,
            level.before_first_S,
            level.before_length_S,
            level.parent_S,
            ROW=projected_NE.stride(0),
            CHANNELS=channels,
            INNER=mixer.inner,
            HEADS=heads,
            GROUPS=mixer.groups,
            STATES=mixer.states,
            WIDTH=width,
            SILU=mixer.silu_after_conv,
            PARTS=parts,
            BLOCK_STATES=max(triton.next_power_of_2(mixer.states), 16),
            BLOCK_WIDTH=block_width,
            CHUNK=blocks.chunk,
            PRECISION="ieee" if is_full else "tf32",
            num_warps=blocks.warps,
            num_stages=blocks.stages,
            maxnreg=blocks.registers,
        )
        states_SHNP = after_SHNP
    return out_NI


@triton.jit
def _convolve(
    projected_ptr,
    taps_ptr,
    bias_ptr,
    row,
    row_before,
    left,
    there,
    channel,
    inside,
    ROW: tl.constexpr,
    CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
):
    """Causal convolution with four taps of a chunk, [tokens, channels].

    Four tokens in a row are made together: they share what they read.

    Args:
        projected_ptr: The rows.
        taps_ptr: [4, channels], float32.
        bias_ptr: [channels], or None.
        row: First row of each four.
        row_before: The row before it is the one before `row_before`, and so on.
        left: Tokens that are left of the sequence at each four's first.
        there: How many tokens there are before each four.
        channel: Which channels.
        inside: Which of them exist.
        ROW: Elements from one row to the next.
        CHANNELS: Of the convolution.
        SILU: Whether SiLU follows.
    """
    tap = taps_ptr + channel
    tap_0 = tl.load(tap, mask=inside, other=0.0)[None, :]
    tap_1 = tl.load(tap + CHANNELS, mask=inside, other=0.0)[None, :]
    tap_2 = tl.load(tap + 2 * CHANNELS, mask=inside, other=0.0)[None, :]
    tap_3 = tl.load(tap + 3 * CHANNELS, mask=inside, other=0.0)[None, :]
    bias = tl.zeros((channel.shape[0],), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    # The choice changes nothing. It keeps the compiler, which looks for products whose operands are functions of loads
    # alone, from turning the whole convolution over into the layout of each such product, through shared memory.
    bias = tl.where(inside, bias, 0.0)[None, :]
    own = projected_ptr + (row * ROW)[:, None] + channel[None, :]
    before = projected_ptr + (row_before * ROW)[:, None] + channel[None, :]
    left, there, exists = left[:, None], there[:, None], inside[None, :]
    begun = (left > 0) & exists
    x_a = tl.load(before - 3 * ROW, mask=begun & (there > 2), other=0.0).to(tl.float32)
    x_b = tl.load(before - 2 * ROW, mask=begun & (there > 1), other=0.0).to(tl.float32)
    x_c = tl.load(before - ROW, mask=begun & (there > 0), other=0.0).to(tl.float32)
    x_0 = tl.load(own, mask=begun, other=0.0)
    dtype = x_0.dtype
    x_0 = x_0.to(tl.float32)
    x_1 = tl.load(own + ROW, mask=(left > 1) & exists, other=0.0).to(tl.float32)
    x_2 = tl.load(own + 2 * ROW, mask=(left > 2) & exists, other=0.0).to(tl.float32)
    x_3 = tl.load(own + 3 * ROW, mask=(left > 3) & exists, other=0.0).to(tl.float32)
    y_0 = bias + x_a * tap_0 + x_b * tap_1 + x_c * tap_2 + x_0 * tap_3
    y_1 = bias + x_b * tap_0 + x_c * tap_1 + x_0 * tap_2 + x_1 * tap_3
    y_2 = bias + x_c * tap_0 + x_0 * tap_1 + x_1 * tap_2 + x_2 * tap_3
    y_3 = bias + x_0 * tap_0 + x_1 * tap_1 + x_2 * tap_2 + x_3 * tap_3
    if SILU:
        y_0, y_1, y_2, y_3 = _silu(y_0), _silu(y_1), _silu(y_2), _silu(y_3)
    y = tl.join(tl.join(y_0, y_1), tl.join(y_2, y_3))  # [fours, channels, odd, second half]
    return tl.reshape(tl.permute(y, (0, 3, 2, 1)), (4 * row.shape[0], channel.shape[0])).to(dtype)


@triton.jit
def _silu(x):
    """x / (1 + e^-x) of the two operations that a GPU has as one instruction each."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return x * root * root


@triton.jit
def _mix_kernel(
    projected_ptr,
    taps_ptr,
    conv_bias_ptr,
    z_bias_ptr,
    skip_ptr,
    out_ptr,
    before_states_ptr,
    after_states_ptr,
    first_ptr,
    length_ptr,
    before_first_ptr,
    before_length_ptr,
    parent_ptr,
    ROW: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_STATES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Heads of a sequence run side by side: they read neighbouring parts of the same rows.
    program = tl.program_id(0)
    sequence = program // (HEADS * PARTS)
    head = program % (HEADS * PARTS) // PARTS
    part = program % PARTS
    first = tl.load(first_ptr + sequence).to(tl.int64)
    length = tl.load(length_ptr + sequence)
    before_length = tl.load(before_length_ptr + sequence)
    before_end = tl.load(before_first_ptr + sequence).to(tl.int64) + before_length

    p = part * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    in_width = p < WIDTH
    channel = head * WIDTH + p
    n = tl.arange(0, BLOCK_STATES)
    in_states = n < STATES
    b_channel = INNER + head // (HEADS // GROUPS) * STATES + n
    c_channel = b_channel + GROUPS * STATES
    z_at = CHANNELS + channel
    a_at = CHANNELS + INNER + head
    skip = tl.load(skip_ptr + head).to(tl.float32)
    state_at = head * (STATES * WIDTH) + n[:, None] * WIDTH + p[None, :]
    in_state = in_states[:, None] & in_width[None, :]
    dtype = projected_ptr.dtype.element_ty

    state = tl.zeros((BLOCK_STATES, BLOCK_WIDTH), tl.float32)
    if before_states_ptr is not None:
        parent = tl.load(parent_ptr + sequence)
        at = tl.maximum(parent, 0).to(tl.int64) * (HEADS * STATES * WIDTH) + state_at
        state = tl.where(parent >= 0, tl.load(before_states_ptr + at, mask=in_state, other=0.0), 0.0)

    t = tl.arange(0, CHUNK)
    four = 4 * tl.arange(0, CHUNK // 4)
    past = t[:, None] >= t[None, :]
    now = t[:, None] == t[None, :]
    for start in tl.range(0, length, CHUNK, disable_licm=True):
        row = first + start + four
        row_before = tl.where(start + four > 0, row, before_end)
        there = tl.where(start + four > 0, 3, before_length)
        left = length - start - four
        token = first + start + t
        valid = start + t < length
        a = tl.load(projected_ptr + token * ROW + a_at, mask=valid, other=0.0).to(tl.float32)

        b = _convolve(
            projected_ptr, taps_ptr, conv_bias_ptr, row, row_before, left, there, b_channel, in_states,
            ROW, CHANNELS, SILU,
        )  # fmt: skip
        c = _convolve(
            projected_ptr, taps_ptr, conv_bias_ptr, row, row_before, left, there, c_channel, in_states,
            ROW, CHANNELS, SILU,
        )  # fmt: skip
        x = _convolve(
            projected_ptr, taps_ptr, conv_bias_ptr, row, row_before, left, there, channel, in_width,
            ROW, CHANNELS, SILU,
        )  # fmt: skip

        in_tile = valid[:, None] & in_width[None, :]
        z = tl.load(projected_ptr + (token * ROW)[:, None] + z_at[None, :], mask=in_tile, other=0.0)

        # softplus; the series, where 1 + small would lose what is small
        small = tl.exp(-tl.abs(a))
        g = -tl.maximum(a, 0.0) - tl.where(small < 1e-3, small * (1.0 - 0.5 * small), tl.log(1.0 + small))
        # Beyond e^-100 nothing of a float32 state is left; larger numbers would only blur the sums. NaN stays.
        g = tl.where(valid, tl.where(g < -100.0, -100.0, g) * 1.4426950408889634, 0.0)  # to the base 2
        total = tl.cumsum(g, axis=0)
        all_of_chunk = tl.sum(g, axis=0)
        # Padding does not feed the state, though a bias gives it inputs.
        to_end = tl.where(valid, tl.exp2(all_of_chunk - total), 0.0)
        b_to_end = (b.to(tl.float32) * to_end[:, None]).to(dtype)

        score = tl.dot(c, tl.trans(b), input_precision=PRECISION)
        score *= tl.exp2(tl.where(past, total[:, None] - total[None, :], float("-inf")))
        score = tl.where(now, score + skip, score).to(dtype)  # D x is a token's own input, too
        y = tl.dot(c, state.to(dtype), input_precision=PRECISION) * tl.exp2(total)[:, None]
        y = tl.dot(score, x, acc=y, input_precision=PRECISION)
        state = tl.dot(tl.trans(b_to_end), x, acc=state * tl.exp2(all_of_chunk), input_precision=PRECISION)

        gate = z.to(tl.float32)
        if z_bias_ptr is not None:
            gate += tl.load(z_bias_ptr + channel, mask=in_width, other=0.0).to(tl.float32)[None, :]
        y *= _silu(gate)
        tl.store(out_ptr + (token * INNER)[:, None] + channel[None, :], y.to(dtype), mask=in_tile)

    if after_states_ptr is not None:
        at = sequence.to(tl.int64) * (HEADS * STATES * WIDTH) + state_at
        tl.store(after_states_ptr + at, state, mask=in_state)
