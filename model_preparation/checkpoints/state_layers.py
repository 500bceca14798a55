"""Makes the layers of a model those of a state dict, before it is loaded: which are Llama blocks, which Mamba-2.

The names of the tensors tell; see `saved_model.follow_layers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub.errors import StrictDataclassError

from model_preparation.saved_model import LAYERS_KEY
from models.configuration_llamba import LLAMA, MAMBA, LlambaConfig
from models.loading import empty_model
from models.weights import one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.modeling_llamba import LlambaForCausalLM

_PARTS = {"self_attn": LLAMA, "mixer": MAMBA}
"""What only a block of that kind has."""


def take_on_layers(
    module: nn.Module,
    state: Mapping[str, Tensor],
    prefix: str,
    metadata: Mapping[str, Any],
    *_: Any,
    known_cfg: Mapping[str, Any] | None,
) -> None:
    """Replace the layers that are of another kind in the state dict; for `register_load_state_dict_pre_hook`.

    Of a new layer, what the state dict lacks is 0; torch itself then says so unless loading is not strict.

    Raises:
        RuntimeError: the layers' shapes are not the model's, or unknown; the model is then as it was.
    """
    model = cast("LlambaForCausalLM", module)
    old: LlambaConfig = model.config
    kinds = layer_kinds(state, f"{prefix}backbone.layers.", old.layer_types)
    about = metadata.get(LAYERS_KEY)
    told = about.get("attention_cfg") if isinstance(about, dict) else None
    attention_cfg = (told or old.attention_cfg or known_cfg) if LLAMA in kinds else old.attention_cfg
    reshaped = attention_cfg != old.attention_cfg
    changed = [i for i, kind in enumerate(kinds) if kind != old.layer_types[i] or (reshaped and kind == LLAMA)]
    if not changed:
        return
    config = _changed_config(old, kinds, attention_cfg)
    shaped = empty_model(config, model.backbone.embedding.weight.device)
    for i in changed:
        _check_shapes(shaped.backbone.layers[i], state, f"{prefix}backbone.layers.{i}.")
    for i in changed:
        model.backbone.layers[i] = _as_memory(shaped.backbone.layers[i], model.backbone.layers[i])
    for layer in model.backbone.layers:
        attention = getattr(layer, "self_attn", None)
        if attention is not None:  # Llama blocks read the choice of attention kernel from one configuration
            attention.config = shaped.backbone.llama_config
    model.config = model.backbone.config = config
    model.backbone.llama_config = shaped.backbone.llama_config
    model.backbone.rotary_emb = shaped.backbone.rotary_emb


def layer_kinds(names: Iterable[str], prefix: str, present: Sequence[str]) -> list[str]:
    """The kind of each layer by the names of tensors, such as `<prefix>3.self_attn.q_proj.weight`.

    Layers of which there is no tensor that tells stay what they are at present.
    """
    kinds = list(present)
    for name in names:
        number, _, rest = name.removeprefix(prefix).partition(".")
        kind = _PARTS.get(rest.partition(".")[0])
        if kind and name.startswith(prefix) and number.isdecimal() and int(number) < len(kinds):
            kinds[int(number)] = kind
    return kinds


def _changed_config(old: LlambaConfig, kinds: list[str], attention_cfg: Mapping[str, Any] | None) -> LlambaConfig:
    layers = ", ".join(str(i) for i, kind in enumerate(kinds) if kind == LLAMA)
    if layers and attention_cfg is None:
        raise RuntimeError(
            f"layers {layers} of this state dict are Llama blocks, and nothing says how many heads they have: load "
            "model_state_dict.pt as torch.load gives it, or have the donor of the pair on this machine"
        )
    fields = old.to_dict() | {"layer_types": kinds, "attention_cfg": attention_cfg}
    try:
        config = LlambaConfig(**fields)
        if layers:
            config.llama_config()
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        what = f"this state dict describes Llama blocks that cannot be: {one_line(error)}"
        raise RuntimeError(f"{what}; make the checkpoint again") from error
    config._attn_implementation = old._attn_implementation
    return config


def _check_shapes(layer: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    for name, tensor in layer.state_dict().items():
        found = state.get(prefix + name)
        if found is not None and found.shape != tensor.shape:
            raise RuntimeError(
                f"{prefix}{name} of this state dict has shape {list(found.shape)}, the model's is "
                f"{list(tensor.shape)}; give files that belong together"
            )


def _as_memory(layer: nn.Module, pattern: nn.Module) -> nn.Module:
    """A layer that takes no memory yet as one of zeros, where and of what dtype `pattern` is."""
    like: Tensor = next(pattern.parameters())
    layer = layer.to(like.dtype).to_empty(device=like.device).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.zero_()
    return layer.train(pattern.training).requires_grad_(like.requires_grad)
