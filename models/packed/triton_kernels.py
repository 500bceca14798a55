"""The fast implementation of `models.packed.kernels.Kernels`, in Triton; import it only where Triton is installed.

For work in 8 bits the fastest there is; else the bits of the model's own code, as far as its operations give the same
bits for texts of another length.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from models.packed import exact, triton_exact, triton_mixer
from models.packed.kernels import AttentionShape, MixerWeights, Operand, Quantised
from models.packed.layout import Layout
from models.packed.triton_attention import attend
from models.packed.triton_pointwise import quantise as to_8_bits
from models.packed.triton_pointwise import rms_norm, rotate, scaled, swiglu
from models.packed.whole import WholeTexts


class TritonKernels:
    """See `models.packed.kernels.Kernels`. Launches go to the device of the tensors, whichever is the current one."""

    name = "Triton"

    def __init__(self) -> None:
        self._texts: WeakKeyDictionary[Layout, WholeTexts] = WeakKeyDictionary()

    def rms_norm(
        self, h_ND: Tensor, weight_D: Tensor, eps: float, *, quantise: bool = False, llama: bool = False
    ) -> Operand:
        """In 8 bits, one pass."""
        with torch.cuda.device_of(h_ND):
            if quantise:
                return rms_norm(h_ND, None, weight_D, eps)
            return exact.rms_norm(h_ND, weight_D, eps, llama=llama, times=scaled)

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
        """In 8 bits, one pass; the sum lies where `delta_ND` did."""
        with torch.cuda.device_of(h_ND):
            if quantise:
                delta_ND = delta_ND.contiguous()
                return delta_ND, rms_norm(h_ND, delta_ND, weight_D, eps)
            sum_ND = delta_ND.add_(h_ND)
            return sum_ND, exact.rms_norm(sum_ND, weight_D, eps, llama=llama, times=scaled)

    def mix(self, projected_NE: Tensor, mixer: MixerWeights, layout: Layout, *, coarse: bool = False) -> Tensor:
        """Coarse, one kernel a level, unless the convolution is wider than any published one."""
        taps = mixer.conv_CW.shape[1]
        with torch.cuda.device_of(projected_NE):
            if coarse and taps <= triton_mixer.TAPS:
                return triton_mixer.mix(projected_NE, mixer, layout)
            return triton_exact.mix(projected_NE, mixer, self._whole(layout).chunks(mixer.chunk, taps))

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
        """Rotated in place; coarse, then one kernel a level."""
        with torch.cuda.device_of(qkv_NE):
            qkv_NE = qkv_NE.contiguous()
            rotate(qkv_NE, shape, cos_TP.contiguous(), sin_TP.contiguous(), layout.position_N)
            return attend(qkv_NE, shape, layout) if coarse else exact.attend(qkv_NE, shape, self._whole(layout).buckets)

    def swiglu(self, gate_up_NF: Tensor, *, quantise: bool = False) -> Operand:
        """One pass."""
        with torch.cuda.device_of(gate_up_NF):
            return swiglu(gate_up_NF, quantise)

    def quantise(self, x_NK: Tensor) -> Quantised:
        """One pass."""
        with torch.cuda.device_of(x_NK):
            return to_8_bits(x_NK)

    def _whole(self, layout: Layout) -> WholeTexts:
        known = self._texts.get(layout)
        if known is None:
            known = self._texts[layout] = WholeTexts(layout)
        return known
