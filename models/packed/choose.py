"""Which kernels run on a device: the fast ones where they work, plain PyTorch everywhere else."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from models.packed.kernels import AttentionShape, Kernels, MixerWeights, Operand, Quantised
from models.packed.layout import make_layout
from models.packed.matrices import has_fp8
from models.packed.plain import PlainKernels

_log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 3e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Dtypes that the fast kernels take, and how far from their twins they may be: relative, in the Frobenius norm.

Far above rounding (float32 products in PyTorch may be set to tf32), far below any mistake.
"""


def choose_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    """Triton's kernels where they import, run and agree with their twins on this GPU; else PyTorch's, and a warning."""
    if device.type != "cuda":
        return PlainKernels()
    if dtype not in TOLERANCE:
        problem: str | None = f"they do not take {dtype}"
    else:
        try:
            # Here, so that nothing else needs Triton.
            from models.packed.triton_kernels import TritonKernels

            fast = TritonKernels()
            problem = _disagreement(fast, device, dtype)
        except Exception as error:  # whatever the compiler, the driver or an unknown GPU may think of
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem is None:
        return fast
    _log.warning("running on plain PyTorch, several times slower, as the Triton kernels cannot be used: %s", problem)
    return PlainKernels()


def _disagreement(fast: Kernels, device: torch.device, dtype: torch.dtype) -> str | None:
    """Which operation differs from its twin on a few random texts, two of which continue a prefix."""
    plain = PlainKernels()
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    lengths, parents = np.array([70, 1, 33]), np.array([0, -1, 0])
    layout = make_layout(lengths, lengths - 1, device=device, prefix_lengths=np.array([67]), prefix_of_row=parents)
    tokens, heads, width, states = len(layout), 2, 64, 16
    inner = heads * width
    channels = inner + 2 * heads * states
    mixer = MixerWeights(
        conv_CW=random(channels, 4),
        conv_bias_C=random(channels),
        z_bias_I=random(inner),
        D_H=random(heads),
        heads=heads,
        groups=heads,
        states=states,
        silu_after_conv=False,
    )
    shape = AttentionShape(query_heads=4, key_heads=2, width=width)
    angle_TP = torch.rand(layout.longest_text, width // 2, generator=generator).repeat(1, 2)
    cos_TP, sin_TP = angle_TP.cos().to(device, dtype), angle_TP.sin().to(device, dtype)
    h_ND, delta_ND, weight_D = random(tokens, inner), random(tokens, inner), random(inner)
    projected_NE, qkv_NE, gate_up_NF = (
        random(tokens, channels + inner + heads),
        random(tokens, 512),
        random(tokens, 256),
    )

    def results(kernels: Kernels) -> dict[str, Tensor]:
        total_ND, normed_ND = kernels.add_rms_norm(h_ND, delta_ND.clone(), weight_D, 1e-5)
        made: dict[str, Operand] = {
            "rms_norm": kernels.rms_norm(h_ND, weight_D, 1e-5),
            "add_rms_norm": normed_ND,
            "add_rms_norm's sum": total_ND,
            "mix": kernels.mix(projected_NE.clone(), mixer, layout),
            "attend": kernels.attend(qkv_NE.clone(), shape, cos_TP, sin_TP, layout),
            "swiglu": kernels.swiglu(gate_up_NF.clone()),
        }
        if has_fp8(device):
            made["quantise"] = kernels.quantise(h_ND)
        return {name: _value(operand) for name, operand in made.items()}

    expected = results(plain)
    for name, value in results(fast).items():
        error = float((value - expected[name]).norm() / expected[name].norm())
        if not error < TOLERANCE[dtype]:  # nan, too
            return f"{name} is {error:.1%} from its PyTorch twin"
    return None


def _value(operand: Operand) -> Tensor:
    if isinstance(operand, Quantised):
        return operand.values_NK.float() * operand.scale_N1
    return operand.float()
