"""MMLU from a local copy of the hub dataset, through lm-eval's own task files.

lm-eval takes another data path for existing tasks only through the members of a group file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError

MMLU = "cais/mmlu"


def mmlu_task_dir() -> Path:
    """Where lm-eval keeps its task files of MMLU, found without importing it."""
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise EvaluationError("lm-eval is not installed; install requirements.txt")
    return Path(spec.origin).parent / "tasks" / "mmlu"


def check_mmlu_dir(folder: Path) -> None:
    """Raise EvaluationError unless `folder` is laid out like the hub dataset `cais/mmlu`."""
    if not folder.is_dir():
        raise EvaluationError(f"--mmlu-dir {folder} is not a folder; give a local copy of the dataset {MMLU}")
    card = folder / "README.md"
    if not (card.is_file() and "config_name:" in card.read_text(encoding="utf-8", errors="replace")):
        raise EvaluationError(
            f"--mmlu-dir {folder} is not a copy of {MMLU}: it has no README.md that lists its subjects; "
            "copy the dataset whole"
        )
    if not any(folder.glob("*/test-*.parquet")):
        raise EvaluationError(
            f"--mmlu-dir {folder} holds no test questions (SUBJECT/test-*.parquet); copy {MMLU} whole"
        )


def check_mmlu_task(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise EvaluationError unless the questions of a task, given by its settings, are in `folder`."""
    subject, path = config.get("dataset_name"), config.get("dataset_path")
    if path != MMLU:
        raise EvaluationError(f"task {config.get('task')} reads {path}, not {MMLU}; leave --mmlu-dir out")
    if not any(folder.glob(f"{subject}/test-*.parquet")):
        raise EvaluationError(
            f"--mmlu-dir {folder} has no test questions of {subject!r}; copy the dataset {MMLU} whole "
            "or name other --tasks"
        )


def write_groups(names: Sequence[str], manager: Any, folder: Path, into: Path, cache_dir: Path) -> dict[str, str]:
    """Write a group file for each task or group of MMLU, which reads its questions from `folder`.

    Args:
        names: Of tasks and groups.
        manager: Knows which is which.
        folder: A copy of the dataset.
        into: Where the files go.
        cache_dir: Where `datasets` keeps what it made of this very content. Its own cache takes another folder of the
            same name and card for this one, whatever questions are in it.

    Returns:
        The name of the group that stands for each name.
    """
    written = {name: f"{name}_from_folder" for name in names}
    for name, group in written.items():
        kind = "group" if name in manager.all_groups else "task"
        data = {"dataset_path": str(folder.resolve()), "dataset_kwargs": {"cache_dir": str(cache_dir)}}
        content = {"group": group, "task": [{kind: name, **data}]}
        Path(into, f"{group}.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return written
