"""Parts of a checkpoint that cannot be used, or not trusted: each is named, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from model_preparation import load_model
from model_preparation.create_replaced_model_checkpoint import main
from models.errors import ModelError
from models.hybrid import HybridPair

from .conftest import refused


@pytest.fixture
def command(pair_name: str, layers_dir: Path) -> list[str]:
    """What most command lines here share."""
    return ["--pair", pair_name, "--llama_layers_dir", str(layers_dir)]


def test_layers_between_commas_are_explained(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command, "--output_dir", str(tmp_path / "made"), "--layers", "1,3"]
    assert "'1,3' is no layer; give numbers with spaces between them" in refused(arguments, capsys)


def spoiled(folder: Path, copy: Path, name: str, value: float) -> Path:
    """A copy of a base of which one value is another."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors[name].view(-1)[5] = value
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("inf"), "an infinity")])
def test_a_tensor_with_values_that_are_no_numbers_is_named(
    value: float,
    what: str,
    folders: tuple[Path, Path],
    layers_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = spoiled(folders[0], tmp_path / "base", "backbone.layers.2.mlp.up_proj.weight", value)
    command = ["--base", str(base), "--donor", str(folders[1]), "--llama_layers_dir", str(layers_dir)]
    line = refused([*command, "--output_dir", str(tmp_path / "made"), "--layers", "1"], capsys)
    assert f"the tensor backbone.layers.2.mlp.up_proj.weight holds {what}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_weights_are_cast_where_asked_and_must_fit(
    command: list[str], folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--layers", "1", "--dtype", "float32", "--output_dir", str(tmp_path / "made")]
    assert main([*command, *target]) == 0
    ours, theirs = load_model(tmp_path / "made")[0].state_dict(), HybridPair.load(*folders).assemble([1]).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.load(tmp_path / "made" / "model.pt").dtype == torch.float32
    base = spoiled(folders[0], tmp_path / "base", "backbone.layers.2.mlp.up_proj.weight", 1e9)
    half = ["--base", str(base), "--donor", str(folders[1]), "--layers", "1", "--dtype", "float16"]
    assert "holds values beyond float16" in refused([*half, "--output_dir", str(tmp_path / "half")], capsys)


def test_a_base_that_is_cut_short_is_named(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(folders[0], tmp_path / "base")
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[:-100])
    command = ["--base", str(base), "--donor", str(folders[1]), "--layers", "1", "--output_dir", str(tmp_path / "made")]
    assert "model.safetensors is damaged or cut short" in refused(command, capsys)


def test_code_of_a_tokenizer_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "evil")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ModelError, match="the tokenizer in"):
        load_model(copy)
    assert not (tmp_path / "ran").exists()


def test_layers_that_are_not_on_record_are_not_trusted(
    command: list[str], layers_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(layers_dir, tmp_path / "layers")
    metadata = json.loads((copy / "metadata.json").read_text())
    del metadata["files"]["layer_01.pt"]
    (copy / "metadata.json").write_text(json.dumps(metadata))
    arguments = ["--llama_layers_dir", str(copy), "--layers", "1", "--output_dir", str(tmp_path / "made")]
    assert "layer_01.pt is not in metadata.json; run extract_layers.py again" in refused([*command, *arguments], capsys)
