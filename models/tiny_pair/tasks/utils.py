"""Reads the questions that lie beside this file, so that the tasks work from any working directory.

lm-eval calls `questions` (see `custom_dataset` in `_tiny_default`) with the task's metadata and `dataset_kwargs`.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets


def questions(*, file: str, **_metadata: object) -> datasets.DatasetDict:
    """One JSON object a line (question, choices, answer), as the split `test`.

    Held in memory, so nothing is left in the cache of `datasets`, where a changed file could meet a stale copy.
    """
    path = Path(__file__).parent / file
    with path.open(encoding="utf-8") as lines:
        return datasets.DatasetDict(test=datasets.Dataset.from_list([json.loads(line) for line in lines]))
