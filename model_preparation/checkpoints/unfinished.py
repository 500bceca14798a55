"""A folder that appears whole or not at all, and that an interrupted run may go on with."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_preparation.files import held, refuse_existing, restore_place, sha256, take_place, umask, write_json
from models.errors import ModelError

_LOG = ".unfinished.json"


class Unfinished:
    """A folder being filled with files, of which those that are whole are on record.

    Attributes:
        path: Where to write.
        done: SHA-256 of the files that are whole, by name.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any], done: Mapping[str, str]) -> None:
        self.path = path
        self.done = dict(done)
        self._plan = plan

    def keep(self, part: Path, name: str, digest: str) -> None:
        """Give a file that is whole its name and put it on record."""
        os.replace(part, self.path / name)
        self.done[name] = digest
        self.save()

    def save(self) -> None:
        """Write down what is whole."""
        write_json(self.path / _LOG, {"plan": self._plan, "done": self.done})


def place_of(target: Path) -> Path:
    """Where `target` grows."""
    return target.with_name(f".{target.name}.unfinished")


@contextmanager
def unfinished_folder(target: Path, plan: Mapping[str, Any], *, force: bool, resume: bool) -> Iterator[Unfinished]:
    """A folder beside `target` to fill; it becomes `target` at the end.

    What a killed or interrupted run left is gone on with where it was about the same `plan`, and else begun anew.
    Files on record are kept whatever happens; where there are none, nothing is left.

    Args:
        target: The folder to make.
        plan: JSON values; all that shapes the files.
        force: Whether `target` may be replaced.
        resume: Refuse to throw away what is left of another plan.

    Raises:
        ModelError: `target` exists and not `force`; another run is at work on it; or see `resume`.
    """
    place = place_of(target)
    if files := [parent for parent in target.parents if parent.is_file()]:
        raise ModelError(f"{files[0]} is a file; {target} cannot lie in it, so choose another --output_dir")
    target.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir(exist_ok=True)
    with held(place):
        restore_place(target)
        try:
            refuse_existing(target, force=force)
            work = Unfinished(place, plan, _done(place, plan, resume=resume))
        except ModelError:
            if not (place / _LOG).exists():
                shutil.rmtree(place, ignore_errors=True)
            raise
        try:
            _clear(place, keep=work.done)
            work.save()
            yield work
            take_place(place, target, force=force)
            (target / _LOG).unlink()
        except BaseException:
            if work.done:
                print(f"{len(work.done)} files are whole and kept in {place} for the next run", file=sys.stderr)
            else:
                shutil.rmtree(place, ignore_errors=True)
            raise


def _done(place: Path, plan: Mapping[str, Any], *, resume: bool) -> dict[str, str]:
    """Files that an earlier run of the same plan finished and that are still what they were."""
    try:
        left = json.loads((place / _LOG).read_text(encoding="utf-8"))
        same, done = left["plan"] == json.loads(json.dumps(plan)), dict(left["done"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, RecursionError, IsADirectoryError):
        same, done = False, {}
    if not same:
        if resume:
            raise ModelError(
                f"{place} was begun from other weights, layers or options; leave --resume out to begin anew"
            )
        return {}
    whole = {name: digest for name, digest in done.items() if _is_whole(place / name, digest)}
    if whole:
        print(f"going on with {place}: {len(whole)} files are whole already", file=sys.stderr)
    return whole


def _is_whole(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _clear(place: Path, *, keep: Mapping[str, str]) -> None:
    for path in place.iterdir():
        if path.name not in keep:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    place.chmod(0o777 & ~umask())
