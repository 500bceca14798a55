"""Models from local folders: configurations, a base with its weights, single donor layers.

Everything a folder can have wrong with it becomes one ModelError that names the file. No network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.configuration_llamba import LlambaConfig
from models.errors import ModelError
from models.modeling_llamba import LlambaForCausalLM
from models.weights import WeightFile, hash_file, one_line, read_json, read_tensors, tensor_files

_LAYER_PREFIXES = ("model.layers.", "layers.")  # of LlamaForCausalLM, of a bare LlamaModel
_NOT_WEIGHTS = ("rotary_emb.inv_freq",)  # derived numbers that old Llama files carry along
_SHAPELESS = ("transformers_version", "architectures", "auto_map", "_name_or_path", "dtype", "torch_dtype")
_CONFIG_FAULTS = (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError)


def register() -> None:
    """Let AutoConfig and AutoModelForCausalLM load Llamba folders in this process, without remote code."""
    AutoConfig.register(LlambaConfig.model_type, LlambaConfig, exist_ok=True)
    AutoModelForCausalLM.register(LlambaConfig, LlambaForCausalLM, exist_ok=True)


def read_llamba_config(folder: str | Path) -> LlambaConfig:
    """The configuration of a Llamba or hybrid folder.

    Raises:
        ModelError: config.json is missing, not JSON, of another kind of model, or holds an impossible value.
    """
    config = _read_config(folder, LlambaConfig, ("d_model", "n_layer", "vocab_size"))
    _check_known(folder, "mlp_cfg.act_fn", config.mlp_cfg["act_fn"], ACT2FN)
    if config.attention_layers:
        try:
            llama = config.llama_config()
        except _CONFIG_FAULTS as error:
            path = Path(folder) / "config.json"
            raise ModelError(f"{path}: attention_cfg does not describe Llama blocks: {one_line(error)}") from error
        _check_llama(folder, llama)
    return config


def read_llama_config(folder: str | Path) -> LlamaConfig:
    """The configuration of a donor's folder, or of a folder of extracted layers with the donor's config.json.

    Raises:
        ModelError: As `read_llamba_config`.
    """
    required = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    config = _read_config(folder, LlamaConfig, required)
    _check_llama(folder, config)
    return config


def _read_config(folder: str | Path, kind: type[Any], required: Iterable[str]) -> Any:
    path = Path(folder) / "config.json"
    fields = read_json(path)
    wanted = kind.model_type
    if (found := fields.get("model_type", wanted)) != wanted:
        raise ModelError(f"{path} describes a {found!r} model; give the folder of a {wanted!r} model")
    if missing := [name for name in required if name not in fields]:
        raise ModelError(f"{path} lacks {', '.join(missing)}; give the folder of a {wanted!r} model")
    try:
        return kind(**fields)
    except _CONFIG_FAULTS as error:
        raise ModelError(f"{path} does not describe a {wanted!r} model: {one_line(error)}") from error


def _check_llama(folder: str | Path, config: LlamaConfig) -> None:
    _check_known(folder, "hidden_act", config.hidden_act, ACT2FN)
    _check_known(folder, "rope_type", config.rope_parameters["rope_type"], {"default", *ROPE_INIT_FUNCTIONS})


def _check_known(folder: str | Path, name: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise ModelError(f"{Path(folder) / 'config.json'}: {name} {value!r} is not known to transformers")


def check_pair(base: LlambaConfig, donor: LlamaConfig) -> None:
    """Check that the donor's layers fit into the base.

    Raises:
        ModelError: They do not; names every field that differs.
    """
    differing = [
        f"{name} {ours} and {theirs}"
        for name, ours, theirs in (
            ("hidden_size", base.d_model, donor.hidden_size),
            ("num_hidden_layers", base.n_layer, donor.num_hidden_layers),
            ("vocab_size", base.vocab_size, donor.vocab_size),
        )
        if ours != theirs
    ]
    if differing:
        fields = ", ".join(differing)
        raise ModelError(f"base and donor differ in {fields}; give the Llama model the base was made from")


def load_base(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> LlambaForCausalLM:
    """A Llamba, or hybrid, model with its weights, in evaluation mode and without gradients.

    Peak memory is the model itself plus one tensor.

    Raises:
        ModelError: The folder, its configuration or its weights are not what they should be.
    """
    config = read_llamba_config(folder)
    files = tensor_files(folder)
    if config.tie_embeddings:
        files.pop("lm_head.weight", None)  # some tools write the shared tensor twice
    model = empty_model(config, device)
    fill(model, read_tensors(files), str(folder), dtype=dtype, device=device)
    return finish(model)


def empty_model(config: LlambaConfig, device: str | torch.device) -> LlambaForCausalLM:
    """A model whose weights take no memory until `fill` gives them; its rotary tables are real."""
    with torch.device("meta"):
        model = LlambaForCausalLM(config)
    if model.backbone.llama_config is not None:
        model.backbone.rotary_emb = LlamaRotaryEmbedding(model.backbone.llama_config).to(device)
    return model


def fill(
    module: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    source: str,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
) -> None:
    """Give a module its weights, cast and moved one by one; a tensor already as wanted is shared, not copied.

    Raises:
        ModelError: A tensor is missing, unknown or of another shape; names it and `source`.
    """
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name not in expected:
            raise ModelError(f"{source} holds a tensor {name!r} that its configuration has no place for")
        if tensor.shape != expected[name]:
            shapes = f"{list(tensor.shape)}, its configuration asks for {list(expected[name])}"
            raise ModelError(f"{source}: {name} has shape {shapes}; give files that belong together")
        state[name] = tensor.to(device=device, dtype=dtype)
    tied = getattr(module, "all_tied_weights_keys", {})
    if missing := [name for name in expected if name not in state and name not in tied]:
        count = f"{len(missing)} of {len(expected)} tensors"
        raise ModelError(f"{source} lacks {missing[0]} ({count}); download or extract it again")
    module.load_state_dict(state, strict=False, assign=True)


def finish(model: LlambaForCausalLM) -> LlambaForCausalLM:
    """A filled model, ready to run: tied weights tied, evaluation mode, no gradients."""
    model.tie_weights()
    return model.eval().requires_grad_(False)


def load_donor_layer_state(folder: str | Path, i: int) -> dict[str, Tensor]:
    """The weights of one Llama decoder layer under their names in it ('self_attn.q_proj.weight', ...).

    Reads that layer's tensors only, in the dtype they are stored in.

    Raises:
        ModelError: The folder's weights cannot be read or hold no layer `i`.
    """
    files = tensor_files(folder)
    for start in _LAYER_PREFIXES:
        prefix = f"{start}{i}."
        layer = {
            name: path for name, path in files.items() if name.startswith(prefix) and not name.endswith(_NOT_WEIGHTS)
        }
        if layer:
            return {name.removeprefix(prefix): tensor for name, tensor in read_tensors(layer)}
    raise ModelError(f"{folder} holds no weights of layer {i}; give a Llama model of more than {i} layers")


def layer_file(layers_dir: str | Path, i: int) -> Path:
    """Where the extraction tool keeps layer `i`."""
    return Path(layers_dir) / f"layer_{i:02d}.pt"


def load_layer_file(layers_dir: str | Path, i: int) -> dict[str, Tensor]:
    """As `load_donor_layer_state`, from a folder of extracted layers.

    Raises:
        ModelError: The file is missing, cut short, or not a dictionary of tensors.
    """
    path = layer_file(layers_dir, i)
    if not path.is_file():
        raise ModelError(f"{path} is missing; extract the layers with model_preparation/extract_layers.py")
    with WeightFile(path) as weights:
        return {name: weights[name] for name in weights.names}


def fingerprint(folder: str | Path) -> str:
    """16 hex digits that change when a model's weights or shape do, wherever its folder is.

    Takes well under a second for 16 GB: see `weights.hash_file`.

    Raises:
        ModelError: The folder holds no readable model or extracted layers.
    """
    folder = Path(folder)
    fields = read_json(folder / "config.json")
    for name in _SHAPELESS:
        fields.pop(name, None)
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for path in sorted(folder.glob("layer_*.pt")) or sorted(set(tensor_files(folder).values())):
        digest.update(hash_file(path))
    return digest.hexdigest()[:16]
