"""The plain twin of every fast kernel: PyTorch alone, on any device and in any dtype.

Sequences are padded to the longest of their level, run, and packed again. It is also what a CPU runs, so it makes no
copies that it can do without.

Suffixes: N packed tokens, S sequences, L tokens of the longest, O tokens of the longest prefix; others as in
kernels.py.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from models.mixer import depthwise_conv
from models.packed.kernels import AttentionShape, MixerWeights, Operand, Quantised
from models.packed.layout import Layout, Level
from models.scan import chunked_scan

CHUNK = 64
"""Tokens of a chunk of the scan."""
FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0


class PlainKernels:
    """See `models.packed.kernels.Kernels`."""

    name = "plain PyTorch"

    def __init__(self) -> None:
        self._paddings: WeakKeyDictionary[Layout, list[_Padding]] = WeakKeyDictionary()

    def rms_norm(
        self, h_ND: Tensor, weight_D: Tensor, eps: float, *, quantise: bool = False, llama: bool = False
    ) -> Operand:
        """Float32, then rounded, then weighed; summed in an order of its own."""
        wide_ND = h_ND.float()
        # Less to write than F.rms_norm, which on a CPU squares into memory.
        mean_N1 = torch.linalg.vector_norm(wide_ND, dim=-1, keepdim=True).square_().div_(h_ND.shape[-1])
        normed_ND = (wide_ND * mean_N1.add_(eps).rsqrt_()).to(h_ND.dtype).mul_(weight_D)
        return self.quantise(normed_ND) if quantise else normed_ND

    def add_rms_norm(
        self,
        h_ND: Tensor,
        delta_ND: Tensor,
        weight_D: Tensor,
        eps: float,
        *,
        quantise: bool = False,
        llama: bool = False,
    ) -> tuple[Tensor, Operand]:
        """The sum lies where `delta_ND` did."""
        sum_ND = delta_ND.add_(h_ND)
        return sum_ND, self.rms_norm(sum_ND, weight_D, eps, quantise=quantise)

    def mix(self, projected_NE: Tensor, mixer: MixerWeights, layout: Layout, *, coarse: bool = False) -> Tensor:
        """As `LlambaMixer` does it, level by level."""
        widths = [mixer.conv_CW.shape[0], mixer.inner, mixer.heads]
        xbc_NC, z_NI, a_NH = projected_NE.split(widths, dim=-1)
        g_NH = -F.softplus(a_NH.float())
        y_NI = torch.empty(len(layout), mixer.inner, dtype=torch.float32, device=projected_NE.device)
        states_SHNP = None
        for padding in self._padding(layout):
            before = None if states_SHNP is None else padding.states(states_SHNP)
            y_SLI, states_SHNP = _scan(padding, xbc_NC, g_NH, mixer, before)
            padding.pack(y_SLI, y_NI)
        gate_NI = z_NI.float() if mixer.z_bias_I is None else z_NI + mixer.z_bias_I.float()
        gate_NI = F.silu(gate_NI, inplace=gate_NI is not z_NI)
        return y_NI.mul_(gate_NI).to(projected_NE.dtype)

    def attend(
        self,
        qkv_NE: Tensor,
        shape: AttentionShape,
        cos_TP: Tensor,
        sin_TP: Tensor,
        layout: Layout,
        *,
        coarse: bool = False,
    ) -> Tensor:
        """Through scaled_dot_product_attention, level by level."""
        heads, keys, width = shape.query_heads, shape.key_heads, shape.width
        all_NHP = qkv_NE.unflatten(-1, (-1, width))
        turned_NHP = _rotate(all_NHP[:, : heads + keys], cos_TP[layout.position_N], sin_TP[layout.position_N])
        q_NHP, kv_NHP = turned_NHP[:, :heads], torch.cat([turned_NHP[:, heads:], all_NHP[:, heads + keys :]], 1)
        out_NE = qkv_NE.new_empty(len(layout), heads * width)
        for padding in self._padding(layout):
            q_SHLP = padding.unpack(q_NHP).transpose(1, 2)
            kv_SLHP, mask = padding.with_before(kv_NHP)
            k_SHLP, v_SHLP = kv_SLHP.transpose(1, 2).split(keys, 1)
            out_SHLP = F.scaled_dot_product_attention(
                q_SHLP, k_SHLP, v_SHLP, mask, is_causal=mask is None, enable_gqa=heads != keys
            )
            padding.pack(out_SHLP.transpose(1, 2).flatten(2), out_NE)
        return out_NE

    def swiglu(self, gate_up_NF: Tensor, *, quantise: bool = False) -> Operand:
        """In the dtype of its input, as transformers does it."""
        gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
        out_NF = F.silu(gate_NF).mul_(up_NF)
        return self.quantise(out_NF) if quantise else out_NF

    def quantise(self, x_NK: Tensor) -> Quantised:
        """Divides in float32."""
        x_NK = x_NK.float()
        scale_N1 = x_NK.abs().amax(-1, keepdim=True) / FP8_LARGEST
        scale_N1 = torch.where(scale_N1 > 0, scale_N1, 1.0)
        return Quantised((x_NK / scale_N1).clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8), scale_N1)

    def _padding(self, layout: Layout) -> list[_Padding]:
        known = self._paddings.get(layout)
        if known is None:
            known = self._paddings[layout] = [_Padding(level) for level in layout.levels]
        return known


def _scan(
    padding: _Padding, xbc_NC: Tensor, g_NH: Tensor, mixer: MixerWeights, before_SHNP: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Convolution, scan and skip of one level: float32 [S, L, I] and the states after each sequence."""
    xbc_SLC = depthwise_conv(
        padding.unpack(xbc_NC, history=mixer.conv_CW.shape[1] - 1), mixer.conv_CW, mixer.conv_bias_C
    )
    if mixer.silu_after_conv:
        xbc_SLC = F.silu(xbc_SLC, inplace=True)
    x_SLI, b, c = xbc_SLC.split([mixer.inner] + 2 * [mixer.groups * mixer.states], dim=-1)
    x_SLHP = x_SLI.unflatten(-1, (mixer.heads, -1))
    b_SLQN, c_SLQN = (part.unflatten(-1, (mixer.groups, mixer.states)) for part in (b, c))
    if padding.is_padded_SL is not None:  # the convolution's bias must not enter the state; g is 0 there already
        b_SLQN = b_SLQN.masked_fill(padding.is_padded_SL[..., None, None], 0)
    y_SLHP, states_SHNP = chunked_scan(
        x_SLHP, padding.unpack(g_NH), b_SLQN, c_SLQN, chunk_size=CHUNK, initial_state_BHNP=before_SHNP
    )
    return y_SLHP.addcmul_(x_SLHP, mixer.D_H.float().unsqueeze(-1)).flatten(2), states_SHNP


