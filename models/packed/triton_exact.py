"""A Llamba mixer between its projections with the very sums of the model's own code, `models/mixer.py` run eagerly.

Neighbouring roundings of 16 bits decide ties between choices, and they amplify: one element that is off by one step in
the first layer changes most of the numbers of the last. So being accurate is not enough, and this takes the model's
operations one by one: the same chunks, the same float32 products by the same library in the same layout, and between
them kernels that round where eager PyTorch rounds. So the compiler may not fuse products and sums (`enable_fp_fusion`);
where PyTorch's own kernels are fused, it is written down.

Suffixes: K chunks, L tokens of a chunk, G groups of heads taken at once, R heads of a group, N states, P head width, J
chunks that add to a state, I chunks that a state enters; others as in kernels.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from models.packed.kernels import MixerWeights
from models.packed.triton_exact_kernels import (
    convolve_kernel,
    decay_kernel,
    enter_kernel,
    finish_kernel,
    weigh_kernel,
)
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
        convolve_kernel[grid](
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
        weigh_kernel[(self._count * self._heads, triton.cdiv(length, TOKENS))](
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
        enter_kernel[(len(chunks.chain_S4), self._heads, triton.cdiv(size, STATE_BLOCK))](
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
        decay_kernel[(len(chunk_I) * triton.cdiv(length, TOKENS), self._heads)](
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
        finish_kernel[(self._count * triton.cdiv(self._length, TOKENS), self._heads)](
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
