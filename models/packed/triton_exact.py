"""A Llamba mixer between its projections with the very sums of the model's own code, `models/mixer.py` run eagerly.

Neighbouring roundings of 16 bits decide ties between choices, and they amplify: one element that is off by one step in
the first layer changes most of the numbers of the last. So being accurate is not enough, and this takes the model's
operations one by one: the same chunks, the same float32 products by the same library in the same layout, and between
them kernels that round where eager PyTorch rounds. So the compiler may not fuse products and sums (`enable_fp_fusion`);
where PyTorch's own kernels are fused, it is written down.

Suffixes: K chunks, L tokens of a chunk, G groups of heads taken at once, R heads of a group, N states, P head width, J
chunks that add to a state, I chunks that a state enters; others as in kernels.py.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Triton's kernels are a language of their own, in which annotations mean something else.
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from models.packed.kernels import MixerWeights
from models.packed.whole import TOKEN_BYTES, Chunks

TOKENS, COLUMNS = 16, 128
"""Of a program's tile."""
WARPS = 4
"""Of a program."""
STATE_BLOCK = 1024
"""Elements of a state that a program carries."""


def mix(projected_NE: Tensor, mixer: MixerWeights, chunks: Chunks, token_bytes: int = TOKEN_BYTES) -> Tensor:
    """See `Kernels.mix`.

    Args:
        projected_NE: [x | B | C | z | a].
        mixer: The rest of the weights.
        chunks: Of `mixer.chunk` tokens, for a convolution as wide as the mixer's.
        token_bytes: In the place of `TOKEN_BYTES`.
    """
    if projected_NE.stride(1) != 1:
        projected_NE = projected_NE.contiguous()
    out_NI = projected_NE.new_empty(len(projected_NE), mixer.inner)
    total_KHL = _decays(projected_NE[:, -mixer.heads :], chunks.token_KL)
    step = _groups_at_once(mixer, chunks, token_bytes * len(projected_NE))
    for group in range(0, mixer.groups, step):
        _Slice(projected_NE, mixer, chunks, total_KHL, group, min(step, mixer.groups - group)).mix(out_NI)
    return out_NI


