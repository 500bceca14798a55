"""What must stand in a task's file, looked at before lm-eval loads it: its own errors name neither file nor key."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from evaluation.errors import EvaluationError

_NEEDED = {  # and how each may be written
    "doc_to_text": '"{{question}}\\nAnswer:"',
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
}


_DEPTH = 100
_EVENTS = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # one after the other, so that no depth matters


def refuse_nested(folder: Path) -> None:
    """Refuse a file nested so deep that lm-eval's reader, which is in C, would take the process down.

    Raises:
        EvaluationError: Names it.
    """
    for file in folder.rglob("*.yaml"):
        depth = 0
        with suppress(yaml.YAMLError):  # which lm-eval tells, or passes over
            for event in yaml.parse(file.read_bytes(), Loader=_EVENTS):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > _DEPTH:
                    raise EvaluationError(f"task file {file} is nested more than {_DEPTH} deep; mend it")


def names_in(folder: Path) -> set[str]:
    """Names of the tasks and groups that the files of `folder` declare, without importing lm-eval."""
    names: set[str] = set()
    for file in folder.rglob("*.yaml"):
        try:
            config = yaml.load(file.read_bytes(), Loader=yaml.BaseLoader)  # all texts: nothing else is looked at
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}," if mark else ""
            problem = getattr(error, "problem", None) or type(error).__name__
            raise EvaluationError(f"task file {file}{where} is not YAML ({problem}); mend it") from error
        if isinstance(config, dict):
            found = (config.get(kind) for kind in ("group", "task"))
            names |= {name for name in found if isinstance(name, str) and name}
    return names


def spell_names(folder: Path) -> str:
    """What tasks a user's folder has, for the error about one that it has not.

    Raises:
        EvaluationError: It has none at all, or a file in it is no YAML.
    """
    names = names_in(folder)
    if not names:
        what = "no file there says `task: NAME`" if any(folder.rglob("*.yaml")) else "there is no file *.yaml in it"
        raise EvaluationError(f"--task-dir {folder} has no task: {what}; write one as ARCHITECTURE.md tells")
    return f"--task-dir {folder} has {', '.join(' '.join(name.split()) for name in sorted(names))}"


def check_complete(name: str, file: Path, config: Mapping[str, Any]) -> None:
    """Refuse a task that lacks what every multiple-choice task says.

    Args:
        name: Of the task.
        file: Where it stands.
        config: With what it includes; a function is the path that lm-eval makes of its name.

    Raises:
        EvaluationError: Names the file, and the key that lacks or is no function.
    """
    where = f"task {name} ({file})"
    if config.get("output_type") is None:
        raise EvaluationError(f"{where} has no output_type; add `output_type: multiple_choice`")
    reader = config.get("custom_dataset")
    if isinstance(reader, str) and "/" not in reader:
        reader = " ".join(reader.split())
        raise EvaluationError(
            f"{where} says `custom_dataset: {reader}`, a text; write `custom_dataset: !function {reader}`"
        )
    if config["output_type"] != "multiple_choice" or config.get("use_prompt"):
        return
    for key, example in _NEEDED.items():
        if config.get(key) is None:
            raise EvaluationError(f"{where} has no {key}; add it, such as `{key}: {example}`")
    if config.get("test_split") is None and config.get("validation_split") is None:
        raise EvaluationError(f"{where} has no test_split; add `test_split: test`")
