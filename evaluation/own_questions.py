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
    """The questions that the task's `dataset_kwargs` list, as the split `test`.

    Raises:
        EvaluationError: There are none, or one is no mapping, lacks a key that others have, or has a choice that is no
            text, as YAML reads `2` and `yes`.
    """
    if not isinstance(questions, list) or not all(isinstance(question, dict) for question in questions):
        raise EvaluationError("`questions` is no list of mappings; write one line like {question: ..., answer: 0} each")
    return _split({f"question {number} (counted from 0)": question for number, question in enumerate(questions)})


def from_file(*, file: str, config_source: str, **_metadata: object) -> datasets.DatasetDict:
    """The questions of a file beside the task's own, one JSON object a line, as the split `test`.

    Raises:
        EvaluationError: The file cannot be read, or a line is no JSON object or lacks a key that others have.
    """
    path = Path(config_source).parent / file
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror}; `file` counts from where the task's file lies") from error
    places = {f"{path}, line {number}": line for number, line in enumerate(lines, 1) if line.strip()}
    return _split({place: _object(line, place) for place, line in places.items()})


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EvaluationError(f"{where} is no JSON object; write one question a line")
    return found


def _split(questions: dict[str, dict[str, Any]]) -> datasets.DatasetDict:
    """Of questions by their place; `datasets` would take the keys of the first for those of all."""
    if not questions:
        raise EvaluationError("there are no questions; write at least one")
    keys = dict.fromkeys(key for question in questions.values() for key in question)
    for place, question in questions.items():
        for key in keys:
            if key not in question:
                raise EvaluationError(
                    f"{place} has no `{key}`, which others have; give it one, or null where it has none"
                )
        for choice in question.get("choices") or ():
            if not isinstance(choice, str):
                raise EvaluationError(f'{place}: the choice {choice} is no text; put it in quotes, as "2" or "yes"')
    return datasets.DatasetDict(test=datasets.Dataset.from_list(list(questions.values())))
