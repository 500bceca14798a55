"""Whose weights these are: layers of another revision or of a donor that changed, fingerprints, commits on record."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from model_preparation import create_replaced_model_checkpoint as tool
from model_preparation import hubs
from model_preparation.create_replaced_model_checkpoint import donor_folder, main
from model_preparation.extract_layers import extract
from models.layer_files import fingerprint, layer_file
from models.pairs import HubModel, Source, make_pair

from .conftest import refused, write_donor

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def info_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "checkpoint_info.json").read_text()))


def test_layers_of_another_revision_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = tmp_path / "layers"
    extract(folders[1], layers, source=Source.parse("hf:org/llama@r1"))
    options = ["--base", str(folders[0]), "--llama_layers_dir", str(layers), "--layers", "1", "--formats"]
    options += ["safetensors", "--output_dir", str(tmp_path / "made"), "--donor"]
    capsys.readouterr()
    assert "holds the layers of org/llama@r1, not of org/llama@r2" in refused([*options, "hf:org/llama@r2"], capsys)
    assert main([*options, "hf:org/llama@r1"]) == 0


@pytest.mark.parametrize("how", ["local", "cached"])
def test_layers_of_a_donor_that_changed_are_not_used(
    how: str,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    donor, layers = write_donor(tmp_path / "donor"), tmp_path / "layers"
    monkeypatch.setattr(hubs, "cached", lambda _: donor)
    monkeypatch.setattr(tool, "default_layers_dir", lambda: layers)
    pair = make_pair(str(folders[0]), str(donor) if how == "local" else "hf:org/llama")
    extract(donor, layers, source=pair.donor)
    capsys.readouterr()
    assert donor_folder(pair, [1]) == layers
    assert capsys.readouterr().err == ""
    shutil.rmtree(donor)
    write_donor(donor, seed=2)
    capsys.readouterr()
    assert donor_folder(pair, [1]) == donor
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"the layers in {layers} are not those of {donor} as it is now and are not used; ")


def test_the_identity_of_extracted_layers_follows_every_byte_that_was_written(
    layers_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.weights._WHOLE_BYTES", 0)
    monkeypatch.setattr("models.weights._SAMPLE_BYTES", 1)
    copy = shutil.copytree(layers_dir, tmp_path / "layers")
    first = fingerprint(copy)
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(metadata | {"tool": "another", "pair": "another"}))
    assert fingerprint(copy) == first
    metadata["files"]["layer_02.pt"]["sha256"] = "0" * 64
    (copy / "metadata.json").write_text(json.dumps(metadata))
    assert fingerprint(copy) != first


def test_samples_of_an_archive_without_checksums_see_every_tensor(
    layers_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr("models.weights._WHOLE_BYTES", 0)
    monkeypatch.setattr("models.weights._SAMPLE_BYTES", 256)
    monkeypatch.setattr("models.weights._SAMPLES", 1)
    copy = shutil.copytree(layers_dir, tmp_path / "layers")
    path = layer_file(copy, 2)
    state, whole = torch.load(path, weights_only=True), path.read_bytes()
    seen = {fingerprint(copy)}
    matrices = [tensor for tensor in state.values() if tensor.dim() == 2]
    for tensor in matrices:
        stored = bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())
        at = whole.find(stored) + len(stored) // 2  # were it at the start, any sampling would see it
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        seen.add(fingerprint(copy))
    assert len(seen) == 1 + len(matrices) == 8


def test_the_command_on_record_names_commits_and_makes_the_same_again(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, donor = (
        shutil.copytree(folder, tmp_path / f"models--org--{name}" / "snapshots" / COMMIT)
        for folder, name in zip(folders, ("base", "donor"), strict=True)
    )
    here = {"org/base": base, "org/donor": donor}
    monkeypatch.setattr(hubs, "cached", lambda model: here.get(model.id) if model.hub == "huggingface" else None)
    monkeypatch.setattr(tool, "default_layers_dir", lambda: tmp_path / "none here")
    layers, target = tmp_path / "layers", tmp_path / "made"
    extract(donor, layers, source=Source.parse("org/donor"))
    given = ["--base", "org/base", "--donor", "org/donor", "--layers", "1", "--formats", "safetensors"]
    given += ["--score", "0.25", "--description=- with a dash"]
    assert main([*given, "--output_dir", str(target), "--llama_layers_dir", str(layers)]) == 0
    info = info_of(target)
    words = shlex.split(info["command"])
    for option, name in (("--base", "base"), ("--donor", "donor")):
        (model,) = Source.parse(words[words.index(option) + 1]).hubs
        assert model == HubModel(hub="huggingface", id=f"org/{name}", revision=COMMIT)
    assert (
        main([*words[3 : words.index("NEW_FOLDER")], str(tmp_path / "again"), *words[words.index("NEW_FOLDER") + 1 :]])
        == 0
    )
    again = info_of(tmp_path / "again")
    assert again["command"] == info["command"]
    for name in ("mmlu_score", "description", "base_revision", "donor_revision", "base_fingerprint"):
        assert again[name] == info[name] is not None, name
    assert again["files"]["model.safetensors"] == info["files"]["model.safetensors"]


def test_the_command_on_record_names_a_pair_where_no_commit_is_known(checkpoint: Path, pair_name: str) -> None:
    words = shlex.split(info_of(checkpoint)["command"])
    assert words[words.index("--pair") + 1] == pair_name
    assert words[words.index("--score") + 1] == "0.57"
    assert "--description=for tests" in words
    assert "--base" not in words
