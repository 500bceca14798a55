"""Weight files of local folders, read lazily: safetensors or pickled, whole or in shards; fingerprints.

Every fault of a file becomes one ModelError that names it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from models.errors import ModelError

WEIGHT_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""A folder's weights in one file, or the index of its shards; the first that exists is read."""

_WHOLE_BYTES = 64 << 20  # files up to this size are hashed whole, about 0.1 s
_SAMPLE_BYTES = 4096
_SAMPLES = 256  # spread evenly over a larger file, besides those of every tensor


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Raises:
        ModelError: The file is missing or holds anything else.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{path} does not exist; give a folder that holds a model") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({one_line(error)}); download the model again") from error
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        raise ModelError(f"{path} holds a JSON {kind}, not an object; download the model again")
    return fields


def tensor_files(folder: str | Path) -> dict[str, Path]:
    """Which file holds which tensor of a model.

    Raises:
        ModelError: No weights, a broken index or a missing shard.
    """
    folder = Path(folder)
    for single, index in WEIGHT_FILES:
        if (folder / single).is_file():
            with WeightFile(folder / single) as weights:
                return dict.fromkeys(weights.names, folder / single)
        if (folder / index).is_file():
            return _sharded(folder, folder / index)
    known = " or ".join(single for single, _ in WEIGHT_FILES)
    raise ModelError(f"{folder} holds no weights ({known}, whole or in shards); download the model again")


def _sharded(folder: Path, index: Path) -> dict[str, Path]:
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise ModelError(f"{index} has no weight_map; download the model again")
    shards = sorted(set(map(str, entries.values())))
    for shard in shards:
        if Path(shard).name != shard:
            raise ModelError(f"{index} names a shard outside its folder: {shard!r}")
        if not shard.isprintable() or len(shard) > 255:
            raise ModelError(f"{index} names a shard that is no name of a file: {shard[:80]!r}")
        if not (folder / shard).is_file():
            count = f"one of {len(shards)} shards"
            raise ModelError(f"{folder / shard} is missing, {count}; download the model again")
    return {str(name): folder / str(shard) for name, shard in entries.items()}


def read_tensors(files: dict[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """Each named tensor in turn, on the CPU; every file is opened once.

    Raises:
        ModelError: A file is missing, damaged, or lacks a tensor it should hold.
    """
    for path in sorted(set(files.values())):
        with WeightFile(path) as weights:
            for name in sorted(name for name, where in files.items() if where == path):
                yield name, weights[name]


class WeightFile:
    """One file of tensors, safetensors by its suffix or else pickled; each is read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        if not path.is_file():
            raise ModelError(f"{path} is missing; download or extract it again")
        try:
            if path.suffix == ".safetensors":
                self._file = safe_open(path, framework="pt")
            else:
                mapped = zipfile.is_zipfile(path)  # torch's older format is none, and cannot be mapped
                if not mapped and _starts_as_zip(path):
                    raise EOFError("its table of contents is gone")
                self._file = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:
            raise damaged(self.path, error) from error
        if path.suffix != ".safetensors" and not isinstance(self._file, dict):
            raise ModelError(f"{path} holds a {type(self._file).__name__}, not a dictionary of tensors")
        self.names: list[str] = [str(name) for name in self._file.keys()]  # noqa: SIM118 - safe_open is no dict

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise ModelError(f"{self.path} lacks {name}; download or extract it again")
        try:
            tensor = self._file[name] if isinstance(self._file, dict) else self._file.get_tensor(name)
        except Exception as error:
            raise damaged(self.path, error) from error
        if not isinstance(tensor, Tensor):
            raise ModelError(f"{self.path} holds a {type(tensor).__name__} as {name!r}, not a tensor")
        return tensor

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file = None  # tensors already read keep their part of the mapped file alive


def damaged(path: Path, error: Exception) -> Exception:
    """What to raise of a weight file where a library raised `error`, as damage makes them raise any error there is."""
    if isinstance(error, OSError) and error.filename is not None:
        return error  # of the disk; it names the file by itself
    return ModelError(f"{path} is damaged or cut short ({one_line(error)}); download or extract it again")


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def hash_file(path: Path) -> bytes:
    """A digest of a weight file: of all of it where it is small, else of its layout and of samples of it.

    Samples are 4 KiB long: the first, middle and last of every tensor, and 256 places spread over the file; what
    `torch.save` wrote carries a checksum of every tensor besides. Other weights are all but sure to show, in
    milliseconds; of a large file without checksums an edit of a few kilobytes may not.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{path.name} {size}\n".encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.digest()
        starts = {size * k // _SAMPLES for k in range(_SAMPLES)} | {size - _SAMPLE_BYTES}
        if path.suffix == ".safetensors":
            with WeightFile(path):  # which checks the header
                header = file.read(int.from_bytes(file.read(8), "little"))
            digest.update(header)
            begin = 8 + len(header)
            for low, high in sorted(_extents(header)):
                starts |= {begin + low, begin + (low + high) // 2, begin + max(low, high - _SAMPLE_BYTES)}
        elif zipfile.is_zipfile(path):
            try:
                archive = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, ValueError, struct.error) as error:
                raise damaged(path, error) from error
            with archive:
                entries = archive.infolist()
                for entry in entries:
                    digest.update(f"{entry.filename} {entry.file_size} {entry.CRC}\n".encode())
                marks = sorted(entry.header_offset for entry in entries)
                for low, high in pairwise([*marks, archive.start_dir]):
                    starts |= {low, (low + high) // 2, max(low, high - _SAMPLE_BYTES)}
        for start in sorted(starts):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def _extents(header: bytes) -> set[tuple[int, int]]:
    """Where each tensor of a safetensors file begins and ends, in bytes after the header."""
    entries = json.loads(header)
    return {tuple(entry["data_offsets"]) for name, entry in entries.items() if name != "__metadata__"}


def one_line(error: BaseException) -> str:
    """What an error of a library says, short enough for a line of ours."""
    return (" ".join(str(error).split()) or type(error).__name__)[:240]
