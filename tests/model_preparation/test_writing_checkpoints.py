"""Checkpoints under way: interrupted, killed, gone on with; their formats; weights that cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.entry import run_tool
from model_preparation import load_model, tensor_stream
from model_preparation.checkpoints import writing
from model_preparation.create_replaced_model_checkpoint import main
from models.errors import ModelError
from models.hybrid import HybridPair

from .conftest import files_of_at_most, refused


@pytest.fixture
def command(pair_name: str, layers_dir: Path) -> list[str]:
    """What most command lines here share."""
    return ["--pair", pair_name, "--llama_layers_dir", str(layers_dir)]


def kept(folder: Path) -> set[str]:
    """Weight files that an unfinished checkpoint has, whole or not."""
    return {path.name for path in folder.iterdir() if path.name.startswith("model.") or path.suffix in (".pt", ".part")}


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "made"
    with files_of_at_most(40_000):
        assert run_tool("create", main, [*command, "--output_dir", str(target), "--layers", "1"]) == 1
    error = capsys.readouterr().err
    assert "the disk is full" in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def fails_at(name: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the archive of that name fail once its writing has begun."""
    written = tensor_stream.write_archive

    def failing(path: Path, *arguments: Any, **options: Any) -> str:
        if path.name == f"{name}.part":
            path.write_bytes(b"half")
            raise error(28, "No space left on device", str(path)) if error is OSError else error
        return written(path, *arguments, **options)

    monkeypatch.setattr(writing, "write_archive", failing)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError, 1)])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_the_same_command_goes_on_with_what_is_whole(
    error: type[BaseException],
    code: int,
    resume: list[str],
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*command, "--output_dir", str(tmp_path / "made"), "--layers", "1"]
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one file after the other
    fails_at("model.pt", error, monkeypatch)
    assert run_tool("create", main, arguments) == code
    assert "2 files are whole and kept" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".made.unfinished"]
    monkeypatch.undo()
    place = tmp_path / ".made.unfinished"
    (place / "model_state_dict.pt").write_bytes(b"not what was written")
    before = (place / "model.safetensors").stat().st_ino
    assert main([*arguments, *resume]) == 0
    assert "1 files are whole already" in capsys.readouterr().err  # the damaged one is not among them
    assert (tmp_path / "made" / "model.safetensors").stat().st_ino == before
    whole, once = tmp_path / "made", tmp_path / "once"
    assert main([*command, "--output_dir", str(once), "--layers", "1"]) == 0
    for name in ("model.safetensors", "model_state_dict.pt", "model.pt", "config.json"):
        assert (whole / name).stat().st_size == (once / name).stat().st_size, name
    assert torch.load(whole / "model.pt").config.layer_types == torch.load(once / "model.pt").config.layer_types
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "once"]