def _rotate(x_NHP: Tensor, cos_NP: Tensor, sin_NP: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., arXiv:2104.09864) as transformers lays it out."""
    first, second = x_NHP.chunk(2, dim=-1)
    turned_NHP = torch.cat((-second, first), dim=-1)
    return (x_NHP * cos_NP.unsqueeze(1)).add_(turned_NHP.mul_(sin_NP.unsqueeze(1)))


class _Padding:
    """How the sequences of one level lie in a padded [S, L]; they lie one behind the other in the pack."""

    def __init__(self, level: Level) -> None:
        first_S, length_S = level.first_S.long(), level.length_S.long()
        self._count, self._longest = level.count, level.longest
        self._begin, self._tokens = int(first_S[0]), int(length_S.sum())
        self._is_even = self._tokens == self._count * self._longest
        device = first_S.device
        at_L = torch.arange(self._longest, device=device)
        is_token_SL = at_L < length_S.unsqueeze(1)
        self._place_N = None if self._is_even else is_token_SL.flatten().nonzero().squeeze(1)
        self.is_padded_SL = None if self._is_even else ~is_token_SL
        self._parent_S = level.parent_S.long()
        self._before_first_S, self._before_length_S = level.before_first_S.long(), level.before_length_S.long()
        self._longest_before = level.longest_before
        if level.longest_before:
            self._before_SO = torch.arange(level.longest_before, device=device).expand(self._count, -1)
            is_before_SO = self._before_SO < self._before_length_S.unsqueeze(1)
            self._before_SO = torch.where(is_before_SO, self._before_SO + self._before_first_S.unsqueeze(1), 0)
            self._is_before_SO = is_before_SO

    def unpack(self, x_N: Tensor, history: int = 0) -> Tensor:
        """[N, ...] to [S, history + L, ...]: zeros behind each sequence, its prefix's last tokens before it."""
        own_N = x_N[self._begin : self._begin + self._tokens]
        if self._is_even and not history:
            return own_N.unflatten(0, (self._count, self._longest))
        out_SL = x_N.new_zeros(self._count, history + self._longest, *x_N.shape[1:])
        if self._is_even:
            out_SL[:, history:] = own_N.unflatten(0, (self._count, self._longest))
        else:
            place_N = self._place_N
            assert place_N is not None
            if history:
                place_N = place_N + history * (place_N // self._longest + 1)
            out_SL.flatten(0, 1).index_copy_(0, place_N, own_N)
        if history and self._longest_before:
            back_SW = torch.arange(-history, 0, device=x_N.device) + self._before_length_S.unsqueeze(1)
            at_SW = (back_SW + self._before_first_S.unsqueeze(1)).clamp(min=0)
            there_SW = (back_SW >= 0).view(*back_SW.shape, *[1] * (x_N.dim() - 1))
            out_SL[:, :history] = torch.where(there_SW, x_N[at_SW], 0)
        return out_SL

    def pack(self, x_SL: Tensor, out_N: Tensor) -> None:
        """[S, L, ...] to where the sequences lie in `out_N`."""
        own_N = out_N[self._begin : self._begin + self._tokens]
        if self._place_N is None:
            own_N.copy_(x_SL.flatten(0, 1))
        else:
            torch.index_select(x_SL.flatten(0, 1), 0, self._place_N, out=own_N)

    def with_before(self, x_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """[S, O + L, ...], the prefix's tokens before each sequence's own, and which [L, O + L] see which.

        No mask where there is no prefix: what stands behind a token cannot change it.
        """
        own_SL = self.unpack(x_N)
        if not self._longest_before:
            return own_SL, None
        # Made each time: paddings live as long as their layouts, and this is the one large part.
        at_L = torch.arange(self._longest, device=x_N.device)
        shape = (self._count, self._longest, -1)
        seen = (self._is_before_SO.unsqueeze(1).expand(shape), (at_L.unsqueeze(1) >= at_L).expand(shape))
        return torch.cat([x_N[self._before_SO], own_SL], 1), torch.cat(seen, -1).unsqueeze(1)

    def states(self, states_S: Tensor) -> Tensor:
        """Of each sequence's prefix, zeros where there is none."""
        there = (self._parent_S >= 0).view(-1, *[1] * (states_S.dim() - 1))
        return torch.where(there, states_S[self._parent_S.clamp(min=0)], 0)
