"""Llamba in pure PyTorch, any of whose layers may be a Llama decoder block; transformers 5 conventions.

The Mamba-2 mixer is in `mixer.py`; tensor names are those of hub checkpoints, so real weights load as they are.
Travels with checkpoints as `trust_remote_code` code, so it imports only torch, transformers and neighbours.

Shapes: B batch, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.utils import can_return_tuple, is_tracing
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_llamba import LLAMA, MAMBA, LlambaConfig
from .mixer import LlambaMixer


class LlambaCache(DynamicCache):
    """A DynamicCache that knows its length even where no layer keeps keys.

    transformers reads the length off the first attention layer and raises when there is none; `generate` asks
    for it in every case. States are of fixed size, so this is a static cache as well.

    Attributes:
        is_compileable: Whether `generate` may compile decoding, which it does wherever it may.
    """

    is_compileable = False
    _seen: Tensor | None = None

    def __init__(self, config: LlambaConfig) -> None:
        super().__init__(config=config)

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Tensor:
        if layer_idx == 0:
            if self._seen is None:
                # A tensor at a fixed address: a number would be a new constant, so a new compilation, at every token.
                self._seen = torch.zeros((), dtype=torch.long, device=conv_states.device)
                if not torch.compiler.is_compiling():
                    torch._dynamo.mark_static_address(self._seen)
            self._seen.add_(conv_states.shape[-1])
        return super().update_conv_state(conv_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int | Tensor:
        return 0 if self._seen is None else self._seen

    def reset(self) -> None:
        super().reset()
        if self._seen is not None:
            self._seen.zero_()


class LlambaRMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        dtype = hidden_BTD.dtype
        normed_BTD = F.rms_norm(hidden_BTD.float(), (hidden_BTD.shape[-1],), eps=self.eps)
        return self.weight * normed_BTD.to(dtype)


class LlambaMLP(nn.Module):
    """SwiGLU: down(act(gate(x)) * up(x))."""

    def __init__(self, config: LlambaConfig) -> None:
        super().__init__()
        width, inner, bias = config.d_model, config.mlp_cfg["intermediate_size"], config.mlp_cfg["bias"]
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.act_fn = ACT2FN[config.mlp_cfg["act_fn"]]

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_BTD)) * self.up_proj(hidden_BTD))


class LlambaBlock(GradientCheckpointingLayer):
    """h = h + mixer(norm(h)); h = h + mlp(norm(h))."""

    def __init__(self, config: LlambaConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = LlambaRMSNorm(config.d_model, config.norm_epsilon)
        self.mixer = LlambaMixer(config, layer_idx)
        self.post_attention_layernorm = LlambaRMSNorm(config.d_model, config.norm_epsilon)
        self.mlp = LlambaMLP(config)

    def forward(
        self,
        hidden_BTD: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **unused: Any,
    ) -> Tensor:
        """Run the block; the names and the tensor returned are those of a Llama decoder block.

        Args:
            hidden_BTD: Residual stream.
            attention_mask: [B, T] padding mask of these positions, or None where nothing is padded.
            past_key_values: Cache to continue from and to update.
        """
        normed_BTD = self.input_layernorm(hidden_BTD)
        hidden_BTD = hidden_BTD + self.mixer(normed_BTD, past_key_values, attention_mask)
        return hidden_BTD + self.mlp(self.post_attention_layernorm(hidden_BTD))


class LlambaPreTrainedModel(PreTrainedModel):
    """What all Llamba classes tell transformers about themselves."""

    config_class = LlambaConfig
    config: LlambaConfig
    base_model_prefix = "backbone"
    _input_embed_layer = "embedding"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["LlambaBlock", "LlamaDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _is_stateful = True  # a recurrent state cannot be rolled back
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": [LlambaBlock, LlamaDecoderLayer],
        "attentions": LlamaAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LlambaMixer):
            init.ones_(module.D)
            if module.z_bias is not None:
                init.zeros_(module.z_bias)
        elif isinstance(module, LlambaRMSNorm):
            init.ones_(module.weight)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """As transformers does it, in step with the configuration: rows that only pad the vocabulary are no tokens."""
        config = self.config
        tokens = new_num_tokens or config.vocab_size
        config.pad_vocab_size_multiple = pad_to_multiple_of or config.pad_vocab_size_multiple
        embedding = super().resize_token_embeddings(tokens, config.pad_vocab_size_multiple, mean_resizing)
        config.vocab_size = tokens
        return embedding


class LlambaModel(LlambaPreTrainedModel):
    """Embedding, layers of both kinds, final norm."""

    def __init__(self, config: LlambaConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.llama_config = config.llama_config() if config.attention_layers else None
        self.layers = nn.ModuleList(
            LlambaBlock(config, i) if kind == MAMBA else LlamaDecoderLayer(self.llama_config, i)
            for i, kind in enumerate(config.layer_types)
        )
        self.rotary_emb = None if self.llama_config is None else LlamaRotaryEmbedding(self.llama_config)
        self.final_layernorm = LlambaRMSNorm(config.d_model, config.norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """What `to` and `half` do, but for the rotary tables, which in half precision would mix up long texts."""
        rotary = self.rotary_emb
        exact = {} if rotary is None else dict(rotary.named_buffers())
        super()._apply(*args, **kwargs)
        for name, table in exact.items():
            cast = getattr(rotary, name)
            if cast.dtype != table.dtype:
                setattr(rotary, name, table.to(cast.device))
        return self

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Last hidden states [B, T, D] after the final norm.

        Args:
            input_ids: [B, T]; or else `inputs_embeds` [B, T, D].
            attention_mask: [B, past + T] with 0 at padding, or masks made ahead under the two layer types.
            position_ids: [B, T] or [1, T]; only Llama blocks read them.
            past_key_values: Cache to continue from and to update; a new one when `use_cache` and None.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_BTD = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is not None:
            accept_cache(past_key_values, self.config)
        elif use_cache:
            past_key_values = new_cache(self.config)
        shared = kwargs | {"past_key_values": past_key_values, "use_cache": use_cache}
        if self.rotary_emb is not None:
            if position_ids is None:
                past = 0 if past_key_values is None else past_key_values.get_seq_length()
                position_ids = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)[None] + past
            shared["position_ids"] = position_ids
            shared["position_embeddings"] = self.rotary_emb(hidden_BTD, position_ids)
        masks = self._masks(hidden_BTD, attention_mask, position_ids, past_key_values)
        for kind, layer in zip(self.config.layer_types, self.layers, strict=True):
            hidden_BTD = layer(hidden_BTD, attention_mask=masks.get(kind), **shared)
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_BTD), past_key_values=past_key_values
        )

    def _masks(
        self,
        hidden_BTD: Tensor,
        attention_mask: Tensor | dict[str, Tensor | None] | None,
        position_ids: Tensor | None,
        past_key_values: Cache | None,
    ) -> dict[str, Tensor | None]:
        """The mask of each kind of layer; made ahead by `generate` when it decodes with a static cache."""
        if isinstance(attention_mask, dict):
            return attention_mask
        given = {
            "config": self.config,
            "inputs_embeds": hidden_BTD,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        masks: dict[str, Tensor | None] = {MAMBA: padding_mask(attention_mask, hidden_BTD.shape[1])}
        if self.llama_config is not None:
            # Llama blocks read the choice of attention kernel from their own configuration.
            if self.llama_config._attn_implementation != self.config._attn_implementation:
                self.llama_config._attn_implementation = self.config._attn_implementation
            masks[LLAMA] = create_causal_mask(**given)
        return masks


class LlambaForCausalLM(LlambaPreTrainedModel, GenerationMixin):
    """Llamba, or a hybrid of Llamba and Llama, with its language-model head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "backbone.embedding.weight"}

    def __init__(self, config: LlambaConfig) -> None:
        super().__init__(config)
        self.backbone = LlambaModel(config)
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=config.lm_head_bias)
        self.post_init()

    def project(self, hidden: Tensor) -> Tensor:
        """[..., D] normed hidden states -> [..., V] logits; without rows that only pad the vocabulary."""
        return self.lm_head(hidden)[..., : self.config.vocab_size]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V], of the last `logits_to_keep` positions only (0: all; a tensor: those indices).

        Arguments as `LlambaModel.forward`; `labels` [B, T], -100 where nothing is asked, adds the mean
        next-token cross entropy in nats as `loss`.
        """
        outputs = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.project(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """As transformers does it, but with a cache that knows its length where no layer is a Llama block."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if model_kwargs.get("past_key_values") is not None:
            accept_cache(model_kwargs["past_key_values"], self.config)


