"""What happens between the matrix products of a layer, behind one interface; `plain.py` is its PyTorch twin.

Suffixes: N packed tokens, D model width, E width of a projection, I inner width, F MLP width, C channels of the
convolution, W width of its kernel, H value heads, T positions, P attention head width, K inner width of a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from models.packed.layout import Layout


class Quantised(NamedTuple):
    """A matrix in 8 bits, a scale for each row: values * scale is about what it was."""

    values_NK: Tensor
    """float8_e4m3fn, row-major."""
    scale_N1: Tensor
    """float32 [N, 1]: the row's largest magnitude over 448, that of the format; 1 where the row is all zero."""


Operand = Tensor | Quantised


@dataclass(frozen=True, slots=True)
class MixerWeights:
    """What a Llamba mixer has besides its two projections, whose input projection gives [x | B | C | z | a]."""

    conv_CW: Tensor
    conv_bias_C: Tensor | None
    z_bias_I: Tensor | None
    D_H: Tensor
    heads: int
    """Value heads; of width I / heads."""
    groups: int
    """Heads of B and C, each serving heads / groups value heads in a row."""
    states: int
    silu_after_conv: bool
    chunk: int = 128
    """Tokens of a chunk of the scan in the model's own code: it sums chunk by chunk."""

    @property
    def inner(self) -> int:
        """I: x, and so z, are that wide."""
        return self.conv_CW.shape[0] - 2 * self.groups * self.states


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Of a projection [q | k | v], heads side by side."""

    query_heads: int
    key_heads: int
    width: int


class Kernels(Protocol):
    """Implementations keep `h_ND` (branches of the walk share it) and may overwrite every other large argument.

    Arithmetic is in float32 and is rounded where the model's own code rounds it; results have the dtype of their
    inputs. Where they are asked for in 8 bits (`quantise`, then they are `Quantised`) or for work in 8 bits (`coarse`),
    operands of products may be rounded to the dtype of the inputs, too.
    """

    name: str

    def rms_norm(
        self, h_ND: Tensor, weight_D: Tensor, eps: float, *, quantise: bool = False, llama: bool = False
    ) -> Operand:
        """RMSNorm (Zhang and Sennrich, arXiv:1910.07467): rounded once to the dtype of h, then times the weight.

        `llama` for a norm of transformers' Llama, which sums the mean in another order than that of a Llamba.
        """

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
        """h + delta in their dtype, which may lie where delta did, and its RMSNorm."""

    def mix(self, projected_NE: Tensor, mixer: MixerWeights, layout: Layout, *, coarse: bool = False) -> Tensor:
        """All of a Llamba mixer between its projections: convolution, scan, skip and gate; [N, I]."""

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
        """All of a Llama attention between its projections: rotation and causal attention; [N, query heads * P].

        Args:
            qkv_NE: [q | k | v].
            shape: Its heads.
            cos_TP: Cosines of positions 0..T-1, both halves of P alike, as transformers' rotary tables have them.
            sin_TP: Sines.
            layout: Where the texts lie; `position_N` is each token's position.
            coarse: See above.
        """

    def swiglu(self, gate_up_NF: Tensor, *, quantise: bool = False) -> Operand:
        """silu(gate) * up of [gate | up], [N, 2 F] to [N, F] (Shazeer, arXiv:2002.05202)."""

    def quantise(self, x_NK: Tensor) -> Quantised:
        """To 8 bits, a scale for each row."""
