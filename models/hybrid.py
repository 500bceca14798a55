"""A base and its donor with all layers of both at hand, so that any hybrid of them runs without loading.

Shapes: B batch, T tokens, D model width, V vocabulary, N positions, P attention head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from models.configuration_llamba import LlambaConfig
from models.errors import ModelError
from models.layer_files import check_layers, layer_file
from models.loading import (
    check_pair,
    empty_model,
    fill,
    finish,
    load_base,
    load_donor_layer_state,
    load_layer_file,
    read_llama_config,
)
from models.modeling_llamba import LlambaForCausalLM

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Rotary tables that are no prefix of those of a longer text."""


class HybridPair:
    """Layers of both models, to be run one by one on unpadded or right-padded texts: the plain twin of packed layers.

    No padding masks: both kinds of layer are causal, so what stands behind a token cannot change it.

    Attributes:
        depth: Layers of the base, and of the donor.
        device: Where everything is.
        dtype: Of the weights and of hidden states.
        model: The base.
        donor_layers: The donor's layers, on a device of their own where `load` was told so.
        rotary: The donor's rotary embedding.
    """

    def __init__(self, model: LlambaForCausalLM, donor_layers: Iterable[nn.Module], donor_config: LlamaConfig) -> None:
        """Take a base without Llama blocks, and all layers of its donor, on one device and in one dtype.

        Raises:
            ModelError: They do not fit each other.
        """
        check_pair(model.config, donor_config)
        if model.config.attention_layers:
            raise ModelError("the base of a pair must have no Llama blocks; give a pure Llamba model")
        self.model = model
        self.donor_config = donor_config
        self.depth: int = model.config.n_layer
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.donor_layers = list(donor_layers)
        self.rotary = LlamaRotaryEmbedding(donor_config).to(self.device)
        self._table: tuple[Tensor, Tensor] | None = None

    @classmethod
    def load(
        cls,
        base_dir: str | Path,
        donor_dir: str | Path | None = None,
        *,
        layers_dir: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        donor_device: str | torch.device | None = None,
    ) -> HybridPair:
        """Load both models from local folders.

        Args:
            base_dir: A Llamba folder.
            donor_dir: A Llama folder; of it only config.json is read when `layers_dir` is given.
            layers_dir: Extracted layers, to be used instead of the donor's weights; it holds the donor's
                config.json unless `donor_dir` is given too.
            dtype: Weights are cast to it.
            device: Weights are moved there one by one.
            donor_device: The same of the donor's layers, if it is another; such a pair is for the packed engine, which
                fetches them.

        Raises:
            ModelError: A folder is not what it should be, or the two do not fit.
        """
        source = _DonorLayers(donor_dir, layers_dir)
        base = load_base(base_dir, dtype=dtype, device=device)
        check_pair(base.config, source.config)
        layers = [source.load(i, dtype, donor_device or device) for i in range(base.config.n_layer)]
        return cls(base, layers, source.config)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] token ids to hidden states [B, T, D]."""
        return self.model.backbone.embedding(tokens_BT)

    def base(self, i: int, h_BTD: Tensor) -> Tensor:
        """The base's layer `i`."""
        return self.model.backbone.layers[i](h_BTD)

    def donor(self, i: int, h_BTD: Tensor) -> Tensor:
        """The donor's layer `i`, the texts starting at position 0."""
        table = self._rotary_table(h_BTD.shape[1])
        return self.donor_layers[i](h_BTD, attention_mask=None, position_embeddings=table)

    def logits(self, h_ND: Tensor) -> Tensor:
        """Final norm and head at the positions given: [N, D] to float32 [N, V]."""
        return self.model.project(self.model.backbone.final_layernorm(h_ND)).float()

    def take_donor_layers(self) -> list[nn.Module]:
        """The donor's layers, which the pair then has no more; for who keeps them elsewhere, one by one."""
        taken, self.donor_layers = self.donor_layers, []
        return taken

    def assemble(self, indices: Iterable[int]) -> LlambaForCausalLM:
        """The hybrid whose layers `indices` are the donor's, as a model of its own that shares these weights.

        Raises:
            ModelError: An index is outside 0..depth-1 or repeated.
        """
        chosen = check_layers(indices, self.depth)
        if chosen and not self.donor_layers:
            raise ModelError("the donor's layers were taken out of this pair; load it anew to assemble a model")
        donors = {i: self.donor_layers[i] for i in chosen}
        return _assemble(self.model, donors, self.donor_config)

    def _rotary_table(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, T, P] of positions 0..T-1, cut from the longest table made so far."""
        fixed = self.donor_config.rope_parameters["rope_type"] not in LENGTH_DEPENDENT_ROPE
        if self._table is None or self._table[0].shape[1] < tokens or not fixed:
            like = torch.empty(0, dtype=self.dtype, device=self.device)
            self._table = self.rotary(like, torch.arange(tokens, device=self.device).unsqueeze(0))
        cos, sin = self._table
        return cos[:, :tokens], sin[:, :tokens]


def load_hybrid(
    base_dir: str | Path,
    indices: Iterable[int],
    donor_dir: str | Path | None = None,
    *,
    layers_dir: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> LlambaForCausalLM:
    """One hybrid, of the donor only the layers `indices` being read; arguments as `HybridPair.load`.

    Raises:
        ModelError: As `HybridPair.load`, or an index is out of range or repeated.
    """
    source = _DonorLayers(donor_dir, layers_dir)
    base = load_base(base_dir, dtype=dtype, device=device)
    check_pair(base.config, source.config)
    chosen = check_layers(indices, base.config.n_layer)
    donors = {i: source.load(i, dtype, device) for i in chosen}
    return _assemble(base, donors, source.config)


class _DonorLayers:
    """Where the donor's configuration and layers come from."""

    def __init__(self, donor_dir: str | Path | None, layers_dir: str | Path | None) -> None:
        folder = donor_dir or layers_dir
        if folder is None:
            raise ModelError("neither the donor's folder nor a folder of its extracted layers is given")
        self._donor_dir, self._layers_dir = donor_dir, layers_dir
        self.config = read_llama_config(folder)
        self.config._attn_implementation = "sdpa"  # what LlambaForCausalLM picks for its Llama blocks

    def load(self, i: int, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
        if self._layers_dir is not None:
            state, source = load_layer_file(self._layers_dir, i), str(layer_file(self._layers_dir, i))
        else:
            state, source = load_donor_layer_state(str(self._donor_dir), i), f"{self._donor_dir}, layer {i}"
        with torch.device("meta"):
            layer = LlamaDecoderLayer(self.config, i)
        fill(layer, state.items(), source, dtype=dtype, device=device)
        return layer.eval().requires_grad_(False)


def _assemble(base: LlambaForCausalLM, donors: dict[int, nn.Module], donor_config: LlamaConfig) -> LlambaForCausalLM:
    config: LlambaConfig = base.config.with_attention(donors, donor_config)
    config._attn_implementation = base.config._attn_implementation
    model = empty_model(config, base.device)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        replaced = tuple(f"backbone.layers.{i}." for i in donors)
        for name, tensor in base.state_dict().items():
            if not name.startswith(replaced):
                yield name, tensor
        for i, layer in donors.items():
            for name, tensor in layer.state_dict().items():
                yield f"backbone.layers.{i}.{name}", tensor

    fill(model, tensors(), "the pair", dtype=base.dtype, device=base.device)
    model.generation_config = base.generation_config
    return finish(model)
