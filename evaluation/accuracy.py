"""Accuracy of layer sets per subject and group, weighed by size as in lm-eval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.engine import Engine
from evaluation.questions import QuestionSet
from evaluation.walk import distinct
from genetic_algorithm import Answers, LayerSet, Score
from genetic_algorithm.evaluator import limit_questions, together


@dataclass(frozen=True)
class Accuracy:
    """Scores of one layer set."""

    total: Score
    subjects: Mapping[str, Score]
    groups: Mapping[str, Score]


def evaluate_sets(engine: Engine, sets: Iterable[LayerSet], limit: int | None) -> dict[LayerSet, Accuracy]:
    """Score every set on the first `limit` questions of each subject (None: all), in the order given."""
    sets = distinct(sets)
    asked = limit_questions(engine.subjects, limit)
    answers = dict(engine.answers(sets, asked))
    return {layers: _accuracy(engine.questions, answers[layers], asked, _part(limit)) for layers in sets}


def accuracy_report(accuracies: Mapping[LayerSet, Accuracy]) -> str:
    """A table with a line for each group and subject, a column for each set: accuracy and standard error."""
    first, *_ = accuracies.values()
    rows = [["", "questions", *map(_heading, accuracies)]]
    rows.append(_row("total", [accuracy.total for accuracy in accuracies.values()]))
    rows += [_row(name, [accuracy.groups[name] for accuracy in accuracies.values()]) for name in first.groups]
    rows += [
        _row(f"  {name}", [accuracy.subjects[name] for accuracy in accuracies.values()]) for name in first.subjects
    ]
    return _aligned(rows)


def _accuracy(questions: QuestionSet, answers: Answers, asked: NDArray[np.int64], part: str) -> Accuracy:
    names = questions.subject_names
    subjects = questions.subjects_Q[asked]
    size = np.bincount(subjects, minlength=len(names))
    right = np.bincount(subjects, weights=answers.correct, minlength=len(names)).astype(np.int64)

    scores = {name: Score(int(k), int(n), part) for name, k, n in zip(names, right, size, strict=True)}
    return Accuracy(
        total=together(scores.values(), part),
        subjects=scores,
        groups={name: together((scores[one] for one in below), part) for name, below in questions.groups.items()},
    )


def _part(limit: int | None) -> str:
    return "all" if limit is None else f"limit {limit}"


def _heading(layers: LayerSet) -> str:
    return "base" if not layers.indices else f"{'layer' if len(layers.indices) == 1 else 'layers'} {layers}"


def _row(name: str, scores: Sequence[Score]) -> list[str]:
    return [name, str(scores[0].asked), *map(_spell, scores)]


def _spell(score: Score) -> str:
    return f"{score.accuracy:.4f} +- {score.standard_error:.4f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
