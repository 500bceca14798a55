"""What a search has learnt so far: answers by layer set and question, their scores, and what is left to spend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.errors import SearchError
from genetic_algorithm.evaluator import Answers, Score
from genetic_algorithm.intervals import stratified_error
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.paired_test import Comparison, compare, compare_means
from genetic_algorithm.questions import Questions

_MOST_FRUITLESS = 10_000  # requests for nothing new, one after the other, before a loop counts as endless


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


class _Row:
    """Answers of one set: `correct` int8 with -1 where unknown, signals float16 with NaN where unknown."""

    __slots__ = ("correct", "divergence", "margin")

    def __init__(self, count: int) -> None:
        self.correct = np.full(count, -1, dtype=np.int8)
        self.margin: NDArray[np.float16] | None = None
        self.divergence: NDArray[np.float16] | None = None


class Ledger:
    """Answers by layer set. Scores are by part; a higher `value` is better whatever the goal.

    Args:
        questions: what there is to ask.
        goal: `accuracy`, or `kl`: the negative mean divergence from the donor, nats.
        budget: question-evaluations that may be asked for; None for any number.
        layer_cost: taken off the value of a set for each of its layers.
    """

    def __init__(
        self, questions: Questions, *, goal: str = "accuracy", budget: int | None = None, layer_cost: float = 0.0
    ) -> None:
        self.questions, self.goal, self.layer_cost = questions, goal, layer_cost
        self.budget = budget
        self.spent = 0
        """Question-evaluations recorded."""
        self._rows: dict[LayerSet, _Row] = {}
        self._scores: dict[tuple[LayerSet, str], Score] = {}
        self._failed: dict[LayerSet, None] = {}
        self._fruitless = 0

    @property
    def parts(self) -> dict[str, NDArray[np.int64]]:
        """Questions of each part."""
        return self.questions.parts

    @property
    def num_questions(self) -> int:
        """How many there are; those that are there again are not counted."""
        return self.questions.num_questions

    @property
    def failed(self) -> tuple[LayerSet, ...]:
        """Sets that could not be evaluated; they are never asked for again."""
        return tuple(self._failed)

    @property
    def known(self) -> tuple[LayerSet, ...]:
        """Sets with any answer, in the order first asked, less those that failed since."""
        return tuple(layers for layers in self._rows if layers not in self._failed)

    @property
    def left(self) -> float:
        """Question-evaluations left of the budget."""
        return float("inf") if self.budget is None else max(0, self.budget - self.spent)

    def is_new(self, layers: LayerSet) -> bool:
        """Whether nothing is known of a set."""
        return layers not in self._rows

    def record(self, layers: LayerSet, questions: NDArray[np.int64], answers: Answers) -> None:
        """Take in answers, one per question.

        Raises:
            SearchError: if their number is not that of the questions, or the goal is `kl` and divergences lack.
        """
        correct = np.asarray(answers.correct)
        if correct.shape != questions.shape:
            raise SearchError(
                f"the evaluator gave {correct.size} answers to {len(questions)} questions for {layers}; "
                "it must give one per question"
            )
        if self.goal == "kl" and answers.divergence is None:
            raise SearchError("--goal kl needs an evaluator that gives divergences; leave it out for accuracy")
        row = self._rows.setdefault(layers, _Row(self.questions.num_answers))
        row.correct[questions] = correct
        self.spent += len(questions)
        for name in ("margin", "divergence"):
            given = getattr(answers, name)
            if given is not None:
                if getattr(row, name) is None:
                    setattr(row, name, np.full(self.questions.num_answers, np.nan, dtype=np.float16))
                getattr(row, name)[questions] = given

    def fail(self, layers: LayerSet) -> None:
        """Note that a set cannot be evaluated."""
        self._failed[layers] = None

    def missing(self, layers: LayerSet, part: str) -> NDArray[np.int64]:
        """Questions of a part that the set has not answered."""
        questions, row = self.parts[part], self._rows.get(layers)
        return questions if row is None else questions[row.correct[questions] < 0]

    def level(self, layers: LayerSet) -> int:
        """How many rungs of the ladder, from the lowest, the set has answered."""
        row = self._rows.get(layers)
        if row is None:
            return 0
        answered = [bool((row.correct[block] >= 0).all()) for block in self.questions.blocks]
        return answered.index(False) if False in answered else len(answered)

    def score(self, layers: LayerSet, part: str) -> Score | None:
        """Score on a whole part; None unless every question of it is answered."""
        known = self._scores.get((layers, part))
        if known is None and layers in self._rows and len(self.parts[part]):
            questions = self.parts[part]
            answers = self._rows[layers].correct[questions]
            if (answers >= 0).all():
                known = self._scores[layers, part] = self._score(layers, answers, questions, part)
        return known

    def _score(self, layers: LayerSet, answers: NDArray[np.int8], questions: NDArray[np.int64], part: str) -> Score:
        correct, asked = int(answers.sum()), len(answers)
        subjects = self.questions.subjects[questions]
        accuracy_error, goal = stratified_error(answers, subjects), None
        if self.goal != "accuracy" or self.questions.is_weighted:
            values, weights = self._values(layers, questions), self.questions.weighting(questions)
            goal = float(np.average(values, weights=weights)), stratified_error(values, subjects, weights)
        return Score(correct, asked, part, goal, accuracy_error)

    def best_score(self, layers: LayerSet, *parts: str) -> Score | None:
        """The score on the first of `parts` that the set has answered whole, else on its highest rung."""
        for part in (*parts, *reversed(self.questions.rungs)):
            if found := self.score(layers, part):
                return found
        return None

    def utility(self, layers: LayerSet, score: Score) -> float:
        """The value of a score less what the set's layers cost."""
        return score.value - self.layer_cost * len(layers)

    def scored(self, part: str) -> dict[LayerSet, Score]:
        """All sets with a score on a part, best first; of equal ones the smaller, then the lower layers."""
        return {layers: self._scores[layers, part] for layers in self.ranked(self._rows, part)}

    def ranked(self, sets: Iterable[LayerSet], part: str) -> list[LayerSet]:
        """Those of `sets` with a score on a part, best first (order as in `scored`)."""
        scores = {layers: self.score(layers, part) for layers in dict.fromkeys(sets)}
        found = [(layers, score) for layers, score in scores.items() if score is not None]
        found.sort(key=lambda item: (-round(self.utility(*item), 12), len(item[0]), item[0]))
        return [layers for layers, _ in found]

    def ranked_on_ladder(self, sets: Iterable[LayerSet]) -> list[LayerSet]:
        """Those of `sets` with any rung: by rung, the highest first, and best first within one."""
        given, found = list(sets), dict[LayerSet, None]()
        for rung in reversed(self.questions.rungs):
            found.update(dict.fromkeys(self.ranked(given, rung)))
        return list(found)

    def compare(self, first: LayerSet, second: LayerSet, part: str) -> Comparison:
        """Paired comparison on a part that both sets have answered: exact for right and wrong, else by means."""
        questions = self.parts[part]
        if self.score(first, part) is None or self.score(second, part) is None:
            raise SearchError(f"{first} and {second} have not both answered the {part} questions")
        if self.goal == "accuracy" and not self.questions.is_weighted:
            a, b = (self._rows[layers].correct[questions] == 1 for layers in (first, second))
            return compare(a, b)
        difference = self._values(first, questions) - self._values(second, questions)
        return compare_means(difference, self.questions.weighting(questions))

    def values(self, layers: LayerSet, block: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """What the goal gets from each question of a block, float64 [n]; None unless all are answered."""
        row = self._rows.get(layers)
        if row is None or (row.correct[block] < 0).any():
            return None
        return self._values(layers, block)

    def correct(self, layers: LayerSet, block: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Right or wrong on each question of a block, bool [n], whatever the goal; None unless all are answered."""
        row = self._rows.get(layers)
        if row is None or (row.correct[block] < 0).any():
            return None
        return row.correct[block] == 1

    def signals(self, layers: LayerSet, block: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Margins and divergences of an answered block, float64 [n] each, as far as they are known."""
        row = self._rows[layers]
        found = {"margin": row.margin, "divergence": row.divergence}
        return {name: of[block].astype(np.float64) for name, of in found.items() if of is not None}

    def _values(self, layers: LayerSet, questions: NDArray[np.int64]) -> NDArray[np.float64]:
        row = self._rows[layers]
        if self.goal == "kl" and row.divergence is not None:
            return -row.divergence[questions].astype(np.float64)
        return row.correct[questions].astype(np.float64)

    def wanted(self, sets: Iterable[LayerSet], part: str, stage: str, label: str) -> Iterator[Request]:
        """Requests for what is unknown, sets that lack the same questions together.

        Sets come first that stand first: what the budget does not pay for is left out.

        Raises:
            SearchError: if there is no such part, something is no set, or thousands of requests come to nothing.
        """
        groups: dict[bytes, tuple[NDArray[np.int64], list[LayerSet]]] = {}
        left, given = self.left, list(sets)
        for layers in given:
            if not isinstance(layers, LayerSet):
                raise SearchError(f"it asks for {layers!r}, which is no LayerSet; write LayerSet((0, 2))")
        for layers in dict.fromkeys(given):
            missing = self.missing(layers, part)
            if len(missing) and layers not in self._failed and len(missing) <= left:
                left -= len(missing)
                groups.setdefault(missing.tobytes(), (missing, []))[1].append(layers)
        self._fruitless = 0 if groups else self._fruitless + 1
        if self._fruitless > _MOST_FRUITLESS:
            raise SearchError(
                "it asks without anything coming of it; its loop must end when `ledger.left` no longer falls"
            )
        for missing, batch in groups.values():
            yield Request(tuple(batch), missing, stage, label)


def distinct(sets: Sequence[LayerSet]) -> tuple[LayerSet, ...]:
    """Without repeats, in the order first seen."""
    return tuple(dict.fromkeys(sets))