def _groups_at_once(mixer: MixerWeights, chunks: Chunks, most_bytes: int) -> int:
    """In slices of about the same size."""
    repeat, width, states = mixer.heads // mixer.groups, mixer.inner // mixer.heads, mixer.states
    count, length = chunks.token_KL.shape
    inputs = repeat * width + 2 * states
    each = 4 * count * length * (inputs + repeat * (length + width))
    each += 4 * len(chunks.entered_I) * (length * (inputs + repeat * (width + states)) + 2 * repeat * states * width)
    slices = -(-mixer.groups // max(most_bytes // each, 1))
    return -(-mixer.groups // slices)


def _decays(a_NH: Tensor, token_KL: Tensor) -> Tensor:
    """Log-decays from the start of each chunk on, float32 [K, H, L]; by PyTorch, as its sum in a row is its own."""
    g_NH = -F.softplus(a_NH.float())
    g_KLH = torch.where((token_KL >= 0).unsqueeze(-1), g_NH[token_KL.clamp(min=0)], 0.0)
    return g_KLH.clamp_(min=-100).transpose(1, 2).cumsum(-1)


class _Slice:
    """Some groups of heads, in all chunks."""

    def __init__(
        self, projected_NE: Tensor, mixer: MixerWeights, chunks: Chunks, total_KHL: Tensor, group: int, groups: int
    ) -> None:
        self._projected_NE, self._mixer, self._chunks = projected_NE, mixer, chunks
        self._group, self._groups, self._repeat = group, groups, mixer.heads // mixer.groups
        self._head, self._heads = group * self._repeat, groups * self._repeat
        self._count, self._length = chunks.token_KL.shape
        self._width = mixer.inner // mixer.heads
        self._total_KHL = total_KHL[:, self._head : self._head + self._heads].contiguous()

    def mix(self, out_NI: Tensor) -> None:
        """The columns of these heads."""
        mixer = self._mixer
        b_at = mixer.inner + self._group * mixer.states
        x_KHLP = self._convolved(self._head * self._width, self._heads, self._width)
        b_KGNL = self._convolved(b_at, self._groups, mixer.states, turned=True)
        c_KGLN = self._convolved(b_at + mixer.groups * mixer.states, self._groups, mixer.states)
        score_KGLL = _product(c_KGLN, b_KGNL)
        y_KHLP = _product(self._weighed(score_KGLL), x_KHLP)
        del score_KGLL
        later_IHLP = self._from_before(x_KHLP, b_KGNL, c_KGLN) if len(self._chunks.entered_I) else None
        self._finish(x_KHLP, y_KHLP, later_IHLP, out_NI)

    def _convolved(self, channel: int, heads: int, width: int, turned: bool = False) -> Tensor:
        """Channels from `channel` on as [K, heads, L, width] (turned: [K, heads, width, L]); 0 behind a text."""
        mixer, length = self._mixer, self._length
        taps = mixer.conv_CW.shape[1]
        made = self._empty(heads, *((width, length) if turned else (length, width)))
        grid = (self._count * triton.cdiv(length, TOKENS), triton.cdiv(heads * width, COLUMNS))
        _convolve_kernel[grid](
            self._projected_NE,
            mixer.conv_CW,
            mixer.conv_bias_C,
            self._chunks.token_KL,
            self._chunks.past_NW,
            made,
            channel,
            heads * width,
            ROW=self._projected_NE.stride(0),
            TAP_ROW=mixer.conv_CW.stride(0),
            WIDTH=width,
            LENGTH=length,
            TAPS=taps,
            TURNED=turned,
            SILU=mixer.silu_after_conv,
            BLOCK_TOKENS=TOKENS,
            BLOCK_COLUMNS=COLUMNS,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        return made

    def _weighed(self, score_KGLL: Tensor) -> Tensor:
        """Scores times decays, 0 for later tokens, [K, H, L, L]; where heads have groups of their own, in place."""
        length = self._length
        weighed_KHLL = score_KGLL if self._repeat == 1 else self._empty(self._heads, length, length)
        _weigh_kernel[(self._count * self._heads, triton.cdiv(length, TOKENS))](
            score_KGLL,
            self._total_KHL,
            weighed_KHLL,
            REPEAT=self._repeat,
            LENGTH=length,
            BLOCK_TOKENS=TOKENS,
            BLOCK_LENGTH=triton.next_power_of_2(length),
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        return weighed_KHLL

    def _from_before(self, x_KHLP: Tensor, b_KGNL: Tensor, c_KGLN: Tensor) -> Tensor:
        """What comes from earlier chunks, [I, H, L, P]."""
        chunks, states, width = self._chunks, self._mixer.states, self._width
        adding_J, entered_I = chunks.adding_J, chunks.entered_I
        x_JHLP = self._decayed(x_KHLP, adding_J, to_end=True)
        added_JHNP = _product(self._for_heads(b_KGNL[adding_J]), x_JHLP)
        kept_KH = self._total_KHL[..., -1].exp()
        entering_IHNP = x_KHLP.new_empty(len(entered_I), self._heads, states, width)
        size = states * width
        _enter_kernel[(len(chunks.chain_S4), self._heads, triton.cdiv(size, STATE_BLOCK))](
            added_JHNP,
            kept_KH,
            chunks.added_K,
            chunks.entering_K,
            chunks.chain_S4,
            entering_IHNP,
            SIZE=size,
            BLOCK=STATE_BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        return _product(self._decayed(c_KGLN, entered_I, to_end=False), entering_IHNP)

    def _decayed(self, a_KGLW: Tensor, chunk_I: Tensor, *, to_end: bool) -> Tensor:
        """Of these chunks, for each head, times the decay from the chunk's start, or to its end; [I, H, L, W]."""
        length, width = a_KGLW.shape[2:]
        made = a_KGLW.new_empty(len(chunk_I), self._heads, length, width)
        _decay_kernel[(len(chunk_I) * triton.cdiv(length, TOKENS), self._heads)](
            a_KGLW,
            self._total_KHL,
            chunk_I,
            made,
            REPEAT=self._heads // a_KGLW.shape[1],
            LENGTH=length,
            WIDTH=width,
            TO_END=to_end,
            BLOCK_TOKENS=TOKENS,
            BLOCK_WIDTH=triton.next_power_of_2(width),
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        return made

    def _finish(self, x_KHLP: Tensor, y_KHLP: Tensor, later_IHLP: Tensor | None, out_NI: Tensor) -> None:
        """What comes from before, skip and gate; to where the tokens lie."""
        mixer = self._mixer
        z_at = mixer.conv_CW.shape[0] + self._head * self._width
        _finish_kernel[(self._count * triton.cdiv(self._length, TOKENS), self._heads)](
            x_KHLP,
            y_KHLP,
            later_IHLP,
            self._projected_NE,
            mixer.z_bias_I,
            mixer.D_H[self._head : self._head + self._heads].clone(),  # a kernel is compiled anew for odd addresses
            self._chunks.token_KL,
            self._chunks.own_from_K,
            self._chunks.entering_K,
            out_NI,
            z_at,
            self._head * self._width,
            ROW=self._projected_NE.stride(0),
            INNER=mixer.inner,
            WIDTH=self._width,
            LENGTH=self._length,
            BLOCK_TOKENS=TOKENS,
            BLOCK_WIDTH=triton.next_power_of_2(self._width),
            num_warps=WARPS,
            enable_fp_fusion=False,
        )

    def _for_heads(self, a_KG: Tensor) -> Tensor:
        return a_KG if self._repeat == 1 else a_KG.repeat_interleave(self._repeat, dim=1)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(self._count, *shape, dtype=torch.float32, device=self._projected_NE.device)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Of matrices that lie row by row, as torch.matmul makes them in the model's code: other layouts, other kernels."""
    return torch.bmm(first.flatten(0, 1), second.flatten(0, 1)).unflatten(0, first.shape[:2])


@triton.jit
def _silu(x):
    """As PyTorch has it in float32."""
    return tl.div_rn(x, 1.0 + libdevice.exp(-x))


@triton.jit
def _convolve_kernel(
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
        y = _silu(y)
    y = tl.where((token >= 0)[:, None], y, 0.0)
    head_at = (chunk.to(tl.int64) * (columns // WIDTH) + column // WIDTH) * (LENGTH * WIDTH)
    if TURNED:
        at = (head_at + column % WIDTH * LENGTH)[None, :] + slot[:, None]
    else:
        at = (head_at + column % WIDTH)[None, :] + slot[:, None] * WIDTH
    tl.store(out_ptr + at, y, mask=(slot < LENGTH)[:, None] & inside[None, :])


@triton.jit
def _weigh_kernel(
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
def _decay_kernel(
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
def _enter_kernel(
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
        state = _after(state, added_ptr, kept_ptr, added_place_ptr, chunk, head, heads, at, inside, SIZE)
    for chunk in range(first, first + count):
        entering = tl.load(entering_place_ptr + chunk)
        if entering >= 0:
            tl.store(entering_ptr + (entering.to(tl.int64) * heads + head) * SIZE + at, state, mask=inside)
        state = _after(state, added_ptr, kept_ptr, added_place_ptr, chunk, head, heads, at, inside, SIZE)


@triton.jit
def _after(state, added_ptr, kept_ptr, added_place_ptr, chunk, head, heads, at, inside, SIZE: tl.constexpr):
    """The state after a chunk; what the last of a text adds is known to nobody, and needed by nobody."""
    added = tl.load(added_place_ptr + chunk)
    if added >= 0:
        more = tl.load(added_ptr + (added.to(tl.int64) * heads + head) * SIZE + at, mask=inside, other=0.0)
        state = state * tl.load(kept_ptr + chunk * heads + head) + more
    return state


@triton.jit
def _finish_kernel(
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
    y = (y * _silu(gate)).to(dtype)
    tl.store(out_ptr + (token * INNER + out_at + head * WIDTH)[:, None] + p[None, :], y, mask=mask)
