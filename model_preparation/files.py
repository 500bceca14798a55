"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.errors import ModelError

INFO = "checkpoint_info.json"
"""What every checkpoint folder holds."""
_BLOCK = 1 << 22
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Have a full disk be an OSError that names `path`, whatever was writing there and whatever it made of it."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except (RuntimeError, SafetensorError) as error:
        cause, numbered = error.__context__, re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(cause, OSError) and cause.errno is not None:
            number = cause.errno
        elif numbered:
            number = int(numbered[1])
        else:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs; a killed run lets go of it by itself.

    Raises:
        ModelError: another run holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ModelError(f"another run is writing {folder}; wait for it, or choose another --output_dir") from None
    finally:
        os.close(descriptor)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file moves to `path` at the end, and is removed on an error."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, replacing what was there in one step."""
    with replaced(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Of a file's content, in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise ModelError if `target` is there and must not be replaced; `force` is about checkpoints, nothing else."""
    if not target.exists() and not target.is_symlink():
        return
    is_folder = target.is_dir() and not target.is_symlink()
    if is_folder and not any(target.iterdir()):
        return
    if not (is_folder and (target / INFO).is_file()):
        raise ModelError(f"{target} exists already and is no checkpoint; choose another --output_dir")
    if not force:
        raise ModelError(f"{target} exists already; choose another --output_dir, or replace that folder with --force")


def share(folder: Path) -> None:
    """Give all files in a folder the usual permissions; some libraries write for their owner alone."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask())


def free_space(folder: Path) -> tuple[Path, int]:
    """Bytes free on the disk of `folder`, which need not exist yet, and the folder in which that was seen."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return there, shutil.disk_usage(there).free


def require_space(folder: Path, wanted: int) -> None:
    """Raise ModelError unless the disk of `folder`, which need not exist yet, has `wanted` bytes free."""
    there, free = free_space(folder)
    if free < wanted:
        raise ModelError(
            f"{there} has {free / 1e9:.1f} GB free and this needs {wanted / 1e9:.1f} GB; "
            "free some space or choose a folder on another disk"
        )


def take_place(unfinished: Path, target: Path, *, force: bool) -> None:
    """Move a folder to `target`; with `force` in place of the checkpoint there, which is removed."""
    refuse_existing(target, force=force)  # another run may have finished meanwhile
    if not target.exists():
        os.replace(unfinished, target)
        return
    old = _old(target)
    os.replace(target, old)  # a folder that is not empty cannot be replaced in one step
    try:
        os.replace(unfinished, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old)


def restore_place(target: Path) -> None:
    """Put right what a kill in the midst of `take_place` left: the old folder is there again, or gone for good."""
    old = _old(target)
    if old.is_dir():
        if target.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, target)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def umask() -> int:
    """The permissions that new files lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
