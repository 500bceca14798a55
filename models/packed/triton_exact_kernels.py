"""What triton_exact.py launches: kernels that round where eager PyTorch rounds, sum by sum.

Compile them without `enable_fp_fusion`. Suffixes as there.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Triton's kernels are a language of their own, in which annotations mean something else.
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def silu(x):
    """As PyTorch has it in float32."""
    return tl.div_rn(x, 1.0 + libdevice.exp(-x))


@triton.jit
def convolve_kernel(
    projected_ptr,
    taps_ptr,
    bias_ptr,
    token_ptr,
    past_ptr,
    out_ptr,
    first_channel,
    columns,
    ROW: tl.constexpr,
    TAP_ROW: tl.constexpr,
    WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,
    TAPS: tl.constexpr,
    TURNED: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    # depthwise_conv: a product, plus the bias, and then fused multiply-adds, as PyTorch's addcmul.
    tiles = (LENGTH + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    chunk = tl.program_id(0) // tiles
    slot = tl.program_id(0) % tiles * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    token = tl.load(token_ptr + chunk * LENGTH + slot, mask=slot < LENGTH, other=-1)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = column < columns
    channel = first_channel + column
    y = tl.zeros((BLOCK_TOKENS, BLOCK_COLUMNS), tl.float32)
    for tap in tl.static_range(TAPS):
        at = token
        if tap < TAPS - 1:
            at = tl.load(past_ptr + token * (TAPS - 1) + (TAPS - 2 - tap), mask=token >= 0, other=-1)
        x_at = (at.to(tl.int64) * ROW)[:, None] + channel[None, :]
        x = tl.load(projected_ptr + x_at, mask=(at >= 0)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        weight = tl.load(taps_ptr + channel * TAP_ROW + tap, mask=inside, other=0.0).to(tl.float32)[None, :]
        if tap > 0:
            y = tl.fma(x, weight, y)
        else:
            y = x * weight
            if bias_ptr is not None:
                y += tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SILU:
        y = silu(y)
    y = tl.where((token >= 0)[:, None], y, 0.0)
    head_at = (chunk.to(tl.int64) * (columns // WIDTH) + column // WIDTH) * (LENGTH * WIDTH)
    if TURNED:
        at = (head_at + column % WIDTH * LENGTH)[None, :] + slot[:, None]
    else:
        at = (head_at + column % WIDTH)[None, :] + slot[:, None] * WIDTH
    tl.store(out_ptr + at, y, mask=(slot < LENGTH)[:, None] & inside[None, :])


@triton.jit
def weigh_kernel(
    score_ptr,
    total_ptr,
    out_ptr,
    REPEAT: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_LENGTH: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)  # of all chunks
    slot = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    source = tl.arange(0, BLOCK_LENGTH)
    total_slot = tl.load(total_ptr + head * LENGTH + slot, mask=slot < LENGTH, other=0.0)
    total_source = tl.load(total_ptr + head * LENGTH + source, mask=source < LENGTH, other=0.0)
    inside = (slot < LENGTH)[:, None] & (source < LENGTH)[None, :]
    past = slot[:, None] >= source[None, :]
    needed = inside & (source < (tl.program_id(1) + 1) * BLOCK_TOKENS)[None, :]  # beyond, nothing is past
    at = slot[:, None] * LENGTH + source[None, :]
    score = tl.load(score_ptr + head // REPEAT * (LENGTH * LENGTH) + at, mask=needed, other=0.0)
    decay = libdevice.exp(tl.where(past, total_slot[:, None] - total_source[None, :], float("-inf")))
    tl.store(out_ptr + head * (LENGTH * LENGTH) + at, tl.where(past, score * decay, 0.0), mask=inside)


@triton.jit
def decay_kernel(
    from_ptr,
    total_ptr,
    chunk_ptr,
    out_ptr,
    REPEAT: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDTH: tl.constexpr,
    TO_END: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    tiles = (LENGTH + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    place, head, heads = tl.program_id(0) // tiles, tl.program_id(1), tl.num_programs(1)
    slot = tl.program_id(0) % tiles * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    w = tl.arange(0, BLOCK_WIDTH)
    chunk = tl.load(chunk_ptr + place).to(tl.int64)
    total_at = total_ptr + (chunk * heads + head) * LENGTH
    decay = tl.load(total_at + slot, mask=slot < LENGTH, other=0.0)
    if TO_END:
        decay = tl.load(total_at + LENGTH - 1) - decay
    inside = (slot < LENGTH)[:, None] & (w < WIDTH)[None, :]
    tile = slot[:, None] * WIDTH + w[None, :]
    a = tl.load(
        from_ptr + (chunk * (heads // REPEAT) + head // REPEAT) * (LENGTH * WIDTH) + tile, mask=inside, other=0.0
    )
    there = (place.to(tl.int64) * heads + head) * (LENGTH * WIDTH)
    tl.store(out_ptr + there + tile, a * libdevice.exp(decay)[:, None], mask=inside)


@triton.jit
def enter_kernel(
    added_ptr,
    kept_ptr,
    added_place_ptr,
    entering_place_ptr,
    chain_ptr,
    entering_ptr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # The states that enter the chunks of a text. Those of its prefix are gone through anew: that is little.
    chain_ptr += tl.program_id(0) * 4
    head, heads = tl.program_id(1), tl.num_programs(1)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    before, skipped = tl.load(chain_ptr), tl.load(chain_ptr + 1)
    first, count = tl.load(chain_ptr + 2), tl.load(chain_ptr + 3)
    state = tl.zeros((BLOCK,), tl.float32)
    for chunk in range(before, before + skipped):
        state = after(state, added_ptr, kept_ptr, added_place_ptr, chunk, head, heads, at, inside, SIZE)
    for chunk in range(first, first + count):
        entering = tl.load(entering_place_ptr + chunk)
        if entering >= 0:
            tl.store(entering_ptr + (entering.to(tl.int64) * heads + head) * SIZE + at, state, mask=inside)
        state = after(state, added_ptr, kept_ptr, added_place_ptr, chunk, head, heads, at, inside, SIZE)


@triton.jit
def after(state, added_ptr, kept_ptr, added_place_ptr, chunk, head, heads, at, inside, SIZE: tl.constexpr):
    """The state after a chunk; what the last of a text adds is known to nobody, and needed by nobody."""
    added = tl.load(added_place_ptr + chunk)
    if added >= 0:
        more = tl.load(added_ptr + (added.to(tl.int64) * heads + head) * SIZE + at, mask=inside, other=0.0)
        state = state * tl.load(kept_ptr + chunk * heads + head) + more
    return state


@triton.jit
def finish_kernel(
    x_ptr,
    y_ptr,
    later_ptr,
    projected_ptr,
    z_bias_ptr,
    skip_ptr,
    token_ptr,
    own_from_ptr,
    entering_place_ptr,
    out_ptr,
    z_at,
    out_at,
    ROW: tl.constexpr,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    tiles = (LENGTH + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    chunk, head = tl.program_id(0) // tiles, tl.program_id(1)
    slot = tl.program_id(0) % tiles * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    p = tl.arange(0, BLOCK_WIDTH)
    token = tl.load(token_ptr + chunk * LENGTH + slot, mask=slot < LENGTH, other=-1)
    is_own = (token >= 0) & (slot >= tl.load(own_from_ptr + chunk))
    token = token.to(tl.int64)
    mask = is_own[:, None] & (p < WIDTH)[None, :]
    tile = slot[:, None] * WIDTH + p[None, :]
    here = (chunk.to(tl.int64) * tl.num_programs(1) + head) * (LENGTH * WIDTH)
    y = tl.load(y_ptr + here + tile, mask=mask, other=0.0)
    if later_ptr is not None:
        entering = tl.load(entering_place_ptr + chunk)
        if entering >= 0:
            there = (entering.to(tl.int64) * tl.num_programs(1) + head) * (LENGTH * WIDTH)
            y += tl.load(later_ptr + there + tile, mask=mask, other=0.0)
    x = tl.load(x_ptr + here + tile, mask=mask, other=0.0)
    y += x * tl.load(skip_ptr + head).to(tl.float32)
    gate = tl.load(projected_ptr + (token * ROW + z_at + head * WIDTH)[:, None] + p[None, :], mask=mask, other=0.0)
    dtype = gate.dtype
    gate = gate.to(tl.float32)
    if z_bias_ptr is not None:
        gate += tl.load(z_bias_ptr + out_at + head * WIDTH + p, mask=p < WIDTH, other=0.0).to(tl.float32)[None, :]
    y = (y * silu(gate)).to(dtype)
    tl.store(out_ptr + (token * INNER + out_at + head * WIDTH)[:, None] + p[None, :], y, mask=mask)
