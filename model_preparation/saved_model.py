"""`model.pt` and `model_state_dict.pt`: a hybrid in PyTorch's own format, loadable in the documented ways.

`model.pt` holds a configuration, generation settings and tensors, and one call that puts them together. To
pickle the module itself would tie the file to the private classes of one transformers version, and since
torch 2.6 `torch.load(path)` refuses it. Here the only thing to allow is `rebuild`, which builds this one
architecture and nothing else, so allowing it is safe. pyproject.toml has PyTorch call
`allow_in_weights_only_load` at the end of `import torch` (the entry points of group `torch.backends`), hence
this is all that is needed:

    import torch
    model = torch.load("model.pt")

`model_state_dict.pt` says in its metadata which layers are Llama blocks, and a base that went through
`follow_layers` takes those on when it loads the file.

This module imports nothing of ours until a function is called: it is part of `import torch`, also in programs
whose own package `models` hides ours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.modeling_llamba import LlambaForCausalLM

LAYERS_KEY = "llamba_layers"
"""In the metadata of a state dict: the fields of the configuration that say which layer is which."""


def allow_in_weights_only_load() -> None:
    """Let `torch.load` with its default `weights_only=True` call `rebuild`."""
    import torch

    torch.serialization.add_safe_globals([rebuild])


def rebuild(config: Mapping[str, Any], generation: Mapping[str, Any], state: Mapping[str, Tensor]) -> LlambaForCausalLM:
    """Put a model together from what `model.pt` holds; its tensors are used as they are, not copied.

    Raises:
        RuntimeError: if the tensors do not fit the configuration.
    """
    from transformers import GenerationConfig

    from models.configuration_llamba import LlambaConfig
    from models.loading import empty_model

    # "_"-fields could name attention code on a hub; the file must not choose what is run.
    fields = {name: value for name, value in config.items() if not name.startswith("_") and name != "auto_map"}
    model = empty_model(LlambaConfig(**fields), next(iter(state.values())).device)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig.from_dict(dict(generation))
    return model.eval()


class _Whole:
    """What `torch.save` writes as one call of `rebuild`."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return rebuild, self._arguments


def save_whole(model: LlambaForCausalLM, path: Path) -> None:
    """Write `model.pt`, which `torch.load` opens as a model. Tensors are written as lying on the CPU."""
    from model_preparation.files import save_tensors

    config = model.config.to_dict()
    save_tensors(_Whole(config, model.generation_config.to_dict(), _cpu_state(model)), path)


def save_state(model: LlambaForCausalLM, path: Path) -> None:
    """Write `model_state_dict.pt`: tensors by name, and in the metadata which layers are Llama blocks."""
    from model_preparation.files import save_tensors

    state = _cpu_state(model)
    config = model.config
    about = {"layer_types": list(config.layer_types), "attention_cfg": config.attention_cfg}
    state._metadata = OrderedDict({"": {"version": 1, LAYERS_KEY: about}})  # type: ignore[attr-defined]
    save_tensors(state, path)


def follow_layers(model: LlambaForCausalLM) -> LlambaForCausalLM:
    """Have `model.load_state_dict` take on the layers of a `model_state_dict.pt` before it loads them."""
    model.register_load_state_dict_pre_hook(_take_on_layers)
    return model


def _cpu_state(model: LlambaForCausalLM) -> OrderedDict[str, Tensor]:
    return OrderedDict((name, tensor.detach().cpu()) for name, tensor in model.state_dict().items())


def _take_on_layers(
    module: nn.Module, state: Mapping[str, Tensor], prefix: str, metadata: Mapping[str, Any], *_: Any
) -> None:
    model = cast("LlambaForCausalLM", module)
    about = metadata.get(LAYERS_KEY)
    if about is None or about["layer_types"] == model.config.layer_types:
        return
    from models.configuration_llamba import LlambaConfig
    from models.loading import empty_model

    changed = [i for i, kind in enumerate(about["layer_types"]) if kind != model.config.layer_types[i]]
    config = LlambaConfig(**(model.config.to_dict() | about))
    pattern = next(model.parameters())
    shaped = empty_model(config, pattern.device)
    for i in changed:
        layer = shaped.backbone.layers[i].to(pattern.dtype).to_empty(device=pattern.device)
        model.backbone.layers[i] = layer.train(model.training).requires_grad_(pattern.requires_grad)
    model.config = model.backbone.config = config
    model.backbone.llama_config = shaped.backbone.llama_config
    model.backbone.rotary_emb = shaped.backbone.rotary_emb
