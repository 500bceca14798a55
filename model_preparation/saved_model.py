"""`model.pt` and `model_state_dict.pt`: a hybrid in PyTorch's own format, loadable in the documented ways.

`model.pt` holds a configuration, generation settings and tensors, and one call that puts them together. To
pickle the module itself would tie the file to the private classes of one transformers version, and since
torch 2.6 `torch.load(path)` refuses it. Here the only thing to allow is `rebuild`, which builds this one
architecture and nothing else, so allowing it is safe. pyproject.toml has PyTorch call
`allow_in_weights_only_load` at the end of `import torch` (the entry points of group `torch.backends`), hence
this is all that is needed:

    import torch
    model = torch.load("model.pt")

`model_state_dict.pt` tells by the names of its tensors which layers are Llama blocks, and in its metadata what shape
those have. A model that went through `follow_layers` takes on its layers when it loads the file.

This module imports nothing of ours until a function is called: it is part of `import torch`, also in programs
whose own package `models` hides ours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from models.configuration_llamba import LlambaConfig
    from models.modeling_llamba import LlambaForCausalLM

LAYERS_KEY = "llamba_layers"
"""In the metadata of a state dict: the fields of the configuration that are about Llama blocks."""

_GENERAL_FIELDS = {"torch_dtype", "transformers_version", "use_bfloat16"}
"""Of transformers' configurations in general, which one of its versions writes and another does not know."""


def allow_in_weights_only_load() -> None:
    """Let `torch.load` with its default `weights_only=True` call `rebuild`."""
    import torch

    torch.serialization.add_safe_globals([rebuild])


def rebuild(
    config: Mapping[str, Any], generation: Mapping[str, Any], state: Mapping[str, Tensor], *newer: Any
) -> LlambaForCausalLM:
    """Put a model together from what `model.pt` holds; its tensors are used as they are, not copied.

    Args:
        config: Of the model, as `to_dict` gives it.
        generation: Its generation settings, likewise.
        state: Its tensors by name.
        newer: What later versions may add.

    Raises:
        ModelError: if a later version of this project wrote the file.
        RuntimeError: if the tensors do not fit the configuration.
    """
    from transformers import GenerationConfig

    from models.configuration_llamba import LlambaConfig
    from models.errors import ModelError
    from models.loading import empty_model

    # "_"-fields could name attention code on a hub; the file must not choose what is run.
    fields = {name: value for name, value in config.items() if not name.startswith("_") and name != "auto_map"}
    unknown = sorted(fields.keys() - LlambaConfig().to_dict().keys() - _GENERAL_FIELDS)
    if unknown or newer:
        what = f"its configuration has {', '.join(unknown)}" if unknown else "it holds more than is known here"
        raise ModelError(
            f"this model.pt was written by a newer version ({what}); update GA Layer Search, or load its folder with "
            "AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)"
        )
    model = empty_model(LlambaConfig(**fields), next(iter(state.values())).device)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig.from_dict(dict(generation))
    return model.eval()


class _Whole:
    """What `torch.save` writes as one call of `rebuild`."""

    def __init__(self, config: Mapping[str, Any], generation: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        # What hubs or other versions of transformers add to a configuration shapes nothing, and `rebuild` would
        # take it for something that a newer version of this project needs.
        own = _own_fields()
        kept = {name: value for name, value in config.items() if name in own}
        self._arguments = (kept, dict(generation), state)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return rebuild, self._arguments


def _own_fields() -> set[str]:
    """The fields of a configuration that are Llamba's own, and what it shares with all models that matters here."""
    from inspect import get_annotations

    from models.configuration_llamba import LlambaConfig

    return {*get_annotations(LlambaConfig), "dtype", "architectures"}


def whole(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Callable[[Mapping[str, Tensor]], Any]:
    """What makes of a model's tensors the object that is pickled as `model.pt`.

    Args:
        config: Of the model, as `to_dict` gives it.
        generation: Its generation settings, likewise.
    """
    return lambda state: _Whole(config, generation, state)


def labelled(config: LlambaConfig) -> Callable[[Mapping[str, Tensor]], OrderedDict[str, Tensor]]:
    """What makes of a model's tensors the state dict that is pickled as `model_state_dict.pt`."""
    about = {"layer_types": list(config.layer_types), "attention_cfg": config.attention_cfg}

    def label(tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        state = OrderedDict(tensors)
        state._metadata = OrderedDict({"": {"version": 1, LAYERS_KEY: about}})  # type: ignore[attr-defined]
        return state

    return label


def follow_layers(model: LlambaForCausalLM, attention_cfg: Mapping[str, Any] | None = None) -> LlambaForCausalLM:
    """Have `model.load_state_dict` take on the layers of a state dict before it loads them.

    A layer becomes a Llama block where the state dict has `backbone.layers.<i>.self_attn...`, a Mamba-2 block where it
    has `...mixer...`, and else stays what it is. The shape of Llama blocks is that of the state dict's metadata, which
    `dict(state)` and safetensors lose; else that of the model's own; else `attention_cfg`.

    Args:
        model: Its layers may be of both kinds.
        attention_cfg: As in LlambaConfig: the donor's, for a model that has no Llama blocks yet.
    """
    from functools import partial

    from model_preparation.checkpoints.state_layers import take_on_layers

    model.register_load_state_dict_pre_hook(partial(take_on_layers, known_cfg=attention_cfg))
    return model
