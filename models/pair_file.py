"""A pair of a user's own in a YAML file, which is its name wherever a name of the zoo is taken."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from models.errors import ModelError
from models.pairs import Pair, Source, make_pair

_TEXTS = ("base", "donor", "task_dir", "description", "license", "preset")
_LISTS = ("tasks", "unseen_tasks")


def read_pair(path: Path) -> Pair:
    """The pair that a file tells of, named by the file's absolute path.

    `base` and `donor` are as `Source.parse` takes them; folders count from where the file lies. All else is as in
    `Pair`, and what is left out is what `make_pair` knows of the two models.

    Raises:
        ModelError: The file cannot be read, or names the key or value that cannot be.
    """
    facts = _checked(path, _read(path))
    folder = path.resolve().parent
    pair = make_pair(*(_model(path, folder, role, facts.pop(role)) for role in ("base", "donor")))
    if "task_dir" in facts:
        facts["task_dir"] = folder / os.path.expanduser(facts["task_dir"])
        if not os.path.isdir(facts["task_dir"]):
            raise ModelError(
                f"{path}: task_dir {str(facts['task_dir'])!r} is no folder; give the one of the task files"
            )
    return replace(pair, name=str(path.resolve()), **{"description": "a pair of your own", **facts})


def _read(path: Path) -> Any:
    """What stands in a file: every value is a text or a list of texts, whatever YAML makes of a number or a date."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except FileNotFoundError:
        raise ModelError(f"there is no pair file {path}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}," if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ModelError(
            f"{path}{where} is not YAML ({reason}); write a pair as `base: MODEL`, `donor: MODEL`"
        ) from error


def _checked(path: Path, found: Any) -> dict[str, Any]:
    """The facts in a file, with keys and types as they must be."""
    lacking = [role for role in ("base", "donor") if not isinstance(found, Mapping) or role not in found]
    if len(lacking) == 2:
        raise ModelError(f"{path} is no pair; it must say `base: MODEL` and `donor: MODEL`")
    known = (*_TEXTS, *_LISTS)
    for key in found:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ModelError(f"{path}: there is no {key!r} in a pair; the nearest is {close[0]!r}")
    if lacking:
        raise ModelError(f"{path} is no pair; it must also say `{lacking[0]}: MODEL`")
    for key, value in found.items():
        texts = [value] if key in _TEXTS else value
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            kind = "one text" if key in _TEXTS else "a list of names, as [mmlu]"
            raise ModelError(f"{path}: {key}: {value!r} cannot be; give {kind}")
    return {key: tuple(value) if key in _LISTS else value for key, value in found.items()}


def _model(path: Path, folder: Path, role: str, text: str) -> str:
    """A model as `Source.parse` takes it: a folder beside the file by its absolute path, all else as it is."""
    beside = folder / os.path.expanduser(text)
    if os.path.isdir(beside):  # False for what can be no path, too, as a name that is too long
        return str(beside.resolve())
    if text.startswith((".", "/", "~")):
        raise ModelError(
            f"{path}: the {role} {text!r} is no folder ({str(beside)!r}); check the path, which counts from the file"
        )
    try:
        Source.parse(text)
    except ModelError as error:
        raise ModelError(f"{path}: the {role} {error}; there is no folder {str(beside)!r}") from error
    return text
