"""Llamba in pure PyTorch, any of whose layers may be a Llama decoder block; transformers 5 conventions.

The recurrence is in `scan.py`; tensor names are those of hub checkpoints, so real weights load as they are.
Travels with checkpoints as `trust_remote_code` code, so it imports only torch, transformers and neighbours.

Shapes: B batch, T tokens, D model width, V vocabulary, I inner width (all value heads), H value heads, P head
width, Q query/key heads, N state, C channels of the convolution (I + 2 Q N), W width of its kernel.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_recurrent_attention_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_llamba import LLAMA, MAMBA, LlambaConfig
from .scan import chunked_scan


class LlambaCache(DynamicCache):
    """A DynamicCache that knows its length even where no layer keeps keys.

    transformers reads the length off the first attention layer and raises when there is none; `generate` asks
    for it in every case.
    """

    def __init__(self, config: LlambaConfig) -> None:
        super().__init__(config=config)
        self._seen = 0

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Tensor:
        if layer_idx == 0:
            self._seen += conv_states.shape[-1]
        return super().update_conv_state(conv_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._seen

    def reset(self) -> None:
        super().reset()
        self._seen = 0

    @property
    def is_compileable(self) -> bool:
        # The running count would be a new constant, hence a new compilation, at every token.
        return False


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


class LlambaMixer(nn.Module):
    """Discrete Mamba-2 mixer: decay straight from the input, no separate step size.

    Source: Bick et al., "Llamba: Scaling Distilled Recurrent Models for Efficient Language Processing"
    (arXiv:2502.14458).
    """

    def __init__(self, config: LlambaConfig, layer_idx: int) -> None:
        super().__init__()
        ssm = config.ssm_cfg
        self.layer_idx = layer_idx
        self.heads, self.groups, self.states = ssm["n_v_heads"], ssm["n_qk_heads"], ssm["d_state"]
        self.inner = config.d_inner
        self.channels = self.inner + 2 * self.groups * self.states
        self.kernel, self.chunk_size = ssm["d_conv"], ssm["chunk_size"]
        self.silu_after_conv = ssm["activation"] != "identity"
        bias = ssm["bias"]
        self.in_proj = nn.Linear(config.d_model, self.channels + self.inner + self.heads, bias=bias)
        # Holds the weights under their hub names; `_convolve` computes without its forward.
        self.conv1d = nn.Conv1d(self.channels, self.channels, self.kernel, groups=self.channels, bias=ssm["conv_bias"])
        # With a bias in in_proj the gate has one already; hub checkpoints then hold no z_bias.
        self.z_bias = None if bias else nn.Parameter(torch.zeros(self.inner))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.out_proj = nn.Linear(self.inner, config.d_model, bias=bias)

    def forward(self, hidden_BTD: Tensor, cache: Cache | None = None, padding_mask_BT: Tensor | None = None) -> Tensor:
        """Mix along time.

        Args:
            hidden_BTD: Normed hidden states.
            cache: Continued from and updated in place when given.
            padding_mask_BT: 1 at tokens, 0 at padding of these T positions; padding leaves the state alone.

        Returns:
            [B, T, D], to be added to the residual stream.
        """
        widths = [self.channels, self.inner, self.heads]
        xbc_BTC, z_BTI, a_BTH = self.in_proj(hidden_BTD).split(widths, dim=-1)
        g_BTH = -F.softplus(a_BTH.float())
        if padding_mask_BT is not None:
            mask_BT1 = padding_mask_BT.unsqueeze(-1)
            xbc_BTC = xbc_BTC * mask_BT1.to(xbc_BTC.dtype)
            g_BTH = g_BTH * mask_BT1.to(g_BTH.dtype)
        state = None
        if cache is not None and cache.has_previous_state(self.layer_idx):  # before the convolution sets it
            state = cache.layers[self.layer_idx].recurrent_states[0]
        xbc_BTC = self._convolve(xbc_BTC, cache)
        x_BTI, b, c = xbc_BTC.split([self.inner] + 2 * [self.groups * self.states], dim=-1)
        if padding_mask_BT is not None:  # the convolution's bias must not enter the state either
            x_BTI = x_BTI * mask_BT1.to(x_BTI.dtype)
        x_BTHP = x_BTI.unflatten(-1, (self.heads, -1))
        b_BTQN, c_BTQN = (part.unflatten(-1, (self.groups, self.states)) for part in (b, c))
        y_BTHP, last_BHNP = chunked_scan(
            x_BTHP, g_BTH, b_BTQN, c_BTQN, chunk_size=self.chunk_size, initial_state_BHNP=state
        )
        if cache is not None:
            cache.update_recurrent_state(last_BHNP, self.layer_idx)
        y_BTI = (y_BTHP + self.D.float().unsqueeze(-1) * x_BTHP).flatten(-2)
        gate_BTI = z_BTI.float() if self.z_bias is None else z_BTI + self.z_bias.float()
        return self.out_proj((y_BTI * F.silu(gate_BTI)).to(hidden_BTD.dtype))

    def _convolve(self, xbc_BTC: Tensor, cache: Cache | None) -> Tensor:
        """Causal depthwise convolution and activation in float32, as W shifted products.

        Beside nn.Conv1d this needs no transposes and takes a third of the time on a CPU.
        """
        tokens, past = xbc_BTC.shape[1], self.kernel - 1
        if cache is not None:
            window_BCT = cache.update_conv_state(xbc_BTC.transpose(1, 2), self.layer_idx, conv_kernel_size=self.kernel)
            xbc_BTC = window_BCT[..., -(tokens + past) :].transpose(1, 2)
        # At the start of a text there is less past than the kernel is wide.
        xbc_BTC = F.pad(xbc_BTC.float(), (0, 0, tokens + past - xbc_BTC.shape[1], 0))
        # Contiguous, as strided weights would not vectorise.
        weight_WC = self.conv1d.weight[:, 0].float().t().contiguous()
        out_BTC = xbc_BTC[:, :tokens] * weight_WC[0]
        if self.conv1d.bias is not None:
            out_BTC = out_BTC + self.conv1d.bias.float()
        for k in range(1, self.kernel):  # in place: no gradient needs the partial sums
            out_BTC.addcmul_(xbc_BTC[:, k : k + tokens], weight_WC[k])
        return F.silu(out_BTC) if self.silu_after_conv else out_BTC


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
        if use_cache and past_key_values is None:
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
        masks: dict[str, Tensor | None] = {MAMBA: create_recurrent_attention_mask(**given)}
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
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        made = model_kwargs.get("past_key_values")
        if self.config.attention_layers or made is None or isinstance(made, LlambaCache):
            return
        if given is not None:
            raise ValueError("no layer of this model keeps keys; give past_key_values=new_cache(model.config)")
        # States are of fixed size in any case, so this serves where a static cache was asked for too.
        model_kwargs["past_key_values"] = new_cache(self.config)


def new_cache(config: LlambaConfig) -> DynamicCache:
    """An empty cache for a model of this configuration, whichever of its layers are Llama blocks."""
    return DynamicCache(config=config) if config.attention_layers else LlambaCache(config)


__all__ = ["LlambaBlock", "LlambaForCausalLM", "LlambaMixer", "LlambaModel", "new_cache"]
