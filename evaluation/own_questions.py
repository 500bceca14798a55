"""Questions for tasks of a user's own: written into the task's file, or in a file beside it.

A task names one of these functions, and lm-eval calls it: `custom_dataset: !function evaluation.own_questions.listed`.
Nothing is left in the cache of `datasets`, where a changed file could meet a stale copy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

from evaluation.errors import EvaluationError


def listed(*, questions: list[dict[str, Any]], **_metadata: object) -> datasets.DatasetDict:
    """The questions that the task's `dataset_kwargs` list, as the split `test`."""
    return _split(questions)


def from_file(*, file: str, config_source: str, **_metadata: object) -> datasets.DatasetDict:
    """The questions of a file beside the task's own, one JSON object a line, as the split `test`.

    Raises:
        EvaluationError: The file cannot be read, or names the line that is no JSON object.
    """
    path = Path(config_source).parent / file
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror}; `file` counts from where the task's file lies") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(_object(line, f"{path}, line {number}"))
    return _split(found)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EvaluationError(f"{where} is no JSON object; write one question a line")
    return found


def _split(questions: list[dict[str, Any]]) -> datasets.DatasetDict:
    return datasets.DatasetDict(test=datasets.Dataset.from_list(questions))
