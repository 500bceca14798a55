"""Logits and hidden states of the published implementation, which computed them through tf32 kernels."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig

from models.configuration_llamba import LlambaConfig
from models.modeling_llamba import LlambaForCausalLM

TOLERANCE = 1e-2


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "reference"
    return json.loads((folder / "reference_a.json").read_text()), load_file(folder / "reference_a.safetensors")


def error(ours: Tensor, theirs: Tensor) -> float:
    """Relative Frobenius error."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def base_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("llamba."): a for name, a in tensors.items() if name.startswith("llamba.")}


@torch.no_grad()
def test_base(reference):
    about, tensors = reference
    model = LlambaForCausalLM(LlambaConfig(**about["llamba_config"])).eval()
    model.load_state_dict(base_weights(tensors))
    before_norm = []
    model.backbone.final_layernorm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0]))
    outputs = model(tensors["input_ids"].long(), output_hidden_states=True)
    assert error(outputs.logits, tensors["llamba_logits"]) < TOLERANCE
    hidden = [*outputs.hidden_states[:-1], before_norm[0]]  # transformers' last one is after the final norm
    assert len(hidden) == 5
    for i, ours in enumerate(hidden):
        assert error(ours, tensors[f"llamba_hidden_{i}"]) < TOLERANCE


@torch.no_grad()
def test_hybrid(reference):
    about, tensors = reference
    layers = about["attention_layers"]
    donor = LlamaConfig(**about["llama_config"])
    model = LlambaForCausalLM(LlambaConfig(**about["llamba_config"]).with_attention(layers, donor)).eval()
    replaced = tuple(f"backbone.layers.{i}." for i in layers)
    weights = {name: a for name, a in base_weights(tensors).items() if not name.startswith(replaced)}
    for name, a in tensors.items():
        if name.startswith("llama."):
            weights["backbone." + name.removeprefix("llama.model.")] = a
    model.load_state_dict(weights)
    assert error(model(tensors["input_ids"].long()).logits, tensors["hybrid_logits"]) < TOLERANCE
