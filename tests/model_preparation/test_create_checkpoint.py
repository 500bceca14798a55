"""Checkpoints: complete, the hybrid that was asked for, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model_preparation import load_model
from model_preparation.checkpoints import writing
from model_preparation.create_replaced_model_checkpoint import main
from models.hybrid import HybridPair

from .conftest import refused, write_donor

FILES = {
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "configuration_llamba.py",
    "modeling_llamba.py",
    "mixer.py",
    "scan.py",
    "README.md",
    "README.txt",
    "checkpoint_info.json",
    "model.pt",
    "model_state_dict.pt",
}


@pytest.fixture
def command(pair_name: str, layers_dir: Path) -> list[str]:
    """What all command lines here share."""
    return ["--pair", pair_name, "--llama_layers_dir", str(layers_dir)]


def search_result(path: Path, pair: str | None = None, tasks: tuple[str, ...] = ()) -> Path:
    """A result as a search writes it, of ranks 1 and 2."""
    entries = [
        {"rank": rank, "layers": layers, "accuracy": 0.9, "standard_error": 0.01, "questions": 100}
        for rank, layers in ((1, [0, 2]), (2, [2]))
    ]
    evaluator: dict[str, Any] = {"pair": pair, "tasks": list(tasks), "num_fewshot": None}
    path.write_text(json.dumps({"final_results": entries, "evaluator": evaluator}))
    return path


def test_the_folder_is_complete_and_readable_by_all(checkpoint: Path) -> None:
    assert {path.name for path in checkpoint.iterdir() if path.is_file()} == FILES
    assert (checkpoint / "tokenizer" / "tokenizer.json").is_file()
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in checkpoint.rglob("*"))
    assert not [path for path in checkpoint.parent.iterdir() if path != checkpoint]


def test_the_information_is_that_of_the_guide_and_more(checkpoint: Path) -> None:
    info = json.loads((checkpoint / "checkpoint_info.json").read_text())
    assert info["replaced_layers"] == [1, 3]
    assert info["mmlu_score"] == 0.57
    assert info["description"] == "for tests"
    assert {
        "creation_time",
        "base_model",
        "base_fingerprint",
        "donor_model",
        "donor_fingerprint",
    } <= info.keys()
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["layer_types"] == ["linear_attention", "full_attention"] * 2
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_llamba.LlambaForCausalLM"


def test_the_model_is_the_hybrid(folders: tuple[Path, Path], checkpoint: Path) -> None:
    model, tokenizer = load_model(checkpoint, dtype=torch.float32)
    expected = HybridPair.load(*folders).assemble([1, 3])
    tokens_BT = tokenizer("Hello world word3", return_tensors="pt")["input_ids"]
    assert torch.equal(model(tokens_BT).logits, expected(tokens_BT).logits)
    assert model.generation_config.eos_token_id == 1


def test_the_texts_name_the_sources_and_the_folder(checkpoint: Path, folders: tuple[Path, Path]) -> None:
    import yaml

    card = (checkpoint / "README.md").read_text()
    assert all(str(folder) in card for folder in folders)
    front = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in front  # these are folders, not ids
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.57
    assert "torch.load('a checkpoint/model.pt')" in (checkpoint / "README.txt").read_text()


def test_layers_come_from_a_result_by_rank(command: list[str], tmp_path: Path, pair_name: str) -> None:
    result = search_result(tmp_path / "result.json", pair_name, ("mmlu",))
    for rank, layers in ((1, [0, 2]), (2, [2])):
        target = tmp_path / f"made {rank}"
        arguments = ["--from_result", str(result), "--rank", str(rank), "--output_dir", str(target)]
        assert main([*command, *arguments]) == 0
        info = json.loads((target / "checkpoint_info.json").read_text())
        assert info["replaced_layers"] == layers
        assert info["score"]["accuracy"] == info["mmlu_score"] == 0.9


@pytest.mark.parametrize(("whole", "noted"), [(0.55, 0.55), (None, None)])
def test_only_an_accuracy_on_all_questions_is_noted_as_that_of_mmlu(
    whole: float | None, noted: float | None, command: list[str], tmp_path: Path, pair_name: str
) -> None:
    result = search_result(tmp_path / "result.json", pair_name, ("mmlu",))
    document = json.loads(result.read_text())
    document["final_results"][0]["full_accuracy"] = whole
    result.write_text(json.dumps(document))
    assert main([*command, "--from_result", str(result), "--output_dir", str(tmp_path / "made")]) == 0
    info = json.loads((tmp_path / "made" / "checkpoint_info.json").read_text())
    assert (info["mmlu_score"], info["score"]["accuracy"]) == (noted, 0.9)


def test_an_accuracy_on_other_tasks_is_not_called_mmlu(command: list[str], tmp_path: Path) -> None:
    result = search_result(tmp_path / "result.json", None, ("arc_easy",))
    assert main([*command, "--from_result", str(result), "--output_dir", str(tmp_path / "made")]) == 0
    info = json.loads((tmp_path / "made" / "checkpoint_info.json").read_text())
    assert info["mmlu_score"] is None
    assert info["score"]["tasks"] == ["arc_easy"]


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (["1", "4"], "layer 4 does not exist; layers are 0 to 3"),
        (["1", "1"], "layer 1 is given more than once"),
        (["-1"], "layer -1 does not exist"),
        ([], "no layers are given"),
    ],
)
def test_layers_that_cannot_be_are_refused(
    layers: list[str], told: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "made"
    assert told in refused([*command, "--output_dir", str(target), "--layers", *layers], capsys)
    assert not list(tmp_path.iterdir())


def test_layers_must_be_named_one_way(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = search_result(tmp_path / "result.json")
    target = ["--output_dir", str(tmp_path / "made")]
    assert "either with --layers or with --from_result" in refused([*command, *target], capsys)
    both = [*command, *target, "--layers", "1", "--from_result", str(result)]
    assert "either with --layers or with --from_result" in refused(both, capsys)


def test_a_missing_layer_file_is_named_with_the_command_that_makes_it(
    command: list[str], layers_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(layers_dir, tmp_path / "layers")
    (copy / "layer_03.pt").unlink()
    arguments = ["--llama_layers_dir", str(copy), "--output_dir", str(tmp_path / "made"), "--layers", "3"]
    line = refused([*command, *arguments], capsys)
    assert f"Layer file not found: {copy}/layer_03.pt" in line
    assert "model_preparation.extract_layers --model_name llama" in line


@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_a_truncated_layer_file_is_named(
    keeps_metadata: bool,
    command: list[str],
    layers_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = shutil.copytree(layers_dir, tmp_path / "layers")
    content = (copy / "layer_03.pt").read_bytes()
    (copy / "layer_03.pt").write_bytes(content[:-100])
    if not keeps_metadata:
        (copy / "metadata.json").unlink()
    arguments = ["--llama_layers_dir", str(copy), "--output_dir", str(tmp_path / "made"), "--layers", "3"]
    assert "layer_03.pt is damaged" in refused([*command, *arguments], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["layers"]


def test_a_donor_of_another_width_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = write_donor(tmp_path / "wide", width=48)
    capsys.readouterr()
    command = ["--base", str(folders[0]), "--donor", str(wide), "--output_dir", str(tmp_path / "made")]
    line = refused([*command, "--layers", "1"], capsys)
    assert "hidden_size 32 and 48" in line


def test_layers_or_a_result_of_another_pair_are_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], layers_dir: Path
) -> None:
    target = ["--output_dir", str(tmp_path / "made")]
    result = search_result(tmp_path / "result.json", "tiny")
    assert "is of the pair tiny, not" in refused([*command, *target, "--from_result", str(result)], capsys)
    copy = shutil.copytree(layers_dir, tmp_path / "layers")
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(metadata | {"pair": "tiny", "source": "tiny/donor"}))
    others = [*command, "--llama_layers_dir", str(copy), *target, "--layers", "1"]
    assert "holds the layers of tiny/donor, not of" in refused(others, capsys)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"final_results": [{"rank": 1}]}',
        '{"final_results": [{"rank": 1, "layers": [1]}]}',
        '{"final_results": [{"rank": 1, "layers": [1], "accuracy": "x", "standard_error": 0, "questions": 1}]}',
    ],
)
def test_a_file_that_is_no_result_is_named(
    content: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    arguments = ["--from_result", str(path), "--output_dir", str(tmp_path / "made")]
    assert "other.json is not the result of a search" in refused([*command, *arguments], capsys)


def test_what_exists_is_not_overwritten_unless_forced(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "made"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    arguments = [*command, "--output_dir", str(target), "--layers", "1"]
    for forced in ([], ["--force"]):  # force replaces a checkpoint, never whatever else lies there
        assert f"{target} exists already and is no checkpoint" in refused([*arguments, *forced], capsys)
        assert [path.name for path in target.iterdir()] == ["notes.txt"]
    (target / "notes.txt").unlink()
    assert main(arguments) == 0
    capsys.readouterr()
    (target / "notes.txt").write_text("mine")
    assert f"{target} exists already; " in refused(arguments, capsys)
    assert (target / "notes.txt").exists()
    assert main([*arguments, "--force"]) == 0
    assert {path.name for path in target.iterdir() if path.is_file()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_disk_with_too_little_room_is_refused_before_anything_is_built(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    monkeypatch.setattr(writing, "writing_beside", lambda *_: pytest.fail("written all the same"))
    arguments = [*command, "--output_dir", str(tmp_path / "made"), "--layers", "1"]
    assert "0.0 GB free and this needs 0.1 GB" in refused(arguments, capsys)
