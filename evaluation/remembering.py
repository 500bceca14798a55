"""An evaluator that never pays twice: known answers come from the journal, new ones go into it first."""

from __future__ import annotations

import hashlib
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError, in_words, is_of_the_disk
from evaluation.journal import Journal
from genetic_algorithm.evaluator import Answers, Evaluator
from genetic_algorithm.layer_set import LayerSet

SLICE_QUESTIONS = 128
"""Of one call to an engine, at most. On a GPU they fill one batch of tokens: shorter slices fill it less well, longer
ones leave several workers less to share out (benchmarks/scaling-2026-11.md)."""
Group = tuple[NDArray[np.int64], list[LayerSet]]
"""Questions that are missing, and the sets that all lack them."""
_log = logging.getLogger(__name__)


def journal_header(evaluator: Evaluator) -> dict[str, Any]:
    """Everything that shapes an answer, as far as the evaluator tells: JSON values."""
    subjects = np.asarray(evaluator.subjects, dtype="<i8")
    return {
        "num_layers": int(evaluator.num_layers),
        "num_questions": int(evaluator.num_questions),
        "subjects_sha256": hashlib.sha256(subjects.tobytes()).hexdigest()[:16],
        **dict(getattr(evaluator, "fingerprint", {})),
    }


def slices(
    asked: NDArray[np.int64], longest: int = SLICE_QUESTIONS, least: int | None = None
) -> list[NDArray[np.int64]]:
    """What is asked at once, so that a kill loses little: the same slices whatever is known already.

    Several workers share out pieces of `least` questions of each slice, which are answered as the slice is.
    """
    pieces = np.array_split(asked, -(-len(asked) // longest))
    if least is None:
        return pieces
    return [piece[at : at + least] for piece in pieces for at in range(0, len(piece), least)]


class Remembering:
    """Wraps an evaluator and a journal; rerunning a search over it resumes that search.

    Args:
        inner: who answers what the journal does not know.
        journal: every answer is on disk in it before anyone acts on it.
        slice_questions: longest question slice of one call to `inner`; a kill loses one call at most, and the slices of
            a set are what several workers share out.
        retry_failed: whether sets that the journal says have failed are asked again. Otherwise they stay failed, so
            that a resumed search takes the path that it took before.

    A set whose evaluation fails by itself is recorded as failed and is not yielded.

    Raises:
        EvaluationError: if nothing at all can be evaluated; it names the first cause, and nothing is recorded as
            failed.
    """

    def __init__(
        self,
        inner: Evaluator,
        journal: Journal,
        *,
        slice_questions: int = SLICE_QUESTIONS,
        retry_failed: bool = False,
    ) -> None:
        if slice_questions < 1:
            raise EvaluationError(f"slice_questions must be at least 1, got {slice_questions}")
        self._inner, self._journal = inner, journal
        self._slice_questions, self._retry_failed = slice_questions, retry_failed
        self._failed: dict[LayerSet, Failure] = {}
        self._has_warned_of_repeats = False
        self.seconds = 0.0
        """Seconds that the answers given so far took, whenever they were made."""
        self.asked = 0
        """Question-evaluations that `inner` made in this process."""

    @property
    def num_layers(self) -> int:
        """Depth of the base."""
        return self._inner.num_layers

    @property
    def num_questions(self) -> int:
        """How many questions there are in all."""
        return self._inner.num_questions

    @property
    def subjects(self) -> NDArray[np.int64]:
        """Subject of each question, int64 [num_questions]."""
        return self._inner.subjects

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """Of each question in a score; None where all count alike."""
        return getattr(self._inner, "weights", None)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The header of the journal, less what every evaluator has."""
        return dict(getattr(self._inner, "fingerprint", {}))

    @property
    def failed(self) -> Mapping[LayerSet, str]:
        """Sets that could not be evaluated, and why."""
        return {layers: failure.reason for layers, failure in self._failed.items()}

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """Yield each distinct set of `batch` that can be evaluated, known ones first."""
        asked = np.asarray(questions, dtype=np.int64)
        if len(asked) and not 0 <= asked.min() <= asked.max() < self.num_questions:
            raise EvaluationError(
                f"questions {asked.min()} to {asked.max()} were asked; there are {self.num_questions} "
                "questions, counted from 0"
            )
        self._journal.refresh()
        groups: dict[bytes, Group] = {}
        once = np.unique(asked)
        for layers in dict.fromkeys(batch):
            known, answers, seconds = self._journal.covering(layers, asked)
            self.seconds += seconds
            missing = np.unique(asked[~known]) if known.any() else once
            if known.all():
                yield layers, answers
            elif layers in self._failed:
                continue
            elif not self._retry_failed and (reason := self._journal.failure(layers, missing)):
                self._failed[layers] = Failure(missing, reason)
                _log.warning("%s could not be evaluated in an earlier sitting (%s): it is left out", layers, reason)
            else:
                groups.setdefault(missing.tobytes(), (missing, []))[1].append(layers)
        # An evaluator of many workers takes all at once, and gives what it has as it comes.
        all_at_once = getattr(self._inner, "pieces", None)
        if all_at_once is not None and groups:
            done = self._spread(all_at_once, once, list(groups.values()))
        else:
            done = chain.from_iterable(self._evaluate(sets, once, missing) for missing, sets in groups.values())
        for layers in done:
            yield layers, self._journal.covering(layers, asked)[1]

    def _evaluate(
        self, sets: list[LayerSet], asked: NDArray[np.int64], missing: NDArray[np.int64]
    ) -> Iterator[LayerSet]:
        """Ask for every slice of `missing`; yield each set once its last slice is on disk."""
        pieces = _within(slices(asked, self._slice_questions), missing)
        racing = sets
        for piece in pieces[:-1]:
            if not racing:
                break
            done = set(self._slice(racing, piece))
            racing = [layers for layers in racing if layers in done]
        if racing:
            yield from self._slice(racing, pieces[-1])
        self._write_failures(sets)

    def _spread(
        self,
        pieces: Callable[
            [Sequence[tuple[list[LayerSet], NDArray[np.int64]]]], Iterator[tuple[LayerSet, NDArray[np.int64], Answers]]
        ],
        asked: NDArray[np.int64],
        groups: list[Group],
    ) -> Iterator[LayerSet]:
        """Ask for every piece of every group together; yield each set once all of its pieces are on disk."""
        shared = slices(asked, self._slice_questions, getattr(self._inner, "least_questions", None))
        parts = [(missing, sets, _within(shared, missing)) for missing, sets in groups]
        jobs = [(sets, piece) for _, sets, of_group in parts for piece in of_group]
        missing_of = {layers: missing for missing, sets in groups for layers in sets}
        left = {layers: len(of_group) for _, sets, of_group in parts for layers in sets}
        since = time.monotonic()
        for layers, questions, given in pieces(jobs):
            problem = _problem(given, len(questions))
            if problem:
                self._fail(layers, Failure(questions, problem))
                continue
            since = self._take(layers, questions, given, since)
            left[layers] -= 1
            if not left[layers]:
                yield layers
        reasons = getattr(self._inner, "failures", {})
        for layers, count in left.items():
            if count and layers not in self._failed:
                reason = reasons.get(layers, "the evaluator gave no answer for it")
                self._fail(layers, Failure(missing_of[layers], reason))
        self._write_failures(list(left))

    def _write_failures(self, sets: list[LayerSet]) -> None:
        failed = {layers: self._failed[layers] for layers in sets if layers in self._failed}
        if failed and not self._still_works():
            cause = next(iter(failed.values()))
            raise EvaluationError(
                f"no layer set can be evaluated; the first failure was {cause.reason}. "
                "Finished work is kept: put the cause right and give the same command again"
            ) from cause.error
        for layers, failure in failed.items():  # only now: where the machine failed, the sets did not
            self._journal.append_failure(layers, failure.questions, failure.reason, 0.0)

    def _still_works(self) -> bool:
        """Whether another set, that once could be evaluated, still can: else the machine failed, not the sets."""
        example = self._journal.example(but=self._failed)
        if example is None:
            return False
        try:
            return bool(list(self._inner.answers([example.layers], example.questions)))
        except Exception as error:  # any failure of a known good set means the same
            _log.warning("%s could be evaluated before and now cannot (%s)", example.layers, in_words(error))
            return False

    def _slice(self, sets: list[LayerSet], questions: NDArray[np.int64]) -> Iterator[LayerSet]:
        """One slice of every set together; what an error leaves over, each set alone."""
        left = dict.fromkeys(sets)
        reason, cause = "the evaluator gave no answer for it", None
        try:
            for layers, problem in self._call(sets, questions):
                del left[layers]
                if problem:
                    self._fail(layers, Failure(questions, problem))
                else:
                    yield layers
        except _InnerError as error:
            reason, cause = in_words(error.cause), error.cause
        if cause is not None and len(sets) > 1:
            if left:
                _log.warning("a batch of %d failed (%s): its sets go alone", len(sets), reason)
            for layers in left:
                yield from self._slice([layers], questions)
            return
        for layers in left:
            self._fail(layers, Failure(questions, reason, cause))

    def _fail(self, layers: LayerSet, failure: Failure) -> None:
        self._failed[layers] = failure
        _log.warning("%s could not be evaluated (%s): it is left out", layers, failure.reason)

    def _call(self, sets: list[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, str]]:
        """Ask `inner` once; yield each set as its answers are written down, or with what is wrong with them.

        Raises:
            _InnerError: if `inner` raised; what it gave until then is kept.
        """
        waiting = set(sets)
        answers: Iterator[tuple[LayerSet, Answers]] | None = None
        since = time.monotonic()
        while True:
            try:
                answers = iter(self._inner.answers(sets, questions)) if answers is None else answers
                layers, given = next(answers)
            except StopIteration:
                return
            except Exception as error:  # whatever one set does must not end a search of days
                if is_of_the_disk(error):
                    raise
                _let_go(error)
                raise _InnerError(error) from error
            if layers not in waiting:
                self._check_repeat(layers, sets)
                continue
            waiting.discard(layers)
            problem = _problem(given, len(questions))
            if not problem:
                self._take(layers, questions, given, since)
            yield layers, problem
            since = time.monotonic()

    def _take(self, layers: LayerSet, questions: NDArray[np.int64], given: Answers, since: float) -> float:
        """Write answers down that took from `since` until now; returns now."""
        now = time.monotonic()
        seconds = round(now - since, 6)  # as the journal keeps it
        self._journal.append(layers, questions, given, seconds)
        self.seconds += seconds
        self.asked += len(questions)
        return now

    def _check_repeat(self, layers: LayerSet, sets: list[LayerSet]) -> None:
        """Refuse a set that was not asked; of one that was answered before, the first answer counts."""
        if layers not in sets:
            raise EvaluationError(f"the evaluator answered for {layers}, which it was not asked")
        if not self._has_warned_of_repeats:
            _log.warning("the evaluator answered twice for %s: the first answer counts, here and from now on", layers)
        self._has_warned_of_repeats = True


def _within(pieces: Sequence[NDArray[np.int64]], missing: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """What is missing of each piece, where anything is; all are sorted."""
    found = (piece[np.isin(piece, missing, assume_unique=True)] for piece in pieces)
    return [piece for piece in found if len(piece)]


@dataclass(frozen=True, slots=True, eq=False)  # arrays do not compare to one truth value
class Failure:
    """Why a set could not be evaluated on some questions, int64 [n]."""

    questions: NDArray[np.int64]
    reason: str
    error: Exception | None = None


class _InnerError(Exception):
    """The wrapped evaluator raised `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _problem(answers: Answers, n: int) -> str:
    """What is wrong with the answers to `n` questions; empty where nothing is."""
    for name, values in zip(Answers._fields, answers, strict=True):
        if values is None and name != "correct":
            continue
        given = np.asarray(values)
        if given.shape != (n,):
            return f"the evaluator gave {name} of shape {given.shape} for {n} questions; it must give one for each"
        if name == "correct" and not (given == given.astype(np.bool_)).all():
            return "the evaluator gave answers that are neither right nor wrong (True or False)"
        if name != "correct" and np.isnan(given.astype(np.float64)).any():
            return f"the evaluator gave NaN as {name}; it must give numbers, or None where it knows none"
    return ""


def _let_go(error: BaseException) -> None:
    """Clear what the frames of an error and of its causes hold: on a GPU, activations of a whole batch."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
