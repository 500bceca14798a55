"""Extraction: whole files, resumable, never a mix of two donors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.entry import run_tool
from model_preparation import tensor_stream
from model_preparation.extract_layers import extract, main, verify
from model_preparation.files import held
from models.errors import ModelError
from models.loading import load_donor_layer_state, load_layer_file, read_llama_config

from .conftest import DEPTH, files_of_at_most, write_donor


@pytest.fixture
def copy(layers_dir: Path, tmp_path: Path) -> Path:
    """Extracted layers that a test may spoil."""
    return shutil.copytree(layers_dir, tmp_path / "layers")


def test_layers_are_the_donors_and_the_folder_says_so(folders: tuple[Path, Path], layers_dir: Path) -> None:
    for i in range(DEPTH):
        ours, theirs = load_layer_file(layers_dir, i), load_donor_layer_state(folders[1], i)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    metadata = json.loads((layers_dir / "metadata.json").read_text())
    assert metadata["num_layers"] == DEPTH
    assert list(metadata["files"]) == [f"layer_{i:02d}.pt" for i in range(DEPTH)]
    assert metadata["files"]["layer_00.pt"]["dtype"] == "bfloat16"
    assert read_llama_config(layers_dir).hidden_size == metadata["config"]["hidden_size"]
    assert not list(layers_dir.glob(".*"))


def test_a_layer_file_holds_its_layer_and_not_the_whole_shard(folders: tuple[Path, Path], copy: Path) -> None:
    sizes = {path.stat().st_size for path in copy.glob("layer_*.pt")}
    weights = sum(t.nbytes for t in load_donor_layer_state(folders[1], 0).values())
    assert max(sizes) < weights + 8192


def test_a_second_run_writes_nothing(folders: tuple[Path, Path], copy: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in copy.glob("layer_*.pt")}
    assert extract(folders[1], copy)[1] == 0
    assert {path.name: path.stat().st_mtime_ns for path in copy.glob("layer_*.pt")} == before


def test_missing_and_truncated_layers_are_named_and_written_again(folders: tuple[Path, Path], copy: Path) -> None:
    (copy / "layer_01.pt").unlink()
    content = (copy / "layer_02.pt").read_bytes()
    (copy / "layer_02.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"2 of 4 .*layer_01\.pt, layer_02\.pt"):
        verify(copy)
    assert extract(folders[1], copy)[1] == 2
    assert verify(copy) == DEPTH


def test_an_interrupted_run_leaves_whole_files_and_is_carried_on(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tensor_stream.write_archive
    layers = tmp_path / "layers"

    def interrupted(path: Path, *arguments: Any) -> str:
        if "layer_02" in path.name or "layer_03" in path.name:  # the writer may begin the next before it is stopped
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        return written(path, *arguments)

    monkeypatch.setattr(tensor_stream, "write_archive", interrupted)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one file after the other
    with pytest.raises(KeyboardInterrupt):
        extract(folders[1], layers)
    before = {path.name: path.stat().st_mtime_ns for path in layers.glob("*layer_*")}
    assert sorted(before) == ["layer_00.pt", "layer_01.pt"]
    assert list(json.loads((layers / "metadata.json").read_text())["files"]) == ["layer_00.pt", "layer_01.pt"]
    monkeypatch.undo()
    assert extract(folders[1], layers)[1] == 2
    assert {name: (layers / name).stat().st_mtime_ns for name in before} == before
    assert verify(layers) == DEPTH


def test_layers_of_another_donor_are_refused_unless_forced(copy: Path, tmp_path: Path) -> None:
    other = write_donor(tmp_path / "other", seed=5)
    with pytest.raises(ModelError, match=r"not those of .*other; choose another --output_dir"):
        extract(other, copy)
    extract(other, copy, force=True)
    assert torch.equal(
        load_layer_file(copy, 0)["mlp.up_proj.weight"],
        load_donor_layer_state(other, 0)["mlp.up_proj.weight"],
    )


def test_layer_files_of_unknown_origin_are_refused(folders: tuple[Path, Path], copy: Path) -> None:
    (copy / "metadata.json").unlink()
    with pytest.raises(ModelError, match="unknown origin"):
        extract(folders[1], copy)


def test_damaged_metadata_is_one_clear_line(
    folders: tuple[Path, Path], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "metadata.json").write_text("{")
    command = ["--model_name", str(folders[1]), "--output_dir", str(copy)]
    assert run_tool("extract_layers.py", main, command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "metadata.json is not valid JSON" in error
    assert main([*command, "--force"]) == 0


@pytest.mark.parametrize("name", ["lama", "unaligned_llamba", "/nowhere"])
def test_an_unknown_model_is_one_clear_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model_name", name, "--output_dir", str(tmp_path / "layers")]
    assert run_tool("extract_layers.py", main, command) == 2
    assert f"--model_name {name!r} is neither a folder here nor a hub id" in capsys.readouterr().err
    assert not (tmp_path / "layers").exists()


def test_a_full_disk_is_named_and_leaves_nothing_half_written(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = tmp_path / "layers"
    with files_of_at_most(8192):
        code = run_tool("extract", main, ["--model_name", str(folders[1]), "--output_dir", str(layers)])
    assert code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the disk is full" in error
    assert not list(layers.glob("*layer_*"))


def test_the_donor_of_a_named_pair(pair_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pair", pair_name, "--output_dir", str(tmp_path / "layers")]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == {
        "output_dir": str(tmp_path / "layers"),
        "layers": DEPTH,
        "written": DEPTH,
        "pair": pair_name,
    }


@pytest.mark.parametrize("forced", [[], ["--force"]])
def test_a_folder_of_something_else_stays_as_it_is(
    forced: list[str], pair_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("another model's")
    command = ["--pair", pair_name, "--output_dir", str(tmp_path), *forced]
    assert run_tool("extract", main, command) == 2
    assert "holds no extracted layers (it has config.json)" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == "another model's"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "change", [{"num_layers": "x"}, {"source": None}, {"files": 3}, {"files": {"layer_00.pt": "x"}}]
)
def test_metadata_that_is_not_ours_is_named(
    change: dict[str, object], copy: Path, pair_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(metadata | change))
    command = ["--pair", pair_name, "--output_dir", str(copy)]
    for arguments in (command, [*command, "--verify"]):
        assert run_tool("extract", main, arguments) == 2
        assert "metadata.json is not what extract_layers.py writes" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0


def test_what_a_killed_run_left_of_a_layer_is_cleared_away(folders: tuple[Path, Path], copy: Path) -> None:
    (copy / ".layer_02.pt.4711.part").write_bytes(b"half")
    assert extract(folders[1], copy)[1] == 0
    assert not list(copy.glob(".*"))


def test_force_keeps_what_is_right(folders: tuple[Path, Path], copy: Path) -> None:
    (copy / "layer_01.pt").unlink()
    assert extract(folders[1], copy, force=True)[1] == 1


def test_force_without_room_for_the_new_layers_keeps_the_old(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_donor(tmp_path / "other", width=64, seed=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 999, 1))
    with pytest.raises(ModelError, match="free some space"):
        extract(other, copy, force=True)
    assert verify(copy) == DEPTH


def test_a_full_disk_is_that_of_the_output(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = tmp_path / "layers"
    for size in (1000, 8192):  # a small file, a layer
        with files_of_at_most(size):
            assert run_tool("extract", main, ["--model_name", str(folders[1]), "--output_dir", str(layers)]) == 1
        assert f"the disk is full for {layers}" in capsys.readouterr().err


def test_two_runs_in_one_folder_do_not_meet(folders: tuple[Path, Path], copy: Path) -> None:
    with held(copy), pytest.raises(ModelError, match="another run is writing"):
        extract(folders[1], copy)
