"""What a search has learnt so far: right or wrong, per layer set and question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.config import SearchConfig
from genetic_algorithm.errors import SearchError
from genetic_algorithm.evaluator import Answers, Score, limit_questions
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.paired_test import Paired, compare

FAST, FULL, FINAL, HOLDOUT = "fast", "full", "final", "holdout"


@dataclass(frozen=True, slots=True, eq=False)  # arrays do not compare to one truth value
class Request:
    """What a search wants to know next: every set of `batch` on all of `questions` (indices, int64 [n]).

    `stage` and `label` are for people.
    """

    batch: tuple[LayerSet, ...]
    questions: NDArray[np.int64]
    stage: str
    label: str

    @property
    def size(self) -> int:
        """Question-evaluations."""
        return len(self.batch) * len(self.questions)


def question_parts(
    config: SearchConfig, subjects: NDArray[np.int64], coarse_from: int | None = None
) -> dict[str, NDArray[np.int64]]:
    """The questions of each part, as sorted indices; final and hold-out questions may be none.

    From `coarse_from` on, all questions are there again, to be answered faster and less exactly: the fast part is
    taken from these, and no other part.

    Hold-out questions are the next after all others; where a limit is none, the last of each subject, and none
    then means all but these.

    Raises:
        SearchError: if there are no questions, or the hold-out would take all of a subject.
    """
    subjects = subjects[:coarse_from]
    if len(subjects) == 0:
        raise SearchError("the evaluator has no questions; choose other --tasks")
    last = config.full_limit if config.final_limit == 0 else config.final_limit
    held = _last_of_each(subjects, config.holdout_limit) if last is None else np.zeros(0, dtype=np.int64)

    def first(limit: int | None) -> NDArray[np.int64]:
        return np.setdiff1d(limit_questions(subjects, limit), held, assume_unique=True)

    return {
        FAST: first(config.fast_limit) + (coarse_from or 0),
        FULL: first(config.full_limit),
        FINAL: first(config.final_limit),
        HOLDOUT: held if last is None else limit_questions(subjects, config.holdout_limit, last),
    }


def _last_of_each(subjects: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of the last `count` questions of every subject, sorted."""
    if count and (smallest := int(np.unique(subjects, return_counts=True)[1].min())) <= count:
        raise SearchError(
            f"--holdout-limit {count} leaves nothing to search on: a subject has {smallest} questions; give fewer"
        )
    parts = [np.flatnonzero(subjects == s)[-count:] for s in np.unique(subjects)] if count else []
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))


class Ledger:
    """Answers by layer set, and the scores they make on each part of the questions."""

    def __init__(self, parts: dict[str, NDArray[np.int64]], num_questions: int, num_answers: int | None = None) -> None:
        """Know nothing yet.

        Args:
            parts: Questions of each part.
            num_questions: How many there are.
            num_answers: Indices that questions have, where some are there twice; as many as questions when None.
        """
        self.parts = parts
        self.num_questions = num_questions
        self._num_answers = num_answers or num_questions
        self._correct: dict[LayerSet, NDArray[np.int8]] = {}  # -1 unknown, 0 wrong, 1 right
        self._scores: dict[tuple[LayerSet, str], Score] = {}
        self._failed: dict[LayerSet, None] = {}

    @property
    def failed(self) -> tuple[LayerSet, ...]:
        """Sets that could not be evaluated; they are never asked for again."""
        return tuple(self._failed)

    def is_new(self, layers: LayerSet) -> bool:
        """Whether nothing is known of a set."""
        return layers not in self._correct

    def record(self, layers: LayerSet, questions: NDArray[np.int64], answers: Answers) -> None:
        """Take in answers, one per question.

        Raises:
            SearchError: if their number is not that of the questions.
        """
        correct = np.asarray(answers.correct)
        if correct.shape != questions.shape:
            raise SearchError(
                f"the evaluator gave {correct.size} answers to {len(questions)} questions for {layers}; "
                "it must give one per question"
            )
        row = self._correct.setdefault(layers, np.full(self._num_answers, -1, dtype=np.int8))
        row[questions] = correct

    def fail(self, layers: LayerSet) -> None:
        """Note that a set cannot be evaluated."""
        self._failed[layers] = None

    def missing(self, layers: LayerSet, part: str) -> NDArray[np.int64]:
        """Questions of a part that the set has not answered."""
        questions, row = self.parts[part], self._correct.get(layers)
        return questions if row is None else questions[row[questions] < 0]

    def score(self, layers: LayerSet, part: str) -> Score | None:
        """Score on a whole part; None unless every question of it is answered."""
        known = self._scores.get((layers, part))
        if known is None and layers in self._correct and len(self.parts[part]):
            answers = self._correct[layers][self.parts[part]]
            if (answers >= 0).all():
                known = self._scores[layers, part] = Score(int(answers.sum()), len(answers), part)
        return known

    def scored(self, part: str) -> dict[LayerSet, Score]:
        """All sets with a score on a part, best first; of equal ones the smaller, then the lower layers."""
        scores = {layers: self.score(layers, part) for layers in self._correct}
        found = [(layers, score) for layers, score in scores.items() if score is not None]
        return dict(sorted(found, key=lambda item: (-item[1].correct, len(item[0]), item[0])))

    def compare(self, first: LayerSet, second: LayerSet, part: str) -> Paired:
        """Paired comparison on a part that both sets have answered."""
        questions = self.parts[part]
        if self.score(first, part) is None or self.score(second, part) is None:
            raise SearchError(f"{first} and {second} have not both answered the {part} questions")
        return compare(self._correct[first][questions] == 1, self._correct[second][questions] == 1)

    def wanted(self, sets: Iterable[LayerSet], part: str, stage: str, label: str) -> Iterator[Request]:
        """Requests for what is unknown, sets that lack the same questions together."""
        groups: dict[bytes, tuple[NDArray[np.int64], list[LayerSet]]] = {}
        for layers in dict.fromkeys(sets):
            missing = self.missing(layers, part)
            if len(missing) and layers not in self._failed:
                groups.setdefault(missing.tobytes(), (missing, []))[1].append(layers)
        for missing, batch in groups.values():
            yield Request(tuple(batch), missing, stage, label)

    def ranked(self, sets: Iterable[LayerSet], part: str) -> list[LayerSet]:
        """Those of `sets` with a score on a part, best first (order as in `scored`)."""
        scores = {layers: self.score(layers, part) for layers in dict.fromkeys(sets)}
        found = [(layers, score) for layers, score in scores.items() if score is not None]
        return [s for s, _ in sorted(found, key=lambda item: (-item[1].correct, len(item[0]), item[0]))]


def distinct(sets: Sequence[LayerSet]) -> tuple[LayerSet, ...]:
    """Without repeats, in the order first seen."""
    return tuple(dict.fromkeys(sets))
