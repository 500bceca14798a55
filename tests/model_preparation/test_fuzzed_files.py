"""Checkpoints, extracted layers and what tools read of them, damaged in every way: read as written, or one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model_preparation.checkpoints.info import CheckpointInfo, load_model, read_info
from model_preparation.checkpoints.recipe import Recipe, check, gather
from model_preparation.checkpoints.unfinished import unfinished_folder
from model_preparation.checkpoints.verification import check_agree, check_there, verify
from model_preparation.create_replaced_model_checkpoint import read_result
from model_preparation.files import INFO
from model_preparation.sources import METADATA, read_metadata
from model_preparation.tensor_stream import stored_tensors, write_safetensors
from models.errors import ModelError
from models.loading import load_base
from models.pairs import get_pair
from tests.fuzzing import (
    NESTED,
    Damage,
    Refused,
    always,
    damaged,
    damaged_json,
    damaged_safetensors,
    fuzz,
    put,
    read,
    spelled,
)


def nothing(count: int) -> None:
    """Counts nothing."""


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "a checkpoint"))


def test_fuzzed_checkpoint_info(copied: Path) -> None:
    path, whole = copied / INFO, json.loads((copied / INFO).read_text())

    def used() -> CheckpointInfo:
        info = read_info(copied)
        check_there(copied, info)
        verify(copied, info)
        return info

    @fuzz(40)
    @always(NESTED, spelled(whole | {"files": {"config.json": 7}}))
    @given(content=damaged_json(whole))
    def holds(content: Damage) -> None:
        put(path, content)
        info = read(used, path, ModelError)
        if not isinstance(info, Refused):
            assert info.files.items() <= whole["files"].items()
            assert all(type(layer) is int for layer in info.replaced_layers)

    holds()


@pytest.mark.parametrize("pattern", ["*.safetensors", "config.json", "model.pt", "model_state_dict.pt"])
def test_fuzzed_files_of_a_checkpoint_never_pass_for_what_was_written(copied: Path, pattern: str) -> None:
    (path,) = copied.glob(pattern)
    whole, info = path.read_bytes(), read_info(copied)
    model = load_base(copied)

    @fuzz(20)
    @given(content=damaged(whole))
    def holds(content: Damage) -> None:
        put(path, content)
        checked = read(lambda: [check_there(copied, info), verify(copied, info)], path, ModelError)
        assert (content == whole) != isinstance(checked, Refused)
        if path.suffix == ".pt":
            read(lambda: check_agree(copied, info, model), path, ModelError)

    holds()


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_fuzzed_files_that_transformers_reads(copied: Path, name: str) -> None:
    path = copied / name
    whole = json.loads(path.read_text())

    @fuzz(15)
    @given(content=damaged_json(whole))
    def holds(content: Damage) -> None:
        put(path, content)
        read(lambda: load_model(copied), path, ModelError)

    holds()


def test_fuzzed_metadata_of_extracted_layers(
    folders: tuple[Path, Path], layers_dir: Path, pair_name: str, tmp_path: Path
) -> None:
    layers = Path(shutil.copytree(layers_dir, tmp_path / "layers"))
    path, whole = layers / METADATA, json.loads((layers / METADATA).read_text())
    recipe = Recipe(pair=get_pair(pair_name), base=folders[0], donor=layers, layers=(1, 3))
    expected = gather(recipe)

    @fuzz(40)
    @always(
        NESTED, spelled(whole | {"revision": 7}), spelled(whole | {"files": {"layer_01.pt": {"bytes": 1, "sha256": 1}}})
    )
    @given(content=damaged_json(whole))
    def holds(content: Damage) -> None:
        put(path, content)
        read(lambda: read_metadata(layers), path, ModelError)
        found = read(lambda: gather(recipe), path, ModelError)
        if not isinstance(found, Refused):
            assert found.tensors.keys() == expected.tensors.keys()
            assert all(isinstance(digest, str) for digest in found.checksums.values())
            assert isinstance(found.donor_revision, str | None)
            check(found)

    holds()


def test_fuzzed_config_of_the_base_of_a_checkpoint(
    folders: tuple[Path, Path], layers_dir: Path, pair_name: str, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(folders[0], tmp_path / "base"))
    path, whole = base / "config.json", json.loads((base / "config.json").read_text())
    recipe = Recipe(pair=get_pair(pair_name), base=base, donor=layers_dir, layers=(1, 3))

    @fuzz(40)
    @always(spelled(whole | {"layer_types": True}))
    @given(content=damaged_json(whole))
    def holds(content: Damage) -> None:
        put(path, content)
        nameless = ("base and donor differ in ", "layer 3 does not exist; ")
        config = read(lambda: check(gather(recipe)), path, ModelError, nameless=nameless)
        assert isinstance(config, Refused) or config.attention_layers == (1, 3)

    holds()


TENSORS = {
    "one": torch.arange(6.0).reshape(2, 3),
    "two": torch.ones(5, dtype=torch.bfloat16),
    "three": torch.arange(4),
    "none": torch.zeros(0, 3),
}


def test_fuzzed_safetensors_that_are_streamed(tmp_path: Path) -> None:
    """What is taken is what the library takes, with the same values."""
    path, copy = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})

    @fuzz(66)
    @given(content=damaged_safetensors(path.read_bytes()))
    def holds(content: Damage) -> None:
        put(path, content)
        stored = read(lambda: stored_tensors(path), path, ModelError)
        if isinstance(stored, Refused):
            return
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        assert sorted(stored) == sorted(names)
        written = read(lambda: write_safetensors(copy, stored, nothing), path, ModelError)
        if not isinstance(written, Refused):
            before, after = load_file(path), load_file(copy)
            assert all(torch.equal(before[name], after[name]) for name in names)

    holds()


def test_fuzzed_layers_that_are_streamed(tmp_path: Path) -> None:
    path, copy = tmp_path / "layer_01.pt", tmp_path / "b.safetensors"
    torch.save(TENSORS, path)

    @fuzz(50)
    @always(path.read_bytes() + path.read_bytes()[1593:])
    @given(content=damaged(path.read_bytes()))
    def holds(content: Damage) -> None:
        put(path, content)
        stored = read(lambda: stored_tensors(path), path, ModelError)
        if isinstance(stored, Refused):
            return
        written = read(lambda: write_safetensors(copy, stored, nothing), path, ModelError)
        if not isinstance(written, Refused):
            before = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            after = load_file(copy)
            assert all(torch.equal(before[name], after[name]) for name in stored)

    holds()


def test_fuzzed_record_of_an_unfinished_folder(tmp_path: Path) -> None:
    """Whatever is left, the folder is made anew, and only files that are what is on record are gone on with."""
    place, plan = tmp_path / ".made.unfinished", {"layers": [1, 3], "dtype": "bfloat16"}
    digest = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # of "foo"
    whole = {"plan": plan, "done": {"a.txt": digest, "b.txt": digest}}

    @fuzz(26)
    @always(None, NESTED)
    @given(content=damaged_json(whole))
    def holds(content: Damage) -> None:
        for old in (place, tmp_path / "made"):
            shutil.rmtree(old, ignore_errors=True)
        place.mkdir()
        (place / "a.txt").write_text("foo")
        (place / "b.txt").write_text("torn")
        put(place / ".unfinished.json", content)
        with unfinished_folder(tmp_path / "made", plan, force=False, resume=False) as work:
            assert set(work.done) <= {"a.txt"}
            (work.path / "c.txt").write_text("new")
        assert {one.name for one in (tmp_path / "made").iterdir()} == {"c.txt", *work.done}

    holds()


RESULT = {
    "final_results": [
        {"rank": 1, "layers": [2, 9], "accuracy": 0.8, "standard_error": 0.02, "questions": 400, "full_accuracy": None},
        {"rank": 2, "layers": [2], "accuracy": 0.7, "standard_error": 0.02, "questions": 96, "holdout_accuracy": 0.7},
    ],
    "evaluator": {"pair": "tiny", "tasks": ["tiny"], "num_fewshot": 0},
    "search": {"full_limit": None},
    "conditions": {"num_fewshot": 0, "split": "test"},
    "versions": {"torch": "2.13.0"},
}


@fuzz(40)
@example(content=NESTED, rank=1)
@given(content=damaged_json(RESULT), rank=st.sampled_from([1, 2, 3]))
def test_fuzzed_result_that_names_the_layers(tmp_path: Path, content: Damage, rank: int) -> None:
    path = tmp_path / "search_result_1.json"
    put(path, content)
    found = read(lambda: read_result(path, rank), path, ModelError)
    if not isinstance(found, Refused):
        assert found["layers"]
        assert all(type(layer) is int for layer in found["layers"])
