"""Streaming: whatever the source's format, the bytes arrive and the checksum is the file's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_preparation import tensor_stream
from model_preparation.tensor_stream import stored_tensors, write_archive, write_safetensors
from models.errors import ModelError


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Of several dtypes and odd sizes; one is larger than a chunk."""
    torch.manual_seed(0)
    return {
        "large": torch.randn(tensor_stream._CHUNK // 4 + 3),
        "half": torch.randn(33, 5).half(),
        "bf16": torch.randn(7, 3).bfloat16(),
        "whole": torch.arange(5),
        "one": torch.tensor(2.5),
    }


def nothing(count: int) -> None:
    """Counts nothing."""


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_archive(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path)


@pytest.mark.parametrize(("name", "save"), [("a.safetensors", save_file), ("a.pt", save_archive)])
def test_what_is_written_is_what_was_there(
    name: str, save: Callable[[dict[str, Tensor], Path], None], tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    save(tensors, tmp_path / name)
    stored = stored_tensors(tmp_path / name)
    assert all(tensor.offset is not None for tensor in stored.values())
    assert write_safetensors(tmp_path / "b.safetensors", stored, nothing) == digest(tmp_path / "b.safetensors")
    assert write_archive(tmp_path / "b.pt", stored, nothing) == digest(tmp_path / "b.pt")
    for copy in (load_file(tmp_path / "b.safetensors"), torch.load(tmp_path / "b.pt", weights_only=True)):
        assert copy.keys() == tensors.keys()
        assert all(torch.equal(copy[name], tensor) for name, tensor in tensors.items())


def test_views_and_shared_storages_of_a_pickled_file_arrive(tmp_path: Path) -> None:
    block = torch.arange(24.0).reshape(4, 6)
    tensors = {"rows": block[1:3], "transposed": block.t(), "again": block}
    torch.save(tensors, tmp_path / "a.pt")
    stored = stored_tensors(tmp_path / "a.pt")
    assert stored["transposed"].offset is None
    write_safetensors(tmp_path / "b.safetensors", stored, nothing)
    copy = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(copy[name], tensor) for name, tensor in tensors.items())


def test_an_archive_is_what_torch_would_have_saved(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """The plain twin; the layout may differ, the content not."""
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "plain.pt")
    write_archive(tmp_path / "ours.pt", stored_tensors(tmp_path / "a.safetensors"), nothing)
    ours, plain = stored_tensors(tmp_path / "ours.pt"), stored_tensors(tmp_path / "plain.pt")
    assert ours.keys() == plain.keys()
    for name in plain:
        assert (ours[name].dtype, ours[name].shape) == (plain[name].dtype, plain[name].shape)


def test_names_of_one_tensor_share_its_bytes(tmp_path: Path) -> None:
    save_file({"a": torch.randn(1000)}, tmp_path / "a.safetensors")
    stored = stored_tensors(tmp_path / "a.safetensors")
    write_archive(tmp_path / "b.pt", stored | {"tied": stored["a"]}, nothing)
    assert (tmp_path / "b.pt").stat().st_size < 2 * 4000
    copy = torch.load(tmp_path / "b.pt", weights_only=True)
    assert copy["a"].data_ptr() == copy["tied"].data_ptr()


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_source_that_is_cut_short_is_named(
    kept: int, suffix: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    (save_file if suffix == "safetensors" else save_archive)(tensors, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=f"a.{suffix} .*(cut short|damaged|before 1.6)"):
        stored_tensors(path)


def test_the_oldest_format_is_told_what_to_do(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="cannot be read piece by piece"):
        stored_tensors(tmp_path / "a.bin")


def test_a_value_that_is_no_number_is_found_wherever_it_is(tmp_path: Path) -> None:
    for place in (0, tensor_stream._CHUNK // 4, -1):
        values = torch.zeros(tensor_stream._CHUNK // 4 + 3)
        values[place] = float("nan")
        save_file({"fine": torch.ones(3), "spoiled": values}, tmp_path / "a.safetensors")
        with pytest.raises(ModelError, match="the tensor spoiled holds NaN"):
            write_safetensors(tmp_path / "b.safetensors", stored_tensors(tmp_path / "a.safetensors"), nothing)


def test_a_sum_that_overflows_is_no_fault(tmp_path: Path) -> None:
    save_file({"a": torch.full((100,), 3e38)}, tmp_path / "a.safetensors")
    write_safetensors(tmp_path / "b.safetensors", stored_tensors(tmp_path / "a.safetensors"), nothing)
    assert torch.equal(load_file(tmp_path / "b.safetensors")["a"], torch.full((100,), 3e38))
