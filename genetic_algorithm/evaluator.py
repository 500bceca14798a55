"""All that the search knows of models: an evaluator answers questions for layer sets.

Within each subject, questions stand in order of use: "limit n" means the n lowest question indices
of each subject.

An evaluator may have more attributes, which the search uses where they exist:
`fingerprint` (mapping of JSON values: everything that shapes an answer; it heads the journal),
`subject_names` (sequence of str), `weights` (of each question in a score, float64 [num_questions]),
`describe()` (mapping: device, memory; printed by `--dry-run`) and `seconds_per_question` (float or None: the
expected cost of one question of one set).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.errors import SearchError
from genetic_algorithm.intervals import stratified_error, wilson
from genetic_algorithm.layer_set import LayerSet


class Answers(NamedTuple):
    """Answers of one layer set, one entry per asked question.

    `correct` is bool [n]. `margin` is float32 [n], nats: log p(gold) - max log p(other choice).
    `divergence` is float32 [n], nats: KL(donor || hybrid) over the choices. The last two are None
    where unknown.
    """

    correct: NDArray[np.bool_]
    margin: NDArray[np.float32] | None = None
    divergence: NDArray[np.float32] | None = None


class Evaluator(Protocol):
    """Whatever can answer questions for layer sets: an engine, a wrapper, a simulator."""

    @property
    def num_layers(self) -> int:
        """Depth of the base, which is that of the donor."""

    @property
    def num_questions(self) -> int:
        """How many questions there are in all."""

    @property
    def subjects(self) -> NDArray[np.int64]:
        """Subject of each question, int64 [num_questions]; limits are per subject."""

    # An evaluator may also have `coarse_from`: its questions from that index on are the first ones again, in order, to
    # be answered faster and less exactly.

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """Yield each distinct set of `batch` with its answers to `questions` (indices), in any order.

        A failed evaluation raises, or a wrapper records it as failed and does not yield that set;
        it is never an accuracy of 0.0.
        """


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers out of those asked.

    `part` names the questions ("fast", "full", "holdout"): only scores on the same questions compare.
    `goal` is the mean of what the search is for and its standard error, where that is not this accuracy: a weighted
    mixture, or the negative divergence from the donor. `accuracy_error` is the standard error of the accuracy where the
    questions are of several subjects, by `intervals.stratified_error`; None where they are of one.
    """

    correct: int
    asked: int
    part: str
    goal: tuple[float, float] | None = None
    accuracy_error: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.asked or self.asked < 1:
            raise SearchError(f"a score needs questions: got {self.correct} right of {self.asked} asked")

    @property
    def accuracy(self) -> float:
        """Fraction in [0, 1]."""
        return self.correct / self.asked

    @property
    def standard_error(self) -> float:
        """In the unit of `accuracy`: stratified by subject, or else binomial."""
        if self.accuracy_error is not None:
            return self.accuracy_error
        return sqrt(self.accuracy * (1 - self.accuracy) / self.asked)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy on new questions of the same subjects."""
        return wilson(self.correct, self.asked, self.standard_error)

    @property
    def value(self) -> float:
        """What the search is for; higher is better."""
        return self.accuracy if self.goal is None else self.goal[0]

    @property
    def value_error(self) -> float:
        """Standard error of `value`."""
        return self.standard_error if self.goal is None else self.goal[1]

    def as_json(self) -> dict[str, Any]:
        """For the result."""
        found: dict[str, Any] = {
            "accuracy": round(self.accuracy, 6),
            "standard_error": round(self.standard_error, 6),
            "correct": self.correct,
            "questions": self.asked,
            "part": self.part,
        }
        if self.goal is not None:
            found |= {"value": round(self.value, 6), "value_error": round(self.value_error, 6)}
        return found


def together(scores: Iterable[Score], part: str) -> Score:
    """The score on the questions of several subjects, one score each."""
    correct, asked = zip(*((score.correct, score.asked) for score in scores), strict=True)
    right = np.concatenate([np.arange(of_one) < k for k, of_one in zip(correct, asked, strict=True)])
    error = stratified_error(right, np.repeat(np.arange(len(asked)), asked))
    return Score(sum(correct), sum(asked), part, accuracy_error=error)


def limit_questions(subjects: NDArray[np.int64], limit: int | None, skip: int = 0) -> NDArray[np.int64]:
    """Questions `skip` to `skip + limit` of each subject, as sorted indices, int64 [n].

    A subject with fewer questions gives all it has; `limit` None gives all from `skip` on.
    """
    order = np.argsort(subjects, kind="stable")
    _, starts, counts = np.unique(subjects[order], return_index=True, return_counts=True)
    rank = np.empty(len(subjects), dtype=np.int64)
    rank[order] = np.arange(len(subjects)) - np.repeat(starts, counts)
    wanted = rank >= skip
    if limit is not None:
        wanted &= rank < skip + limit
    return np.flatnonzero(wanted).astype(np.int64)
