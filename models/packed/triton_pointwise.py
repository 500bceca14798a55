"""Kernels that touch every element once or twice: norms, SwiGLU, rotation, 8 bits. All are bound by memory.

They round where eager PyTorch rounds, after every operation: products and sums are not fused, not even in bfloat16,
where a compiler may well do it. A program has a row (or a part of one), so a token's result depends on that token
alone. Suffixes as in kernels.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from models.packed.kernels import AttentionShape, Operand, Quantised

SWIGLU_BLOCK = 2048
"""Elements of a program where rows can be split."""
ROTATED_HEADS = 8
"""Heads of a program of the rotation."""


def rms_norm(h_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float) -> Quantised:
    """RMSNorm of h, or of h + delta, which then lies where delta did; in 8 bits."""
    h_ND = h_ND.contiguous()
    rows, width = h_ND.shape
    block = _block(width)
    out, scale = _outputs(h_ND, width, True)
    if rows:
        _rms_norm_kernel[(rows,)](
            h_ND,
            h_ND if delta_ND is None else delta_ND,
            weight_D,
            out,
            scale,
            eps,
            WIDTH=width,
            ADDS=delta_ND is not None,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return Quantised(out, scale)


def swiglu(gate_up_NF: Tensor, quantise: bool) -> Operand:
    """silu(gate) * up of [gate | up]."""
    gate_up_NF = gate_up_NF.contiguous()
    rows, width = len(gate_up_NF), gate_up_NF.shape[1] // 2
    block = _block(width) if quantise else min(_block(width), SWIGLU_BLOCK)  # a scale needs the whole row at once
    out, scale = _outputs(gate_up_NF, width, quantise)
    if rows:
        _swiglu_kernel[(rows, triton.cdiv(width, block))](
            gate_up_NF,
            out,
            scale,
            WIDTH=width,
            QUANTISES=quantise,
            BLOCK=block,
            num_warps=_warps(block),
            enable_fp_fusion=False,
        )
    return Quantised(out, scale) if quantise else out


def quantise(x_NK: Tensor) -> Quantised:
    """Values in 8 bits and a scale for each row."""
    x_NK = x_NK.contiguous()
    rows, width = x_NK.shape
    block = _block(width)
    out, scale = _outputs(x_NK, width, True)
    if rows:
        _quantise_kernel[(rows,)](x_NK, out, scale, WIDTH=width, BLOCK=block, num_warps=_warps(block))
    return Quantised(out, scale)


def rotate(qkv_NE: Tensor, shape: AttentionShape, cos_TP: Tensor, sin_TP: Tensor, position_N: Tensor) -> None:
    """Rotate queries and keys in place (Su et al., arXiv:2104.09864), halves paired as transformers pairs them.

    Args:
        qkv_NE: [q | k | v], contiguous.
        shape: Its heads.
        cos_TP: Contiguous, both halves of P alike.
        sin_TP: Likewise.
        position_N: int64.
    """
    heads = shape.query_heads + shape.key_heads
    half = shape.width // 2
    _rotate_kernel[(len(qkv_NE), triton.cdiv(heads, ROTATED_HEADS))](
        qkv_NE,
        cos_TP,
        sin_TP,
        position_N,
        qkv_NE.stride(0),
        HEADS=heads,
        HALF=half,
        BLOCK_HEADS=ROTATED_HEADS,
        BLOCK_HALF=triton.next_power_of_2(half),
        num_warps=2,
        enable_fp_fusion=False,
    )


def _outputs(like: Tensor, width: int, quantise: bool) -> tuple[Tensor, Tensor]:
    """Values and scales; the scales are a stand-in that nothing writes where the values are not in 8 bits."""
    rows = len(like)
    if not quantise:
        values = torch.empty(rows, width, dtype=like.dtype, device=like.device)
        return values, values
    values = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=like.device)
    return values, torch.empty(rows, 1, dtype=torch.float32, device=like.device)


def _block(width: int) -> int:
    return max(triton.next_power_of_2(width), 16)


def _warps(block: int) -> int:
    """So many that a thread has 16 elements: two loads of 16 bytes in bf16."""
    return min(max(block // 512, 1), 32)


def scaled(x_ND: Tensor, factor_N1: Tensor | None, weight_D: Tensor) -> Tensor:
    """As `models.packed.exact.scaled`, in one pass."""
    x_ND = x_ND.contiguous()
    rows, width = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    if rows:
        _scaled_kernel[(rows,)](
            x_ND,
            x_ND if factor_N1 is None else factor_N1,
            weight_D,
            out_ND,
            WIDTH=width,
            HAS_FACTOR=factor_N1 is not None,
            BLOCK=_block(width),
            num_warps=_warps(_block(width)),
        )
    return out_ND


@triton.jit
def _to_8_bits(values, scale_ptr, row):
    """Values of a whole row, rounded already to the dtype that they would otherwise have."""
    largest = tl.max(tl.abs(values), axis=0)
    scale = tl.where(largest > 0, largest / 448.0, 1.0)
    tl.store(scale_ptr + row, scale)
    return (values * (1.0 / scale)).to(tl.float8e4nv)


@triton.jit
def _rms_norm_kernel(
    h_ptr,
    delta_ptr,
    weight_ptr,
    out_ptr,
    scale_ptr,
    eps,
    WIDTH: tl.constexpr,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    stored = tl.load(h_ptr + row * WIDTH + at, mask=inside, other=0.0)
    dtype = stored.dtype
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    h = stored.to(tl.float32)
    if ADDS:
        delta = tl.load(delta_ptr + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
        total = (h + delta).to(dtype)
        tl.store(delta_ptr + row * WIDTH + at, total, mask=inside)
        h = total.to(tl.float32)
    mean_square = tl.sum(h * h, axis=0) / WIDTH
    normed = (h * tl.rsqrt(mean_square + eps)).to(dtype).to(tl.float32)
    out = (normed * weight).to(dtype)
    tl.store(out_ptr + row * WIDTH + at, _to_8_bits(out.to(tl.float32), scale_ptr, row), mask=inside)


@triton.jit
def _swiglu_kernel(gate_up_ptr, out_ptr, scale_ptr, WIDTH: tl.constexpr, QUANTISES: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    gate_ptr = gate_up_ptr + row * (2 * WIDTH) + at
    stored = tl.load(gate_ptr, mask=inside, other=0.0)
    dtype = stored.dtype
    up = tl.load(gate_ptr + WIDTH, mask=inside, other=0.0).to(tl.float32)
    gate = stored.to(tl.float32)
    gate = tl.div_rn(gate, 1.0 + libdevice.exp(-gate)).to(dtype).to(tl.float32)  # PyTorch's own exponential
    out = (gate * up).to(dtype)
    if QUANTISES:
        out = _to_8_bits(out.to(tl.float32), scale_ptr, row)
    tl.store(out_ptr + row * WIDTH + at, out, mask=inside)


@triton.jit
def _quantise_kernel(x_ptr, out_ptr, scale_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    x = tl.load(x_ptr + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + at, _to_8_bits(x, scale_ptr, row), mask=inside)


@triton.jit
def _rotate_kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    position_ptr,
    row_stride,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    at = tl.arange(0, BLOCK_HALF)
    in_half = at < HALF
    inside = (head < HEADS)[:, None] & in_half[None, :]
    angle_at = tl.load(position_ptr + row) * (2 * HALF) + at
    cos = tl.load(cos_ptr + angle_at, mask=in_half, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + angle_at, mask=in_half, other=0.0).to(tl.float32)[None, :]
    low_ptr = x_ptr + row * row_stride + head[:, None] * (2 * HALF) + at[None, :]
    low = tl.load(low_ptr, mask=inside, other=0.0)
    dtype = low.dtype
    high = tl.load(low_ptr + HALF, mask=inside, other=0.0).to(tl.float32)
    low = low.to(tl.float32)
    turned_low = (low * cos).to(dtype).to(tl.float32) - (high * sin).to(dtype).to(tl.float32)
    turned_high = (high * cos).to(dtype).to(tl.float32) + (low * sin).to(dtype).to(tl.float32)
    tl.store(low_ptr, turned_low.to(dtype), mask=inside)
    tl.store(low_ptr + HALF, turned_high.to(dtype), mask=inside)


@triton.jit
def _scaled_kernel(
    x_ptr, factor_ptr, weight_ptr, out_ptr, WIDTH: tl.constexpr, HAS_FACTOR: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    x = tl.load(x_ptr + row * WIDTH + at, mask=inside, other=0.0)
    dtype = x.dtype
    x = x.to(tl.float32)
    if HAS_FACTOR:
        x = (x * tl.load(factor_ptr + row)).to(dtype).to(tl.float32)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + at, (x * weight).to(dtype), mask=inside)
