"""What a model folder tells without transformers: fields of its configuration, where its layers are, fingerprints.

Tools that copy weights start from this, as transformers takes seconds to import.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.weights import hash_file, read_json, tensor_files

_METADATA = "metadata.json"  # what extract_layers.py writes beside layers, with their SHA-256
_LAYER_PREFIXES = ("model.layers.", "layers.")  # of LlamaForCausalLM, of a bare LlamaModel
_NOT_WEIGHTS = ("rotary_emb.inv_freq",)  # derived numbers that old Llama files carry along
_SHAPELESS = ("transformers_version", "architectures", "auto_map", "_name_or_path", "dtype", "torch_dtype")


def read_fields(folder: str | Path, model_type: str, required: Iterable[str]) -> dict[str, Any]:
    """What config.json of a folder says; the values are not checked.

    Raises:
        ModelError: It is missing, not JSON, of another kind of model, or lacks a field.
    """
    path = Path(folder) / "config.json"
    fields = read_json(path)
    if (found := fields.get("model_type", model_type)) != model_type:
        raise ModelError(f"{path} describes a {found!r} model; give the folder of a {model_type!r} model")
    if missing := [name for name in required if name not in fields]:
        raise ModelError(f"{path} lacks {', '.join(missing)}; give the folder of a {model_type!r} model")
    return fields


def check_layers(indices: Iterable[int], depth: int) -> tuple[int, ...]:
    """The indices in increasing order.

    Raises:
        ModelError: One is outside 0..depth-1 or there twice.
    """
    given = list(indices)
    if outside := [i for i in given if not 0 <= i < depth]:
        raise ModelError(f"layer {outside[0]} does not exist; layers are 0 to {depth - 1}")
    if repeated := [i for i in given if given.count(i) > 1]:
        raise ModelError(f"layer {repeated[0]} is given more than once; name each layer once")
    return tuple(sorted(given))


def donor_layer_files(folder: str | Path, i: int) -> dict[str, tuple[str, Path]]:
    """Where the weights of one Llama decoder layer are: their names in it, in the model, and the files.

    Raises:
        ModelError: The folder's weights cannot be read or hold no layer `i`.
    """
    files = tensor_files(folder)
    for start in _LAYER_PREFIXES:
        prefix = f"{start}{i}."
        layer = {
            name.removeprefix(prefix): (name, path)
            for name, path in files.items()
            if name.startswith(prefix) and not name.endswith(_NOT_WEIGHTS)
        }
        if layer:
            return layer
    raise ModelError(f"{folder} holds no weights of layer {i}; give a Llama model of more than {i} layers")


def layer_file(layers_dir: str | Path, i: int) -> Path:
    """Where the extraction tool keeps layer `i`."""
    return Path(layers_dir) / f"layer_{i:02d}.pt"


def fingerprint(folder: str | Path) -> str:
    """16 hex digits that change when a model's weights or shape do, wherever its folder is.

    Takes well under a second for 16 GB: see `weights.hash_file`. Extracted layers have their SHA-256 on record in
    metadata.json, which counts as well.

    Raises:
        ModelError: The folder holds no readable model or extracted layers.
    """
    folder = Path(folder)
    fields = read_json(folder / "config.json")
    for name in _SHAPELESS:
        fields.pop(name, None)
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    layers = sorted(folder.glob("layer_*.pt"))
    for path in layers or sorted(set(tensor_files(folder).values())):
        digest.update(hash_file(path))
    if layers and (folder / _METADATA).is_file():
        files = read_json(folder / _METADATA).get("files")
        recorded = {path.name: files.get(path.name) for path in layers} if isinstance(files, dict) else {}
        digest.update(json.dumps(recorded, sort_keys=True).encode())
    return digest.hexdigest()[:16]
