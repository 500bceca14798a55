"""Configurations, weight files and indices of a model folder, damaged in every way: a model, or one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from models.errors import ModelError
from models.layer_files import donor_layer_files, fingerprint, layer_file
from models.loading import load_base, load_donor_layer_state, load_layer_file, read_llama_config
from models.modeling_llamba import LlambaForCausalLM
from models.pairs import get_pair
from models.weights import WeightFile
from tests.fuzzing import (
    NESTED,
    Damage,
    Refused,
    altered_json,
    altered_yaml,
    always,
    damaged,
    damaged_json,
    damaged_safetensors,
    fuzz,
    put,
    read,
    spelled,
)

Folders = tuple[Path, Path]


@pytest.fixture
def folders(tmp_path: Path, llamba_config: Any, llama_config: Any) -> Folders:
    """A hybrid of two layers, whose layer 1 is the donor's, and a donor, each a few kilobytes."""
    small = {"vocab_size": 11, "d_model": 8, "n_layer": 2, "mlp_cfg": {"intermediate_size": 8}}
    base = LlambaForCausalLM(llamba_config(**small).with_attention((1,), llama_config(**SMALL_DONOR)))
    base.save_pretrained(tmp_path / "base")
    LlamaForCausalLM(llama_config(**SMALL_DONOR)).save_pretrained(tmp_path / "donor")
    return tmp_path / "base", tmp_path / "donor"


SMALL_DONOR = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 8}


def document(path: Path) -> Any:
    return json.loads(path.read_text())


def test_fuzzed_config_of_a_hybrid(folders: Folders) -> None:
    folder, _ = folders
    path, whole = folder / "config.json", document(folder / "config.json")

    @fuzz(50)
    @always(NESTED, spelled(whole | {"dtype": 1e-320}), spelled(whole | {"attention_cfg": {"rope_parameters": 3}}))
    @given(content=damaged_json(whole))
    def holds(content: Damage) -> None:
        put(path, content)
        model = read(lambda: load_base(folder), path, ModelError)
        if not isinstance(model, Refused):
            assert model.config.n_layer == 2
            assert all(parameter.isfinite().all() for parameter in model.parameters())

    holds()


def test_fuzzed_config_without_layer_types(folders: Folders) -> None:
    """As hub checkpoints have it: all that says how deep the model is is n_layer."""
    folder, _ = folders
    path, whole = folder / "config.json", document(folder / "config.json")
    for name in ("layer_types", "attention_cfg"):
        whole.pop(name)

    @fuzz(26)
    @always(spelled(whole | {"n_layer": 2**40}), spelled(whole | {"d_model": 10**30}))
    @given(content=altered_json(whole).map(spelled))
    def holds(content: Damage) -> None:
        put(path, content)
        found = read(lambda: load_base(folder), path, ModelError)
        assert isinstance(found, Refused | LlambaForCausalLM)

    holds()


def test_fuzzed_config_of_a_donor(folders: Folders) -> None:
    _, folder = folders
    path, whole = folder / "config.json", document(folder / "config.json")
    shapes = {name: tensor.shape for name, tensor in load_donor_layer_state(folder, 1).items()}

    @fuzz(50)
    @always(spelled(whole | {"hidden_act": []}), spelled(whole | {"rope_parameters": {"rope_theta": "x"}}))
    @given(content=damaged_json(whole))
    def holds(content: Damage) -> None:
        put(path, content)
        found = read(lambda: read_llama_config(folder), path, ModelError)
        if not isinstance(found, Refused):
            with torch.device("meta"):
                layer = LlamaDecoderLayer(found, 0)
            assert shapes.keys() >= {name for name in layer.state_dict() if not name.endswith("bias")}

    holds()


def test_fuzzed_safetensors(folders: Folders) -> None:
    folder, _ = folders
    path = folder / "model.safetensors"
    shapes = {name: tensor.shape for name, tensor in load_file(path).items()}

    @fuzz(50)
    @given(content=damaged_safetensors(path.read_bytes()))
    def holds(content: Damage) -> None:
        put(path, content)
        model = read(lambda: load_base(folder), path, ModelError)
        if not isinstance(model, Refused):
            assert {name: p.shape for name, p in model.state_dict().items() if name in shapes} == shapes
        read(lambda: fingerprint(folder), path, ModelError)

    holds()


