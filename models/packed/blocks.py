"""A layer of either kind as the packed engine runs it: what it is, and its weights by name.

Names: `norm`, `mlp_norm`; the matrices `in` and `out` of its mixer or attention, `gate_up` and `down` of its MLP; of a
mixer also `conv` [C, W], `D` [H] and `z_bias` [I]. A bias is under `NAME.bias`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from models.errors import ModelError
from models.mixer import LlambaMixer
from models.packed.kernels import AttentionShape, MixerWeights
from models.packed.matrices import Weights

MATRICES = ("in", "out", "gate_up", "down")
"""Of every layer: into its mixer or attention, out of it, into and out of its MLP."""


@dataclass(frozen=True, slots=True)
class Block:
    """What a layer is besides its weights."""

    eps: tuple[float, float]
    """Of the norm before the mixer or attention, and before the MLP."""
    attention: AttentionShape | None
    """None for a Llamba mixer."""
    heads: tuple[int, int, int] = (0, 0, 0)
    """Of a mixer: value heads, groups, states."""
    silu_after_conv: bool = False
    chunk: int = 0
    """Of a mixer: tokens of a chunk of its scan."""


def mixer_weights(block: Block, weights: Weights) -> MixerWeights:
    """What the kernels need of a mixer."""
    heads, groups, states = block.heads
    return MixerWeights(
        conv_CW=weights["conv"],
        conv_bias_C=weights.get("conv.bias"),
        z_bias_I=weights.get("z_bias"),
        D_H=weights["D"],
        heads=heads,
        groups=groups,
        states=states,
        silu_after_conv=block.silu_after_conv,
        chunk=block.chunk,
    )


def prepare(layer: Any) -> tuple[Block, dict[str, Tensor]]:
    """A layer of either kind; matrices that take the same input become one, of which its parameters are then views."""
    if not isinstance(layer.mlp.act_fn, nn.SiLU | SiLUActivation):
        raise ModelError(f"the engine runs MLPs with SiLU; these have {type(layer.mlp.act_fn).__name__}")
    weights = {"norm": layer.input_layernorm.weight, "mlp_norm": layer.post_attention_layernorm.weight}
    if isinstance(layer, LlamaDecoderLayer):
        attention = layer.self_attn
        _join(weights, "in", [attention.q_proj, attention.k_proj, attention.v_proj])
        _join(weights, "out", [attention.o_proj])
        width = attention.head_dim
        shape = AttentionShape(
            query_heads=attention.q_proj.out_features // width,
            key_heads=attention.k_proj.out_features // width,
            width=width,
        )
        eps = (layer.input_layernorm.variance_epsilon, layer.post_attention_layernorm.variance_epsilon)
        block = Block(eps, shape)
    else:
        mixer: LlambaMixer = layer.mixer
        _join(weights, "in", [mixer.in_proj])
        _join(weights, "out", [mixer.out_proj])
        weights |= {"conv": mixer.conv1d.weight[:, 0], "D": mixer.D}
        if mixer.conv1d.bias is not None:
            weights["conv.bias"] = mixer.conv1d.bias
        if mixer.z_bias is not None:
            weights["z_bias"] = mixer.z_bias
        heads = (mixer.heads, mixer.groups, mixer.states)
        eps = (layer.input_layernorm.eps, layer.post_attention_layernorm.eps)
        block = Block(eps, None, heads, mixer.silu_after_conv, mixer.chunk_size)
    _join(weights, "gate_up", [layer.mlp.gate_proj, layer.mlp.up_proj])
    _join(weights, "down", [layer.mlp.down_proj])
    return block, {name: tensor.detach() for name, tensor in weights.items()}


def _join(weights: dict[str, Tensor], name: str, parts: list[Any]) -> None:
    """Put the matrices (and biases) of linear modules below one another, and the modules' parameters into that."""
    for ending, field in (("", "weight"), (".bias", "bias")):
        parameters = [getattr(part, field) for part in parts]
        if any(parameter is None for parameter in parameters):
            continue
        tensors = [parameter.detach() for parameter in parameters]
        joined = _as_one(tensors)
        if joined is None:
            joined = torch.cat(tensors)
            for parameter, view in zip(parameters, joined.split([len(t) for t in tensors]), strict=True):
                parameter.data = view
        weights[name + ending] = joined


def _as_one(tensors: list[Tensor]) -> Tensor | None:
    """Tensors that lie one behind the other in one storage, as one; None where they do not."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    at = first.storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and tensor.is_contiguous() and tensor.storage_offset() == at):
            return None
        at += tensor.numel()
    rows = sum(len(tensor) for tensor in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
