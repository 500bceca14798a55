"""Tensors from weight files straight into other weight files, a few megabytes at a time.

No model is built and tensors are not whole in memory (but for transposed ones in pickled files), so what is written may
be larger than the machine's memory. On the way every value is checked to be a number, and the SHA-256 of the new file
is taken.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from models.errors import ModelError
from models.weights import WeightFile, damaged

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""By their names in a safetensors header: https://github.com/huggingface/safetensors#format."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK = 8 << 20
"""Bytes read at a time: enough for the disk, little enough for the caches of a processor."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a weight file, not read yet."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int | None
    """Where its bytes begin in the file; None where they do not lie there in order, as those of a transpose."""
    cast: torch.dtype | None = None
    """The dtype in which it is to be written, where that is another one."""

    @property
    def written_dtype(self) -> torch.dtype:
        """The dtype in which it is to be written."""
        return self.cast or self.dtype

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes once written."""
        return self.numel * self.written_dtype.itemsize


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """What a weight file holds, by name; of safetensors only the header is read, of a pickled file its index.

    Raises:
        ModelError: the file is missing, damaged or cut short.
    """
    if not path.is_file():
        raise ModelError(f"{path} is missing; download or extract it again")
    if path.suffix == ".safetensors":
        return _in_safetensors(path)
    return _in_archive(path)


def find_tensors(files: Mapping[str, tuple[str, Path]]) -> dict[str, StoredTensor]:
    """Tensors by the names that `files` gives them; its values say what they are called in which file.

    Raises:
        ModelError: a file is missing or damaged, or lacks a tensor.
    """
    stored = {path: stored_tensors(path) for path in {path for _, path in files.values()}}
    for name, path in files.values():
        if name not in stored[path]:
            raise ModelError(f"{path} lacks {name}; download or extract it again")
    return {ours: stored[path][name] for ours, (name, path) in files.items()}


def _in_safetensors(path: Path) -> dict[str, StoredTensor]:
    with WeightFile(path), path.open("rb") as file:  # the library checks that the header fits the file
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    try:
        return {
            name: StoredTensor(
                path, name, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
            )
            for name, entry in entries.items()
        }
    except KeyError as error:
        raise damaged(path, KeyError(f"values of dtype {error}")) from error


def _in_archive(path: Path) -> dict[str, StoredTensor]:
    """Of what `torch.save` wrote. Mapped, all storages lie in one piece of memory as they lie in the file."""
    if not zipfile.is_zipfile(path):
        WeightFile(path)  # says so if it is damaged
        raise ModelError(
            f"{path} is in PyTorch's format of before 1.6, which cannot be read piece by piece; "
            "load it and save it again with torch.save"
        )
    with WeightFile(path) as weights:
        tensors = {name: weights[name] for name in weights.names}
    places = sorted(tensor.untyped_storage().data_ptr() for tensor in tensors.values() if tensor.numel())
    try:
        records = [offset for offset, size in _records(path) if size]
    except (zipfile.BadZipFile, ValueError, struct.error) as error:  # PyTorch's own reader takes more than Python's
        raise damaged(path, error) from error
    start = places[0] - min(records) if places and records else 0
    in_one_piece = {place - start for place in places} == set(records)
    return {
        name: StoredTensor(
            path,
            name,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.data_ptr() - start if in_one_piece and tensor.numel() and tensor.is_contiguous() else None,
        )
        for name, tensor in tensors.items()
    }


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor], advance: Callable[[int], None]) -> str:
    """Write tensors as one safetensors file and return its SHA-256 in hex digits.

    Args:
        path: of the new file.
        tensors: where each comes from, in the order in which they will lie.
        advance: called with bytes written since the last call; it may raise to stop.

    Raises:
        ModelError: a source is damaged, or holds values that are not numbers.
        OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        extent = [offset, offset + tensor.nbytes]
        dtype = _NAMES[tensor.written_dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": extent}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors are aligned
    begin = 8 + len(text)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    places = [(begin + header[name]["data_offsets"][0], tensor) for name, tensor in tensors.items()]
    return _fill(path, places, advance)


def write_archive(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    advance: Callable[[int], None],
    wrap: Callable[[dict[str, Tensor]], Any] = dict,
) -> str:
    """Write `wrap` of a dictionary of tensors as `torch.save` would, and return the file's SHA-256 in hex digits.

    Names that share one `StoredTensor` share their storage in the file. The archive's CRC-32 sums of tensors are
    left out: PyTorch does not look at them, but `unzip -t` complains.

    Args:
        path: of the new file.
        tensors: where each comes from.
        advance: as in `write_safetensors`.
        wrap: gets tensors of no meaning by name; returns the object to write.

    Raises:
        ModelError, OSError: as `write_safetensors`.
    """
    distinct = list(dict.fromkeys(tensors.values()))
    # Memory that is never written to is never given out, so these tensors cost only addresses.
    empty = {tensor: torch.empty(tensor.shape, dtype=tensor.written_dtype) for tensor in distinct}
    with torch.serialization.skip_data(), path.open("wb") as file:
        torch.save(wrap({name: empty[tensor] for name, tensor in tensors.items()}), file)
    records = _records(path)
    if [size for _, size in records] != [tensor.nbytes for tensor in distinct]:
        raise AssertionError("torch.save did not lay out tensors in the order in which it was given them")
    places = [(offset, tensor) for (offset, _), tensor in zip(records, distinct, strict=True)]
    return _fill(path, places, advance)


def _records(path: Path) -> list[tuple[int, int]]:
    """Where the storages of a `torch.save` archive begin, and how many bytes each has, by number."""
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            folder, _, number = entry.filename.rpartition("/")
            if folder.endswith("/data") and number.isdecimal():
                file.seek(entry.header_offset + 26)  # lengths of name and extra field, behind which the data begin
                found[int(number)] = (file.tell() + 4 + sum(struct.unpack("<HH", file.read(4))), entry.file_size)
    return [found[number] for number in sorted(found)]


def _fill(path: Path, places: Iterable[tuple[int, StoredTensor]], advance: Callable[[int], None]) -> str:
    """Put tensors at their offsets into a file that is else complete, and return its SHA-256."""
    digest = hashlib.sha256()
    # Hashing takes about as long as reading, checking and writing together, and both let other threads run.
    with path.open("r+b") as file, ThreadPoolExecutor(1) as beside, _Sources() as sources:
        for offset, tensor in sorted(places, key=lambda place: place[0]):
            _hash_up_to(offset, file, digest)
            for chunk in _chunks(tensor, sources):
                hashed = beside.submit(digest.update, chunk)
                try:
                    file.write(chunk)
                    advance(len(chunk))
                finally:
                    hashed.result()  # the next chunk takes the place of this one
        _hash_up_to(path.stat().st_size, file, digest)
        file.truncate()
    return digest.hexdigest()


def _hash_up_to(offset: int, file: IO[bytes], digest: Any) -> None:
    """Hash what stands between the position of `file` and `offset`, and leave it there."""
    file.flush()
    while (left := offset - file.tell()) > 0:
        block = file.read(min(left, _CHUNK))
        if not block:
            file.seek(offset)
            return
        digest.update(block)


class _Sources:
    """Open source files, one at a time, and the buffer that they are read into."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._buffer = memoryview(bytearray(_CHUNK))

    def __enter__(self) -> _Sources:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, path: Path, offset: int, size: int) -> Iterator[memoryview]:
        """The bytes there, in pieces; each is overwritten by the next."""
        if self._file is None or self._file.name != str(path):
            if self._file is not None:
                self._file.close()
            self._file = path.open("rb", buffering=0)
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._file.seek(offset)
        while size:
            count = self._file.readinto(self._buffer[: min(size, _CHUNK)])  # type: ignore[attr-defined]
            if not count:
                raise damaged(path, EOFError("its end is missing"))
            # A read may end inside a value; what is missing of it is read as well.
            while count % 8 and count < size and (more := self._file.read(min(8 - count % 8, size - count))):
                self._buffer[count : count + len(more)] = more
                count += len(more)
            yield self._buffer[:count]
            size -= count


def _chunks(tensor: StoredTensor, sources: _Sources) -> Iterator[memoryview]:
    """The bytes to write, in pieces; each may be overwritten by the next."""
    for values in _values(tensor, sources):
        _check(values, tensor)
        written = values if tensor.cast is None else values.to(tensor.cast)
        if tensor.cast is not None:
            _check(written, tensor)
        yield written.view(torch.uint8).numpy().data


def _values(tensor: StoredTensor, sources: _Sources) -> Iterator[Tensor]:
    """The tensor's values, flat, in pieces."""
    if tensor.offset is None:
        with WeightFile(tensor.path) as weights:
            whole = weights[tensor.name].contiguous().flatten()
        yield from whole.split(_CHUNK // whole.element_size())
        return
    for block in sources.read(tensor.path, tensor.offset, tensor.numel * tensor.dtype.itemsize):
        yield torch.frombuffer(block, dtype=tensor.dtype)


def _check(values: Tensor, tensor: StoredTensor) -> None:
    """Raise ModelError if one of the values is NaN or infinite."""
    # A sum is a single pass at the speed of memory and shows what is no number; it may also just overflow.
    if not values.is_floating_point() or values.element_size() == 1 or bool(values.sum().isfinite()):
        return
    if values.isfinite().all():
        return
    what = "NaN" if values.isnan().any() else "an infinity"
    if values.dtype != tensor.dtype:
        what = f"values beyond {str(values.dtype).removeprefix('torch.')}"
    raise ModelError(f"{tensor.path}: the tensor {tensor.name} holds {what}; get the model again from its source")
