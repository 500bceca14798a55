"""Which kernels run on a device: the fast ones where they work, plain PyTorch everywhere else.

Suffixes as in kernels.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig

from models.configuration_llamba import LlambaConfig
from models.packed.kernels import AttentionShape, Kernels, MixerWeights, Operand, Quantised
from models.packed.layout import make_layout
from models.packed.matrices import has_fp8
from models.packed.plain import PlainKernels

_log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 3e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Dtypes that the fast kernels take, and how far from their twins they may be: relative, in the Frobenius norm.

Far above rounding (float32 products in PyTorch may be set to tf32), far below any mistake.
"""


def choose_kernels(
    device: torch.device,
    dtype: torch.dtype,
    base: LlambaConfig | None = None,
    donor: LlamaConfig | None = None,
    *,
    coarse: bool = False,
) -> Kernels:
    """Triton's kernels where they import, run and agree with their twins on this GPU; else PyTorch's, and a warning.

    Args:
        device: Where they are to run.
        dtype: Of weights and activations.
        base: Of the model, so that what is compiled for the comparison need not be compiled again; None for small
            shapes.
        donor: Likewise; of a finished hybrid, the configuration of its own Llama blocks.
        coarse: Whether they will run for work in 8 bits, too.
    """
    if device.type != "cuda":
        return PlainKernels()
    if dtype not in TOLERANCE:
        problem: str | None = f"they do not take {dtype}"
    else:
        try:
            # Here, so that nothing else needs Triton.
            from models.packed.triton_kernels import TritonKernels

            fast = TritonKernels()
            problem = disagreement(fast, device, dtype, base, donor, coarse=coarse and has_fp8(device))
        except Exception as error:  # whatever the compiler, the driver or an unknown GPU may think of
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem is None:
        return fast
    _log.warning("running on plain PyTorch, several times slower, as the Triton kernels cannot be used: %s", problem)
    return PlainKernels()


def disagreement(
    fast: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    base: LlambaConfig | None = None,
    donor: LlamaConfig | None = None,
    *,
    coarse: bool = False,
) -> str | None:
    """Which operation differs from its twin on a few random texts, two of which continue a prefix; see above."""
    if base is None:
        base = LlambaConfig(d_model=128, mlp_cfg={"intermediate_size": 128}, ssm_cfg={"n_v_heads": 2, "n_qk_heads": 2})
        donor = LlamaConfig(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    # The first row is longer than a chunk, prefix and all.
    lengths, parents = np.array([base.ssm_cfg["chunk_size"], 1, 33]), np.array([0, -1, 0])
    layout = make_layout(lengths, lengths - 1, device=device, prefix_lengths=np.array([67]), prefix_of_row=parents)
    tokens = len(layout)
    h_ND, delta_ND, weight_D = random(tokens, base.d_model), random(tokens, base.d_model), random(base.d_model)
    mixer = _mixer(base, random)
    projected_NE = random(tokens, len(mixer.conv_CW) + mixer.inner + mixer.heads)
    mlps = {base.mlp_cfg["intermediate_size"]} | ({donor.intermediate_size} if donor else set())
    gate_up = {width: random(tokens, 2 * width) for width in sorted(mlps)}
    attention = None if donor is None else _attention(donor)
    if attention is not None:
        qkv_NE = random(tokens, (attention.query_heads + 2 * attention.key_heads) * attention.width)
        angle_TP = torch.rand(layout.longest_text, attention.width // 2, generator=generator).repeat(1, 2)
        cos_TP, sin_TP = angle_TP.cos().to(device, dtype), angle_TP.sin().to(device, dtype)

    def results(kernels: Kernels, in_8_bits: bool) -> dict[str, Tensor]:
        total_ND, normed = kernels.add_rms_norm(h_ND, delta_ND.clone(), weight_D, 1e-5, quantise=in_8_bits)
        made: dict[str, Operand] = {
            "rms_norm": kernels.rms_norm(h_ND, weight_D, 1e-5, quantise=in_8_bits),
            "add_rms_norm": normed,
            "add_rms_norm's sum": total_ND,
            "mix": kernels.mix(projected_NE.clone(), mixer, layout, coarse=in_8_bits),
        }
        made |= {f"swiglu of {w}": kernels.swiglu(x.clone(), quantise=in_8_bits) for w, x in gate_up.items()}
        if in_8_bits:
            made["quantise"] = kernels.quantise(h_ND)
        if attention is not None:
            made["attend"] = kernels.attend(qkv_NE.clone(), attention, cos_TP, sin_TP, layout, coarse=in_8_bits)
        return {name: _value(operand) for name, operand in made.items()}

    plain = PlainKernels()
    for in_8_bits in (False, True) if coarse else (False,):
        expected = results(plain, in_8_bits)
        for name, value in results(fast, in_8_bits).items():
            error = float((value - expected[name]).norm() / expected[name].norm())
            if not error < TOLERANCE[dtype]:  # nan, too
                return f"{name}{' in 8 bits' if in_8_bits else ''} is {error:.1%} from its PyTorch twin"
    return None


def _mixer(base: LlambaConfig, random: Callable[..., Tensor]) -> MixerWeights:
    ssm, inner = base.ssm_cfg, base.d_inner
    channels = inner + 2 * ssm["n_qk_heads"] * ssm["d_state"]
    return MixerWeights(
        conv_CW=random(channels, ssm["d_conv"]),
        conv_bias_C=random(channels) if ssm["conv_bias"] else None,
        z_bias_I=None if ssm["bias"] else random(inner),
        D_H=random(ssm["n_v_heads"]),
        heads=ssm["n_v_heads"],
        groups=ssm["n_qk_heads"],
        states=ssm["d_state"],
        silu_after_conv=ssm["activation"] != "identity",
        chunk=ssm["chunk_size"],
    )


def _attention(donor: LlamaConfig) -> AttentionShape:
    heads = donor.num_attention_heads
    return AttentionShape(
        query_heads=heads,
        key_heads=donor.num_key_value_heads or heads,
        width=donor.head_dim or donor.hidden_size // heads,
    )


def _value(operand: Operand) -> Tensor:
    if isinstance(operand, Quantised):
        return operand.values_NK.float() * operand.scale_N1
    return operand.float()