def new_cache(config: LlambaConfig) -> DynamicCache:
    """An empty cache for a model of this configuration, whichever of its layers are Llama blocks."""
    return DynamicCache(config=config) if config.attention_layers else LlambaCache(config)


def accept_cache(cache: Cache, config: LlambaConfig) -> None:
    """Check that a cache fits the model, and have it count tokens where no layer does.

    An empty cache becomes a LlambaCache in place, as it is its owner who goes on with it.

    Raises:
        ValueError: It was made without the model's configuration, or with another one.
    """
    kinds = [MAMBA if hasattr(layer, "recurrent_states") else LLAMA for layer in cache.layers]
    kinds += [LLAMA] * (config.n_layer - len(kinds))  # layers that a cache makes when they are needed keep keys
    if kinds != config.layer_types:
        kind = "StaticCache" if isinstance(cache, StaticCache) else "DynamicCache"
        raise ValueError(f"past_key_values does not fit this model's layers; give {kind}(config=model.config)")
    if config.attention_layers or isinstance(cache, LlambaCache) or torch.compiler.is_compiling():
        return
    if not cache.has_previous_state():
        static = isinstance(cache, StaticCache)
        cache.__class__ = LlambaCache
        cache.is_compileable = static


def padding_mask(attention_mask: Tensor | None, tokens: int) -> Tensor | None:
    """[B, T] mask of the last T = `tokens` positions of [B, past + T]; None where none of them is padding."""
    if attention_mask is None or attention_mask.ndim != 2:
        return None
    own_BT = attention_mask[:, -tokens:]
    return None if not is_tracing(own_BT) and bool((own_BT == 1).all()) else own_BT


__all__ = ["LlambaBlock", "LlambaForCausalLM", "LlambaMixer", "LlambaModel", "new_cache"]
