"""The fast implementation of `models.packed.kernels.Kernels`, in Triton; import it only where Triton is installed."""

from __future__ import annotations

import torch
from torch import Tensor

from models.packed.kernels import AttentionShape, MixerWeights, Operand, Quantised
from models.packed.layout import Layout
from models.packed.plain import PlainKernels
from models.packed.triton_attention import attend
from models.packed.triton_mixer import TAPS, mix
from models.packed.triton_pointwise import quantise as to_8_bits
from models.packed.triton_pointwise import rms_norm, rotate, swiglu


class TritonKernels:
    """See `models.packed.kernels.Kernels`. Launches go to the device of the tensors, whichever is the current one."""

    name = "Triton"

    def __init__(self) -> None:
        self._plain = PlainKernels()

    def rms_norm(self, h_ND: Tensor, weight_D: Tensor, eps: float, *, quantise: bool = False) -> Operand:
        """One pass."""
        with torch.cuda.device_of(h_ND):
            return rms_norm(h_ND, None, weight_D, eps, quantise)

    def add_rms_norm(
        self, h_ND: Tensor, delta_ND: Tensor, weight_D: Tensor, eps: float, *, quantise: bool = False
    ) -> tuple[Tensor, Operand]:
        """One pass; the sum lies where `delta_ND` did."""
        with torch.cuda.device_of(h_ND):
            delta_ND = delta_ND.contiguous()
            return delta_ND, rms_norm(h_ND, delta_ND, weight_D, eps, quantise)

    def mix(self, projected_NE: Tensor, mixer: MixerWeights, layout: Layout) -> Tensor:
        """One kernel a level; convolutions wider than any published one go through PyTorch."""
        if mixer.conv_CW.shape[1] > TAPS:
            return self._plain.mix(projected_NE, mixer, layout)
        with torch.cuda.device_of(projected_NE):
            return mix(projected_NE, mixer, layout)

    def attend(self, qkv_NE: Tensor, shape: AttentionShape, cos_TP: Tensor, sin_TP: Tensor, layout: Layout) -> Tensor:
        """Rotated in place, then one kernel a level."""
        with torch.cuda.device_of(qkv_NE):
            qkv_NE = qkv_NE.contiguous()
            rotate(qkv_NE, shape, cos_TP.contiguous(), sin_TP.contiguous(), layout.position_N)
            return attend(qkv_NE, shape, layout)

    def swiglu(self, gate_up_NF: Tensor, *, quantise: bool = False) -> Operand:
        """One pass."""
        with torch.cuda.device_of(gate_up_NF):
            return swiglu(gate_up_NF, quantise)

    def quantise(self, x_NK: Tensor) -> Quantised:
        """One pass."""
        with torch.cuda.device_of(x_NK):
            return to_8_bits(x_NK)
