"""Norms and attention with the very sums of the model's own code: its own operations, on packed texts.

Suffixes as in kernels.py and whole.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.packed.kernels import AttentionShape
from models.packed.whole import Bucket


def rms_norm(
    h_ND: Tensor, weight_D: Tensor, eps: float, *, llama: bool, times: Callable[..., Tensor] | None = None
) -> Tensor:
    """RMSNorm as models/modeling_llamba.py has it, or as transformers' Llama: the mean is summed in another order.

    `times` is `scaled` or a kernel that does the same.
    """
    times = times or scaled
    if not llama:
        # Of 16 bits it sums in float32 and rounds once, in one pass: the bits of the model's way through float32.
        return times(F.rms_norm(h_ND, h_ND.shape[-1:], eps=eps), None, weight_D)
    mean_N1 = h_ND.float().pow(2).mean(-1, keepdim=True)  # not in place: of float32, float() is h itself
    return times(h_ND, torch.rsqrt(mean_N1 + eps), weight_D)


def scaled(x_ND: Tensor, factor_N1: Tensor | None, weight_D: Tensor) -> Tensor:
    """x times a factor for each row, in float32 and rounded to the dtype of x, times a weight for each column."""
    if factor_N1 is not None:
        x_ND = (x_ND.float() * factor_N1).to(x_ND.dtype)
    return x_ND * weight_D


def attend(qkv_NE: Tensor, shape: AttentionShape, buckets: list[Bucket]) -> Tensor:
    """Attention of queries and keys that are rotated already, each text whole, as transformers asks PyTorch for it."""
    out_NE = qkv_NE.new_empty(len(qkv_NE), shape.query_heads * shape.width)
    heads = [shape.query_heads, shape.key_heads, shape.key_heads]
    for bucket in buckets:
        qkv_BTHP = qkv_NE[bucket.token_BT].unflatten(-1, (-1, shape.width))
        q_BHTP, k_BHTP, v_BHTP = (part.transpose(1, 2) for part in qkv_BTHP.split(heads, 2))
        out_BHTP = F.scaled_dot_product_attention(
            q_BHTP,
            k_BHTP,
            v_BHTP,
            is_causal=qkv_BTHP.shape[1] > 1,
            scale=shape.width**-0.5,
            enable_gqa=shape.query_heads != shape.key_heads,
        )
        out_NE[bucket.token_M] = out_BHTP.transpose(1, 2).flatten(2).flatten(0, 1)[bucket.own_M]
    return out_NE
