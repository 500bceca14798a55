"""Configuration of Llamba and of its hybrids with Llama: fields of hub checkpoints plus which layer is which.

Travels with checkpoints as `trust_remote_code` code, so it imports nothing but transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Any, ClassVar

from transformers import LlamaConfig
from transformers.configuration_utils import PreTrainedConfig

MAMBA = "linear_attention"
"""transformers' name for a layer that keeps a fixed-size state: here a discrete Mamba-2 block."""
LLAMA = "full_attention"
"""transformers' name for a layer that keeps all keys and values: here a Llama decoder block."""

SSM_DEFAULTS: dict[str, Any] = {
    "d_state": 64,
    "n_v_heads": 32,
    "n_qk_heads": 32,
    "d_conv": 4,
    "expand": 1,
    "chunk_size": 128,
    "activation": "identity",
    "bias": False,
    "conv_bias": True,
}
MLP_DEFAULTS: dict[str, Any] = {"intermediate_size": 14336, "bias": False, "act_fn": "silu"}

ATTENTION_FIELDS = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_parameters",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "intermediate_size",
    "max_position_embeddings",
)
"""What `attention_cfg` takes from the donor's configuration: all that shapes a Llama block but its width."""

ACTIVATIONS = ("identity", "silu", "swish")
_MOST = 1 << 24
"""Of any size; more is damage, and would take all memory before anything else refused it."""


class LlambaConfig(PreTrainedConfig):
    """Shape of a Llamba model in which any layer may be a Llama decoder block.

    Fields are those of hub checkpoints (`vocab_size` ... `ssm_cfg`); without `layer_types` it is pure Llamba.
    Raises ValueError naming the field that does not fit.
    """

    model_type = "llamba"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "tie_word_embeddings": "tie_embeddings",
    }

    vocab_size: int = 128256
    """Tokens the tokenizer knows; the embedding has as many rows, rounded up to `pad_vocab_size_multiple`."""
    d_model: int = 4096
    n_layer: int = 32
    tie_embeddings: bool = False
    pad_vocab_size_multiple: int = 8
    lm_head_bias: bool = False
    norm_epsilon: float = 1e-5
    mlp_cfg: dict[str, Any] = field(default_factory=dict)
    """Of a Mamba-2 block: intermediate_size, bias, act_fn."""
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    """Mixer: d_state, n_v_heads, n_qk_heads, expand, chunk_size, activation (identity or silu), bias."""
    layer_types: list[str] = field(default_factory=list)
    """Per layer `linear_attention` (discrete Mamba-2) or `full_attention` (Llama); all Mamba-2 when empty."""
    attention_cfg: dict[str, Any] | None = None
    """Of the Llama blocks: the fields in ATTENTION_FIELDS, under their names in LlamaConfig."""
    max_position_embeddings: int = 131072
    """Longest text in tokens the model was made for; nothing here enforces it."""
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("vocab_size", "d_model", "n_layer", "pad_vocab_size_multiple"):
            _check_positive(name, getattr(self, name), 4096 if name == "n_layer" else _MOST)
        self.mlp_cfg = MLP_DEFAULTS | _as_dict("mlp_cfg", self.mlp_cfg)
        self.ssm_cfg = SSM_DEFAULTS | _as_dict("ssm_cfg", self.ssm_cfg)
        self.layer_types = list(self.layer_types or [MAMBA] * self.n_layer)
        if self.attention_cfg is not None:
            self.attention_cfg = _as_dict("attention_cfg", self.attention_cfg)
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim"):
            kwargs.pop(name, None)  # derived here; a file may hold what other tools wrote
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        ssm, types = self.ssm_cfg, self.layer_types
        if not isinstance(self.norm_epsilon, float) or not self.norm_epsilon > 0:
            raise ValueError(f"norm_epsilon must be a number above 0, got {self.norm_epsilon!r}")
        _check_positive("mlp_cfg.intermediate_size", self.mlp_cfg["intermediate_size"])
        for name in ("d_state", "n_v_heads", "n_qk_heads", "d_conv", "expand", "chunk_size"):
            _check_positive(f"ssm_cfg.{name}", ssm[name])
        if self.d_inner % ssm["n_v_heads"]:
            raise ValueError(f"ssm_cfg.n_v_heads {ssm['n_v_heads']} does not divide the inner width {self.d_inner}")
        if ssm["n_v_heads"] % ssm["n_qk_heads"]:
            raise ValueError(f"ssm_cfg.n_qk_heads {ssm['n_qk_heads']} does not divide n_v_heads {ssm['n_v_heads']}")
        if ssm["activation"] not in ACTIVATIONS:
            raise ValueError(f"ssm_cfg.activation {ssm['activation']!r} is not one of {', '.join(ACTIVATIONS)}")
        if unknown := set(types) - {MAMBA, LLAMA}:
            raise ValueError(f"layer_types holds {sorted(unknown)}; each must be {MAMBA!r} or {LLAMA!r}")
        if len(types) != self.n_layer:
            raise ValueError(f"layer_types has {len(types)} entries, n_layer is {self.n_layer}")
        if LLAMA in types and self.attention_cfg is None:
            raise ValueError(f"layer_types holds {LLAMA!r}, so attention_cfg must give the Llama blocks' fields")

    @property
    def d_inner(self) -> int:
        """Width inside the mixer: all value heads together."""
        return int(self.ssm_cfg["expand"] * self.d_model)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the head."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    @property
    def num_attention_heads(self) -> int:
        """Query heads of the Llama blocks; of the mixers where there are none (generic tools ask for it)."""
        return int((self.attention_cfg or {}).get("num_attention_heads", self.ssm_cfg["n_v_heads"]))

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads of the Llama blocks."""
        return int((self.attention_cfg or {}).get("num_key_value_heads") or self.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return int((self.attention_cfg or {}).get("head_dim") or self.d_model // self.num_attention_heads)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers that run a Llama block, increasing."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == LLAMA)

    def llama_config(self) -> LlamaConfig:
        """The configuration transformers' own Llama blocks are built from."""
        if self.attention_cfg is None:
            raise ValueError("attention_cfg is missing: this configuration has no Llama blocks")
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.d_model,
            num_hidden_layers=self.n_layer,
            attn_implementation=self._attn_implementation,
            **self.attention_cfg,
        )

    def with_attention(self, indices: Iterable[int], donor: LlamaConfig | None = None) -> LlambaConfig:
        """A copy in which exactly the layers `indices` run Llama blocks, shaped like `donor`'s if given."""
        chosen = set(indices)
        fields = self.to_dict()
        fields["layer_types"] = [LLAMA if i in chosen else MAMBA for i in range(self.n_layer)]
        if outside := sorted(i for i in chosen if not 0 <= i < self.n_layer):
            raise ValueError(f"layer {outside[0]} is outside 0..{self.n_layer - 1}")
        if donor is not None:
            fields["attention_cfg"] = attention_fields(donor)
        return type(self)(**fields)


def attention_fields(donor: LlamaConfig) -> dict[str, Any]:
    """What `attention_cfg` keeps of a Llama configuration."""
    return {name: getattr(donor, name) for name in ATTENTION_FIELDS}


def _as_dict(name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {value!r}")
    return dict(value)


def _check_positive(name: str, value: Any, most: int = _MOST) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if value > most:
        raise ValueError(f"{name} must be a whole number of at most {most}, got {value!r}")