def test_what_was_begun_of_another_recipe_is_not_mixed_in(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--output_dir", str(tmp_path / "made")]
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    fails_at("model.pt", KeyboardInterrupt, monkeypatch)
    assert run_tool("create", main, [*command, *target, "--layers", "1"]) == 130
    monkeypatch.undo()
    capsys.readouterr()
    told = refused([*command, *target, "--layers", "2", "--resume"], capsys)
    assert "was begun from other weights, layers or options" in told
    assert kept(tmp_path / ".made.unfinished") >= {"model.safetensors"}
    assert main([*command, *target, "--layers", "2"]) == 0
    assert load_model(tmp_path / "made")[0].config.attention_layers == (2,)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_two_runs_of_one_checkpoint_do_not_meet(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_preparation.checkpoints.unfinished import unfinished_folder

    with unfinished_folder(tmp_path / "made", {}, force=False, resume=False):
        line = refused([*command, "--output_dir", str(tmp_path / "made"), "--layers", "1"], capsys)
    assert "another run is writing" in line


def test_an_interruption_leaves_what_was_there(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*command, "--output_dir", str(tmp_path / "made"), "--layers", "1"]
    assert main(arguments) == 0
    before = (tmp_path / "made" / "checkpoint_info.json").read_text()
    fails_at("model_state_dict.pt", KeyboardInterrupt, monkeypatch)
    assert run_tool("create", main, [*arguments, "--force"]) == 130
    assert (tmp_path / "made" / "checkpoint_info.json").read_text() == before


KILLED = """
import os, signal, sys
from pathlib import Path
from model_preparation.checkpoints import writing
from model_preparation.create_replaced_model_checkpoint import main

written = writing.write_archive

def killed(path, *arguments, **options):
    if path.name == sys.argv[1]:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return written(path, *arguments, **options)

writing.write_archive = killed
main(sys.argv[2:])
"""


def test_a_killed_run_is_gone_on_with(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*command, "--output_dir", str(tmp_path / "made"), "--layers", "1"]
    killed = subprocess.run([sys.executable, "-c", KILLED, "model.pt.part", *arguments], check=False)
    assert killed.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [".made.unfinished"]
    assert main([*arguments, "--resume"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    info = json.loads((tmp_path / "made" / "checkpoint_info.json").read_text())
    for name, digest in info["files"].items():
        assert hashlib.sha256((tmp_path / "made" / name).read_bytes()).hexdigest() == digest, name


def test_formats_are_those_that_were_asked_for(command: list[str], tmp_path: Path) -> None:
    target = tmp_path / "made"
    assert main([*command, "--output_dir", str(target), "--layers", "1", "--formats", "state_dict"]) == 0
    there = {path.name for path in target.iterdir() if path.suffix in (".pt", ".safetensors")}
    assert there == {"model.safetensors", "model_state_dict.pt"}
    assert json.loads((target / "checkpoint_info.json").read_text())["formats"] == ["safetensors", "state_dict"]
    told = (target / "README.txt").read_text()
    assert "model_state_dict.pt" in told
    assert "model.pt" not in told


def test_an_unknown_format_is_named(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*command, "--output_dir", str(tmp_path / "made"), "--layers", "1", "--formats", "gguf"]
    assert "--formats has 'gguf'; known are safetensors, state_dict, model" in refused(arguments, capsys)


def room_for(formats: float, weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the disk seem to have room for weights of so many bytes in so many formats, and for small files once."""
    free = int(formats * weights) + writing.SMALL_FILES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10 * free, 9 * free, free))


@pytest.mark.parametrize(
    ("formats", "written", "left_out"),
    [
        (3, {"model.pt", "model_state_dict.pt"}, None),
        (2.9, {"model.pt"}, "so model_state_dict.pt ("),
        (1.9, set(), "so model_state_dict.pt and model.pt ("),
    ],
)
def test_all_formats_are_written_where_the_disk_has_room_model_pt_before_the_state_dict(
    formats: float,
    written: set[str],
    left_out: str | None,
    command: list[str],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = json.loads((checkpoint / "checkpoint_info.json").read_text())["num_parameters"] * 2
    target = tmp_path / "made"
    room_for(formats, weights, monkeypatch)
    assert main([*command, "--output_dir", str(target), "--layers", "1", "3"]) == 0
    assert {path.name for path in target.glob("*.pt")} == written
    told = [line for line in capsys.readouterr().err.splitlines() if "will not be written" in line]
    assert [left_out in line and "GB free, the same command with --force" in line for line in told] == [True] * (
        left_out is not None
    )
    assert load_model(target)[0].config.attention_layers == (1, 3)
    room_for(3, weights, monkeypatch)
    assert main([*command, "--output_dir", str(target), "--layers", "1", "3", "--force"]) == 0
    assert torch.load(target / "model.pt").config.attention_layers == (1, 3)


def test_what_an_interrupted_run_has_written_counts_as_room(
    command: list[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*command, "--output_dir", str(tmp_path / "made"), "--layers", "1", "3"]
    weights = json.loads((checkpoint / "checkpoint_info.json").read_text())["num_parameters"] * 2
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    room_for(3, weights, monkeypatch)
    fails_at("model.pt", KeyboardInterrupt, monkeypatch)
    assert run_tool("create", main, arguments) == 130
    monkeypatch.undo()
    room_for(1, weights, monkeypatch)
    assert main([*arguments, "--resume"]) == 0
    assert len(list((tmp_path / "made").glob("*.pt"))) == 2


def test_shards_are_what_transformers_reads(
    command: list[str], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
    target = tmp_path / "made"
    assert main([*command, "--output_dir", str(target), "--layers", "0", "2"]) == 0
    index = json.loads((target / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in target.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(set(index["weight_map"].values())) == shards
    assert all((target / shard).stat().st_size < 20_000 + 4096 for shard in shards)
    state = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True, dtype="auto").state_dict()
    expected = HybridPair.load(*folders, dtype=torch.bfloat16).assemble([0, 2]).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_layers_come_straight_from_the_donor_where_none_were_extracted(
    pair_name: str, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_preparation import create_replaced_model_checkpoint as tool

    monkeypatch.setattr(tool, "default_layers_dir", lambda: tmp_path / "none here")
    assert main(["--pair", pair_name, "--output_dir", str(tmp_path / "made"), "--layers", "1", "3"]) == 0
    ours, expected = load_model(tmp_path / "made")[0], HybridPair.load(*folders).assemble([1, 3])
    tokens_BT = torch.tensor([[3, 4, 5]])
    assert torch.equal(ours.float()(tokens_BT).logits, expected(tokens_BT).logits)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing can be made; root is held off by the immutable flag, where file systems have it."""
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    is_root = os.geteuid() == 0
    if is_root and subprocess.run(["chattr", "+i", folder], check=False, capture_output=True).returncode:
        pytest.skip("root may write anywhere on this file system")
    yield folder
    if is_root:
        subprocess.run(["chattr", "-i", folder], check=True)
    folder.chmod(0o755)


@pytest.mark.parametrize("target", ["made", "new/made"])
def test_a_read_only_target_is_named(
    target: str, read_only: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("create", main, [*command, "--output_dir", str(read_only / target), "--layers", "1"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert str(read_only) in told
    assert "not permitted" in told or "denied" in told
    assert "Traceback" not in told
    assert not list(read_only.iterdir())


def test_a_target_below_a_file_is_named(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").write_text("of the user")
    line = refused([*command, "--output_dir", str(tmp_path / "notes" / "made"), "--layers", "1"], capsys)
    assert f"{tmp_path / 'notes'} is a file" in line
    assert (tmp_path / "notes").read_text() == "of the user"


def test_a_checkpoint_of_a_newer_version_is_told_so(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "newer")
    info = json.loads((copy / "checkpoint_info.json").read_text())
    (copy / "checkpoint_info.json").write_text(json.dumps(info | {"format": 9}))
    with pytest.raises(ModelError, match="has format 9, from a newer GA Layer Search"):
        load_model(copy)


def test_a_checkpoint_of_the_first_format_still_loads(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "older")
    info = json.loads((copy / "checkpoint_info.json").read_text())
    for name in ("format", "formats", "files", "versions", "command", "base_revision", "donor_revision"):
        del info[name]
    (copy / "checkpoint_info.json").write_text(json.dumps(info))
    assert load_model(copy)[0].config.attention_layers == (1, 3)


def test_the_command_on_record_makes_the_same_weights(checkpoint: Path, tmp_path: Path, layers_dir: Path) -> None:
    info = json.loads((checkpoint / "checkpoint_info.json").read_text())
    words = shlex.split(info["command"].replace("NEW_FOLDER", shlex.quote(str(tmp_path / "again"))))
    assert words[:3] == ["python", "-m", "model_preparation.create_replaced_model_checkpoint"]
    assert main([*words[3:], "--llama_layers_dir", str(layers_dir)]) == 0
    again = json.loads((tmp_path / "again" / "checkpoint_info.json").read_text())
    assert again["files"]["model.safetensors"] == info["files"]["model.safetensors"]


def test_what_is_whole_outlives_a_resume_that_fails(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *command,
        "--output_dir",
        str(tmp_path / "made"),
        "--layers",
        "1",
        "--formats",
        ",".join(writing.FORMATS),
    ]
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    fails_at("model.pt", KeyboardInterrupt, monkeypatch)
    assert run_tool("create", main, arguments) == 130
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 999, 1))
        assert run_tool("create", main, [*arguments, "--resume"]) == 2
    assert kept(tmp_path / ".made.unfinished") == {"model.safetensors", "model_state_dict.pt"}
    assert main(arguments) == 0


def test_other_generation_settings_are_another_recipe(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(folders[0], tmp_path / "base")
    command = ["--base", str(base), "--donor", str(folders[1]), "--layers", "1", "--output_dir", str(tmp_path / "made")]
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(writing, "_write_texts", interrupted)
    assert run_tool("create", main, command) == 130
    monkeypatch.undo()
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert main(command) == 0
    assert torch.load(tmp_path / "made" / "model.pt").generation_config.eos_token_id == 5


def interrupted(*_: Any) -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["between the two moves", "before the old one was gone"])
def test_a_kill_while_a_checkpoint_is_replaced_is_put_right(moment: str, command: list[str], tmp_path: Path) -> None:
    target, old = tmp_path / "made", tmp_path / ".made.old"
    arguments = [*command, "--output_dir", str(target), "--layers", "1"]
    assert main(arguments) == 0
    if moment == "between the two moves":
        target.rename(old)
        with pytest.raises(ModelError, match="exists already"):  # it is there again
            main(arguments)
        assert load_model(target)[0].config.attention_layers == (1,)
    else:
        shutil.copytree(target, old)
        assert main([*arguments, "--force"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
