"""Products with weight matrices, in the model's dtype or in 8 bits with a scale for each row.

The 8-bit products are for coarse looks only: row-scaled e4m3 on both sides, summed in float32 as the hardware does it
(Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433).

Suffixes: N packed tokens, K inner width, E output width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.packed.kernels import Operand, Quantised
from models.packed.plain import PlainKernels

Weights = Mapping[str, Tensor]
"""Of one layer, by name; a matrix `x` [E, K] has its bias under `x.bias`, its 8 bits under `x.fp8` and `x.scale`."""

FP8_CAPABILITY = (8, 9)
"""Least compute capability with matrix units for 8 bits: Ada, Hopper and later."""
LEAST_ROWS = 2048
"""Rows that a product on a GPU is filled up to. With few, its library splits the sums among programs, and what it gives
is off in the last bit from what the model's own code gets with the rows of a whole batch (seen on an H200 with 64)."""
_MULTIPLE = 16
"""The 8-bit products of torch want widths that it divides."""


def linear(x: Operand, weights: Weights, name: str) -> Tensor:
    """x W^T + bias, [N, K] to [N, E]; of 8 bits where `x` is."""
    bias = weights.get(f"{name}.bias")
    if isinstance(x, Quantised):
        return _product_fp8(x, weights[f"{name}.fp8"], weights[f"{name}.scale"], bias)
    rows = len(x)
    if x.is_cuda and rows < LEAST_ROWS:
        x = F.pad(x, (0, 0, 0, LEAST_ROWS - rows))
    return F.linear(x, weights[name], bias)[:rows]


def to_fp8(weights: Weights, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The same weights with the matrices `names` in 8 bits instead.

    Raises:
        ValueError: an inner width is no multiple of 16.
    """
    made = {name: tensor for name, tensor in weights.items() if name not in names}
    for name in names:
        weight_EK = weights[name]
        if weight_EK.shape[1] % _MULTIPLE:
            raise ValueError(f"{name} is {weight_EK.shape[1]} wide, which {_MULTIPLE} does not divide")
        values_EK, scale_E1 = PlainKernels().quantise(weight_EK)
        missing = -len(weight_EK) % _MULTIPLE
        if missing:
            values_EK = torch.cat([values_EK, values_EK.new_zeros(missing, values_EK.shape[1])])
        made |= {f"{name}.fp8": values_EK, f"{name}.scale": scale_E1}
    return made


def has_fp8(device: torch.device) -> bool:
    """Whether the device has matrix units for 8 bits."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def fp8_problem(device: torch.device) -> str | None:
    """What is wrong with 8-bit products on a device that should have them; None if nothing is."""
    generator = torch.Generator().manual_seed(0)
    x_NK = PlainKernels().quantise(torch.randn(48, 64, generator=generator))
    weights = to_fp8({"in": torch.randn(32, 64, generator=generator)}, ("in",))
    expected_NE = linear(x_NK, weights, "in").float()
    try:
        there = Quantised(*(part.to(device) for part in x_NK))
        found_NE = linear(there, {name: part.to(device) for name, part in weights.items()}, "in").float().cpu()
    except Exception as error:  # whatever PyTorch, the driver or an unknown GPU may think of
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    off = float((found_NE - expected_NE).norm() / expected_NE.norm())
    return None if off < 1e-2 else f"they are {off:.1%} from their plain twin"


def _product_fp8(x: Quantised, weight_EK: Tensor, scale_E1: Tensor, bias_E: Tensor | None) -> Tensor:
    width = len(scale_E1)
    if not has_fp8(weight_EK.device):
        out_NE = (x.values_NK.float() @ weight_EK[:width].float().t()).mul_(x.scale_N1).mul_(scale_E1.t())
        return (out_NE if bias_E is None else out_NE.add_(bias_E)).to(torch.bfloat16)
    if width != len(weight_EK):
        scale_E1 = F.pad(scale_E1, (0, 0, 0, len(weight_EK) - width), value=1.0)
    out_NE = torch._scaled_mm(
        x.values_NK,
        weight_EK.t(),
        scale_a=x.scale_N1,
        scale_b=scale_E1.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )[:, :width]
    out_NE = out_NE if bias_E is None else out_NE + bias_E
    return out_NE.contiguous()
