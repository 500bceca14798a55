"""Models from local folders: configurations, a base with its weights, single donor layers.

Everything a folder can have wrong with it becomes one ModelError that names the file. No network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from models.configuration_llamba import LlambaConfig
from models.errors import ModelError
from models.layer_files import donor_layer_files, layer_file, read_fields
from models.modeling_llamba import LlambaForCausalLM
from models.weights import WeightFile, one_line, read_tensors, tensor_files


@contextmanager
def described_by(folder: str | Path, what: str) -> Iterator[None]:
    """For a body that builds something from config.json: say so where that cannot be.

    Raises:
        ModelError: The body raises anything, as transformers does of values that it does not check.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{Path(folder) / 'config.json'} does not describe {what}: {one_line(error)}") from error


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
        with described_by(folder, "Llama blocks in attention_cfg"):
            llama = config.llama_config()
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
    fields = read_fields(folder, kind.model_type, required)
    with described_by(folder, f"a {kind.model_type!r} model"):
        return kind(**fields)


def _check_llama(folder: str | Path, config: LlamaConfig) -> None:
    _check_known(folder, "hidden_act", config.hidden_act, ACT2FN)
    with described_by(folder, "Llama blocks"):
        _check_known(folder, "rope_type", config.rope_parameters["rope_type"], {"default", *ROPE_INIT_FUNCTIONS})
        with torch.device("meta"):
            LlamaDecoderLayer(config, 0)
        LlamaRotaryEmbedding(config)


def _check_known(folder: str | Path, name: str, value: Any, known: Collection[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ModelError(f"{Path(folder) / 'config.json'}: {name} {value!r} is not known to transformers")


def check_pair(base: LlambaConfig, donor: LlamaConfig) -> None:
    """Check that base and donor are of one shape, so that a layer of one can stand for a layer of the other.

    Raises:
        ModelError: They are not; names every field that differs, with the base's value and the donor's.
    """
    fields = {
        "hidden_size": (base.d_model, donor.hidden_size),
        "num_hidden_layers": (base.n_layer, donor.num_hidden_layers),
        "vocab_size": (base.vocab_size, donor.vocab_size),
        "intermediate_size of the MLP": (base.mlp_cfg["intermediate_size"], donor.intermediate_size),
    }
    # A layer keeps its own epsilon, so that another one is no fault by itself: it is named as a hint.
    hints = {"epsilon of the norms": (base.norm_epsilon, donor.rms_norm_eps)}
    if any(ours != theirs for ours, theirs in fields.values()):
        told = [f"{name} {a} and {b}" for name, (a, b) in (fields | hints).items() if a != b]
        raise ModelError(f"base and donor differ in {', '.join(told)}; give the Llama model the base was made from")


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
    with described_by(folder, "a model that can be built"):
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
        check_tensor(name, tensor.shape, expected, source)
        state[name] = tensor.to(device=device, dtype=dtype)
    tied = getattr(module, "all_tied_weights_keys", {})
    if missing := [name for name in expected if name not in state and name not in tied]:
        count = f"{len(missing)} of {len(expected)} tensors"
        raise ModelError(f"{source} lacks {missing[0]} ({count}); download or extract it again")
    module.load_state_dict(state, strict=False, assign=True)


def check_tensor(name: str, shape: torch.Size, expected: Mapping[str, torch.Size], source: str) -> None:
    """Check that a model has a place for a tensor; `expected` holds the shapes of all its tensors.

    Raises:
        ModelError: It has none, or one of another shape; names the tensor and `source`.
    """
    if name not in expected:
        raise ModelError(f"{source} holds a tensor {name!r} that its configuration has no place for")
    if shape != expected[name]:
        shapes = f"{list(shape)}, its configuration asks for {list(expected[name])}"
        raise ModelError(f"{source}: {name} has shape {shapes}; give files that belong together")


def finish(model: LlambaForCausalLM) -> LlambaForCausalLM:
    """A filled model, ready to run: tied weights tied, evaluation mode, no gradients."""
    model.tie_weights()
    return model.eval().requires_grad_(False)


def load_donor_layer_state(folder: str | Path, i: int) -> dict[str, Tensor]:
    """The weights of one Llama decoder layer under their names in it ('self_attn.q_proj.weight', ...).

    Reads that layer's tensors only, in the dtype they are stored in.

    Raises:
        ModelError: As `donor_layer_files`.
    """
    files = donor_layer_files(folder, i)
    names = {whole: name for name, (whole, _) in files.items()}
    return {names[whole]: tensor for whole, tensor in read_tensors(dict(files.values()))}


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