def test_fuzzed_safetensors_of_a_donor(folders: Folders) -> None:
    _, folder = folders
    path = folder / "model.safetensors"

    @fuzz(26)
    @given(content=damaged_safetensors(path.read_bytes()))
    def holds(content: Damage) -> None:
        put(path, content)
        read(lambda: load_donor_layer_state(folder, 1), path, ModelError)

    holds()


def test_fuzzed_header_of_a_large_file_whose_fingerprint_is_of_samples(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.weights._WHOLE_BYTES", 100)
    folder, _ = folders
    path = folder / "model.safetensors"

    @fuzz(26)
    @always(b"\xff" * 7 + b"\x7f" + path.read_bytes()[8:])
    @given(content=damaged_safetensors(path.read_bytes()))
    def holds(content: Damage) -> None:
        put(path, content)
        found = read(lambda: fingerprint(folder), path, ModelError)
        assert isinstance(found, Refused) or len(found) == 16

    holds()


def test_fuzzed_index_of_shards(folders: Folders) -> None:
    folder, _ = folders
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / part)
    whole = {"metadata": {}, "weight_map": {name: part for part, own in parts.items() for name in own}}
    path = folder / "model.safetensors.index.json"

    @fuzz(50)
    @always(NESTED, spelled({"weight_map": {names[0]: "two\nlines"}}), spelled({"weight_map": {names[0]: "a\0b"}}))
    @given(content=damaged_json(whole))
    def holds(content: Damage) -> None:
        put(path, content)
        model = read(lambda: load_base(folder), path, ModelError)
        if not isinstance(model, Refused):
            assert all(torch.equal(model.state_dict()[name], weights[name]) for name in names)
        read(lambda: donor_layer_files(folder, 1), path, ModelError)

    holds()


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "before 1.6"])
def test_fuzzed_layer_file(folders: Folders, tmp_path: Path, options: dict[str, Any]) -> None:
    """What extract_layers.py writes, and what PyTorch wrote before it wrote archives."""
    state = load_donor_layer_state(folders[1], 1)
    path = layer_file(tmp_path, 1)
    torch.save(state, path, **options)

    @fuzz(50)
    @given(content=damaged(path.read_bytes()))
    def holds(content: Damage) -> None:
        put(path, content)
        found = read(lambda: load_layer_file(tmp_path, 1), path, ModelError)
        if not isinstance(found, Refused):
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
            total = sum(tensor.double().nansum() for tensor in found.values() if tensor.is_floating_point())
            assert isinstance(float(total), float)  # the memory is there

    holds()


def test_fuzzed_weights_that_are_pickled(folders: Folders) -> None:
    folder, _ = folders
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"

    @fuzz(26)
    @given(content=damaged(path.read_bytes()))
    def holds(content: Damage) -> None:
        put(path, content)
        read(lambda: load_base(folder), path, ModelError)
        read(lambda: WeightFile(path), path, ModelError)

    holds()


def test_fuzzed_metadata_of_layers_in_a_fingerprint(folders: Folders, tmp_path: Path) -> None:
    layers = tmp_path / "layers"
    layers.mkdir()
    shutil.copy(folders[1] / "config.json", layers)
    torch.save(load_donor_layer_state(folders[1], 1), layer_file(layers, 1))

    @fuzz(20)
    @given(content=damaged_json({"files": {"layer_01.pt": {"bytes": 9, "sha256": "5f"}}}))
    def holds(content: Damage) -> None:
        put(layers / "metadata.json", content)
        found = read(lambda: fingerprint(layers), layers / "metadata.json", ModelError)
        assert isinstance(found, Refused) or len(found) == 16

    holds()


PAIR = """\
base: tiny/base
donor: hf:org/llama@main
tasks: [tiny_recall, mmlu]
unseen_tasks:
  - tiny_heldout
task_dir: tasks
description: "two of my own"
license: mit
preset: tiny
"""


@fuzz(60)
@always(None, NESTED, PAIR.replace("mit", "2026-13-45").encode(), PAIR.replace("mit", "!!timestamp x").encode())
@given(content=st.one_of(damaged(PAIR.encode()), altered_yaml(PAIR)))
def test_fuzzed_pair_file(tmp_path: Path, content: Damage) -> None:
    (tmp_path / "tasks").mkdir(exist_ok=True)
    put(tmp_path / "mine.yaml", content)
    pair = read(lambda: get_pair(str(tmp_path / "mine.yaml")), tmp_path / "mine.yaml", ModelError)
    if not isinstance(pair, Refused):
        assert pair.name == str(tmp_path / "mine.yaml")
        assert all(pair.tasks)
