"""The tools that test: loading, inference, scores, and what they say of damaged files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.entry import run_tool
from model_preparation import test_specific_combination as combination_tool
from model_preparation.test_checkpoint import main
from models.pairs import PAIRS

ROOT = Path(__file__).resolve().parents[2]
HAS_TINY = (Path(PAIRS["tiny"].base) / "model.safetensors").is_file()
needs_tiny = pytest.mark.skipif(not HAS_TINY, reason="the bundled pair has no weights yet")


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON object a tool ended with."""
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tokenised questions out of the user's folders."""
    monkeypatch.setenv("GA_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "questions"))


def test_a_quick_test_generates_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(checkpoint), "--gpu", "cpu"]) == 0
    told = report(capsys)
    assert told["layers"] == [1, 3]
    assert told["inference"]["text"].startswith("Hello world")
    assert told["inference"]["new_tokens"] >= 1
    assert "evaluation" not in told


def damage(folder: Path, name: str, how: str) -> None:
    """Spoil one file of a checkpoint."""
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["cut", "gone"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.pt", "model_state_dict.pt", "config.json", "checkpoint_info.json"]
)
def test_a_damaged_file_is_named_in_one_line(
    name: str, how: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy, name, how)
    assert run_tool("test_checkpoint.py", main, ["--checkpoint", str(copy), "--gpu", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name.split(".")[0] in error or "holds no weights" in error


def test_files_of_two_models_are_told_apart(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(copy / "model_state_dict.pt")
    state["backbone.layers.1.mlp.up_proj.weight"] += 1
    torch.save(state, copy / "model_state_dict.pt")
    assert run_tool("test_checkpoint.py", main, ["--checkpoint", str(copy), "--gpu", "cpu"]) == 2
    assert "differ in backbone.layers.1.mlp.up_proj.weight" in capsys.readouterr().err


def test_weights_that_are_not_numbers_are_found(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    for name, load, save in (
        ("model.safetensors", load_file, lambda state, path: save_file(state, path, {"format": "pt"})),
        ("model_state_dict.pt", torch.load, torch.save),
    ):
        state = load(copy / name)
        state["backbone.layers.0.mlp.up_proj.weight"][-1] = float("nan")
        save(state, copy / name)
    assert run_tool("test_checkpoint.py", main, ["--checkpoint", str(copy), "--gpu", "cpu"]) == 2
    assert "not numbers" in capsys.readouterr().err


@needs_tiny
def test_the_score_of_a_checkpoint_is_that_of_its_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model_preparation.create_replaced_model_checkpoint import main as create
    from model_preparation.extract_layers import main as extract

    layers = ["--llama_layers_dir", str(tmp_path / "layers")]
    assert extract(["--pair", "tiny", "--output_dir", str(tmp_path / "layers")]) == 0
    assert create([*layers, "--layers", "0", "2", "--output_dir", str(tmp_path / "made")]) == 0
    evaluate = ["--checkpoint", str(tmp_path / "made"), "--full_eval", "--limit", "20", "--gpu", "cpu"]
    assert main(evaluate) == 0
    made = report(capsys)["evaluation"]
    command = ["--pair", "tiny", "--layers", "2", "0", "--limit", "20", "--gpu_id", "cpu"]
    assert combination_tool.main(command) == 0
    beside = report(capsys)
    assert made["questions"] == 80
    assert made["accuracy"] == beside["combination"]["accuracy"]
    assert beside["gain"] == pytest.approx(made["accuracy"] - beside["base"]["accuracy"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--limit", "3"], "are about --full_eval"),
        (["--gpu", "foo"], "--gpu foo is no device"),
        (["--full_eval", "--mmlu-dir", "/nowhere"], "/nowhere is not a folder"),
    ],
)
def test_requests_that_cannot_be_met(
    arguments: list[str], told: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("test_checkpoint.py", main, ["--checkpoint", str(checkpoint), *arguments]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("layers", "told"), [(["9"], "layer 9 does not exist"), (["1", "1"], "more than once")])
def test_a_combination_that_cannot_be(
    layers: list[str], told: str, pair_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("combination", combination_tool.main, ["--pair", pair_name, "--layers", *layers]) == 2
    assert told in capsys.readouterr().err


def test_tools_run_as_files_from_their_own_folder(
    checkpoint: Path, pair_name: str, layers_dir: Path, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    relative = os.path.relpath(tmp_path / "made", ROOT / "model_preparation")
    tool = ["create_replaced_model_checkpoint.py", "--pair", pair_name, "--llama_layers_dir", str(layers_dir)]
    done = subprocess.run(
        [sys.executable, *tool, "--output_dir", relative, "--layers", "0"],
        cwd=ROOT / "model_preparation",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made" / "model.pt").is_file()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": 3}'),
        ("generation_config.json", "{"),
        ("generation_config.json", None),
        ("checkpoint_info.json", '{"pair": 5}'),
    ],
)
def test_a_damaged_small_file_is_one_clear_line(
    name: str, content: str | None, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / name
    if content is None:
        path.unlink()
    elif name == "checkpoint_info.json":
        path.write_text(json.dumps(json.loads(path.read_text()) | json.loads(content)))
    else:
        path.write_text(content)
    assert run_tool("test", main, ["--checkpoint", str(copy), "--gpu", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(copy) in error


def test_a_gpu_by_number_is_the_cpu_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_preparation.scoring import Device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Device.choose("0").name == "cpu"
    assert capsys.readouterr().err == "GPU 0: there is no GPU that torch can use; running on the CPU\n"
