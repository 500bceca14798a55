"""Weighted mixtures of tasks: `mmlu:1,arc_challenge:0.5`.

The score of a mixture is the weighted mean of its tasks' accuracies, each over all questions of that task or group, so
that a task of ten thousand questions does not drown one of a thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError


def parse_tasks(words: Iterable[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Read tasks given as `NAME` or `NAME:WEIGHT`, by commas or as words of their own.

    Returns:
        The names, and the weight of each; a name without one beside others with one has weight 1, and where no name
        has one there are no weights.

    Raises:
        EvaluationError: for a weight that is not a number.
    """
    given = [part.strip() for word in words for part in word.split(",") if part.strip()]
    pairs = [part.rpartition(":") if ":" in part else (part, "", "1") for part in given]
    names = tuple(name for name, _, _ in pairs)
    if not any(colon for _, colon, _ in pairs):
        return names, ()
    return names, tuple(_number(name, text) for name, _, text in pairs)


def check_weights(names: Sequence[str], weights: Sequence[float]) -> None:
    """Raise EvaluationError unless each task has a weight of at least 0, and one of them more."""
    if len(names) != len(weights):
        raise EvaluationError(f"{len(weights)} weights for {len(names)} tasks; give each task one")
    for name, weight in zip(names, weights, strict=True):
        if not (isfinite(weight) and weight >= 0):
            raise EvaluationError(f"weight {weight:g} of task {name} is no weight; give 0 or more, such as {name}:0.5")
    if not any(weights):
        raise EvaluationError(f"the weight of {','.join(names)} is 0; give one task at least a weight above 0")


def question_weights(
    weights: Mapping[str, float],
    subjects_Q: NDArray[np.int64],
    subject_names: Sequence[str],
    groups: Mapping[str, Sequence[str]],
) -> NDArray[np.float64]:
    """Weight of each question such that the weighted mean over all questions is that of the tasks' accuracies.

    A question of several tasks weighs what it weighs in each, together.

    Args:
        weights: Of each task or group.
        subjects_Q: Subject of each question, [Q]; every task has questions.
        subject_names: Of each subject.
        groups: Subjects below each name that is not a subject's own.

    Returns:
        float64 [Q], at least 0, with mean 1.
    """
    found = np.zeros(len(subjects_Q))
    for name, weight in weights.items():
        below = [subject_names.index(subject) for subject in groups.get(name, (name,))]
        asked = np.isin(subjects_Q, below)
        found[asked] += weight / asked.sum()
    return np.asarray(found / found.mean())


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EvaluationError(f"weight {text!r} of task {name} is not a number; give one, such as {name}:0.5") from None
