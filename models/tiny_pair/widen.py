"""A wider Llama that computes what a trained one does: the start of the larger pair's donor.

Channels and heads are repeated, and what reads them is divided by the number of repeats (Net2Net: Chen et al.,
arXiv:1511.05641). Noise then tells the repeats apart, and training goes on from there. From random weights, the
look-ups in the context emerge only after thousands of steps.

Suffixes: D wide channels, F wide MLP channels, Q wide head channels (all heads together).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM


@torch.no_grad()
def widen(small: LlamaForCausalLM, config: LlamaConfig, *, noise: float, seed: int) -> LlamaForCausalLM:
    """A model of shape `config` that starts as `small`, in float32 on the CPU.

    Args:
        small: As many key heads as query heads.
        config: Of the same depth and vocabulary; all else a multiple of the small model's.
        noise: Standard deviation of what is added to each matrix, in units of the matrix's own.
        seed: Of the noise.

    Raises:
        ValueError: a width is no multiple, or depth or vocabulary differ.
    """
    old = small.config
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "head_dim"):
        if getattr(config, name) % getattr(old, name):
            raise ValueError(f"{name} {getattr(config, name)} is no multiple of {getattr(old, name)}")
    for name in ("num_hidden_layers", "vocab_size"):
        if getattr(config, name) != getattr(old, name):
            raise ValueError(f"{name} is {getattr(config, name)} here and {getattr(old, name)} in what is widened")
    from_D = torch.arange(config.hidden_size) % old.hidden_size
    from_F = torch.arange(config.intermediate_size) % old.intermediate_size
    values_Q, rotated_Q, gain_Q = _head_channels(old, config)

    wide = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    state = {name: tensor.float().cpu() for name, tensor in small.state_dict().items()}
    for name, parameter in wide.named_parameters():
        weight, kind = state[name], name.split(".")[-2]
        if weight.dim() == 1:
            parameter.copy_(weight[from_D])
            continue
        if kind == "embed_tokens":
            made = weight[:, from_D]
        elif kind == "lm_head":
            made = _reads(weight, from_D)
        elif kind in ("q_proj", "k_proj"):
            made = _reads(weight, from_D)[rotated_Q] * gain_Q.unsqueeze(1)
        elif kind == "v_proj":
            made = _reads(weight, from_D)[values_Q]
        elif kind == "o_proj":
            made = _reads(weight, values_Q)[from_D]
        elif kind == "down_proj":
            made = _reads(weight, from_F)[from_D]
        else:  # gate_proj and up_proj
            made = _reads(weight, from_D)[from_F]
        parameter.copy_(made + noise * made.std() * torch.randn(made.shape, generator=generator))
    return wide


def _reads(weight: Tensor, source: Tensor) -> Tensor:
    """A matrix whose inputs are repeated as `source` says, and shared out among the repeats."""
    return weight[:, source] * (weight.shape[1] / len(source))


def _head_channels(old: LlamaConfig, new: LlamaConfig) -> tuple[Tensor, Tensor, Tensor]:
    """[Q] where each channel of the wide heads comes from: of values; of queries and keys; the gain of the latter.

    Rotary frequencies are a matter of the place in a head's half: those of the small head are every so manieth of the
    wide one's. Channels between them start at 0, and the gain makes up for the wider head's smaller scale.
    """
    head = torch.arange(new.num_attention_heads).repeat_interleave(new.head_dim) % old.num_attention_heads
    channel = torch.arange(new.head_dim).repeat(new.num_attention_heads)
    ratio = new.head_dim // old.head_dim
    half, place = channel // (new.head_dim // 2), channel % (new.head_dim // 2)
    rotated = head * old.head_dim + half * (old.head_dim // 2) + place // ratio
    gain = torch.where(place % ratio == 0, ratio**0.25, 0.0)
    return head * old.head_dim + channel % old.head_dim, rotated, gain
