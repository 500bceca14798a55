"""An evaluator that never pays twice: known answers come from the journal, new ones go into it first."""

from __future__ import annotations

import errno
import hashlib
import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from evaluation.journal import Journal
from genetic_algorithm.evaluator import Answers, Evaluator
from genetic_algorithm.layer_set import LayerSet

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
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


class Remembering:
    """Wraps an evaluator and a journal; rerunning a search over it resumes that search.

    Args:
        inner: who answers what the journal does not know.
        journal: every answer is on disk in it before anyone acts on it.
        slice_questions: longest question slice of one call to `inner`; a kill loses one call at most.

    A set whose evaluation fails by itself is recorded as failed, is not yielded, and is tried again by the
    next process that wants it.

    Raises:
        EvaluationError: if nothing at all can be evaluated; it names the first cause.
    """

    def __init__(self, inner: Evaluator, journal: Journal, *, slice_questions: int = 512) -> None:
        if slice_questions < 1:
            raise EvaluationError(f"slice_questions must be at least 1, got {slice_questions}")
        self._inner, self._journal = inner, journal
        self._slice_questions = slice_questions
        self._failed: dict[LayerSet, Exception] = {}
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
    def fingerprint(self) -> Mapping[str, Any]:
        """The header of the journal, less what every evaluator has."""
        return dict(getattr(self._inner, "fingerprint", {}))

    @property
    def failed(self) -> Mapping[LayerSet, str]:
        """Sets that could not be evaluated in this process, and why."""
        return {layers: _in_words(cause) for layers, cause in self._failed.items()}

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """Yield each distinct set of `batch` that can be evaluated, known ones first."""
        asked = np.asarray(questions, dtype=np.int64)
        if len(asked) and not 0 <= asked.min() <= asked.max() < self.num_questions:
            raise EvaluationError(
                f"questions {asked.min()} to {asked.max()} were asked; there are {self.num_questions} "
                "questions, counted from 0"
            )
        self._journal.refresh()
        groups: dict[bytes, tuple[NDArray[np.int64], list[LayerSet]]] = {}
        for layers in dict.fromkeys(batch):
            known, answers, seconds = self._journal.covering(layers, asked)
            self.seconds += seconds
            if known.all():
                yield layers, answers
            elif layers not in self._failed:
                missing = np.unique(asked[~known])
                groups.setdefault(missing.tobytes(), (missing, []))[1].append(layers)
        for missing, sets in groups.values():
            for layers in self._evaluate(sets, missing):
                yield layers, self._journal.covering(layers, asked)[1]

    def _evaluate(self, sets: list[LayerSet], missing: NDArray[np.int64]) -> Iterator[LayerSet]:
        """Ask for every slice of `missing`; yield each set once its last slice is on disk."""
        pieces = np.array_split(missing, -(-len(missing) // self._slice_questions))
        racing = sets
        for piece in pieces[:-1]:
            if not racing:
                break
            done = set(self._slice(racing, piece))
            racing = [layers for layers in racing if layers in done]
        if racing:
            yield from self._slice(racing, pieces[-1])
        if all(layers in self._failed for layers in sets) and not self._still_works():
            cause = self._failed[sets[0]]
            raise EvaluationError(
                f"no layer set can be evaluated; the first failure was {_in_words(cause)}. "
                "Finished work is kept: put the cause right and give the same command again"
            ) from cause

    def _still_works(self) -> bool:
        """Whether a set that once could be evaluated still can: else the machine failed, not the sets."""
        example = self._journal.example
        if example is None:
            return False
        try:
            return bool(list(self._inner.answers([example.layers], example.questions)))
        except Exception as error:  # any failure of a known good set means the same
            _log.warning("%s could be evaluated before and now cannot (%s)", example.layers, _in_words(error))
            return False

    def _slice(self, sets: list[LayerSet], questions: NDArray[np.int64]) -> Iterator[LayerSet]:
        """One slice of every set together; what a failure leaves over, each set alone."""
        left = dict.fromkeys(sets)
        reason: Exception = LookupError("the evaluator gave no answer")
        alone_too = False
        try:
            for layers in self._call(sets, questions):
                del left[layers]
                yield layers
        except _InnerFailure as failure:
            reason = failure.cause
            alone_too = len(sets) > 1
            if alone_too and left:
                _log.warning("a batch of %d failed (%s): its sets go alone", len(sets), _in_words(reason))
        for layers in left:
            if alone_too:
                try:
                    alone = list(self._call([layers], questions))
                except _InnerFailure as failure:
                    reason = failure.cause
                else:
                    yield from alone
                    if alone:
                        continue
            self._failed[layers] = reason
            self._journal.append_failure(layers, questions, _in_words(reason), 0.0)
            _log.warning("%s could not be evaluated (%s): it is left out", layers, _in_words(reason))

    def _call(self, sets: list[LayerSet], questions: NDArray[np.int64]) -> Iterator[LayerSet]:
        """Ask `inner` once; yield each set as its answers are written down.

        Raises:
            _InnerFailure: if `inner` raised; what it gave until then is kept.
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
                if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                    raise
                _let_go(error)
                raise _InnerFailure(error) from error
            if layers not in waiting:
                raise EvaluationError(f"the evaluator answered for {layers}, which it was not asked")
            waiting.discard(layers)
            _check(layers, given, len(questions))
            now = time.monotonic()
            self._journal.append(layers, questions, given, now - since)
            self.seconds += now - since
            self.asked += len(questions)
            yield layers
            since = time.monotonic()


class _InnerFailure(Exception):
    """The wrapped evaluator raised `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _check(layers: LayerSet, answers: Answers, n: int) -> None:
    for name, values in zip(Answers._fields, answers, strict=True):
        if values is not None and np.shape(values) != (n,):
            raise EvaluationError(
                f"the evaluator gave {name} of shape {np.shape(values)} for {layers}, where {n} questions "
                "were asked; an evaluator gives one value per asked question"
            )


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _let_go(error: BaseException) -> None:
    """Clear what the frames of an error and of its causes hold: on a GPU, activations of a whole batch."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
