"""What runs in each worker's process: an evaluator of its own, and what it tells the driver of it."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import in_words, is_of_the_disk
from genetic_algorithm import Answers, Evaluator, LayerSet
from genetic_algorithm.differences import differences, told


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """All that a driver knows of the models: those of the first worker, and every other must have the same."""

    name: str
    """host:pid"""
    device: str
    num_layers: int
    num_questions: int
    subjects: NDArray[np.int64]
    subject_names: tuple[str, ...]
    weights: NDArray[np.float64] | None
    tokens: NDArray[np.float64] | None
    coarse_from: int | None
    fingerprint: Mapping[str, Any]
    setting: str
    least_questions: int | None = None

    def difference(self, other: Facts) -> str:
        """What shapes an answer and is not the same there, in words; empty where all is."""
        pairs = {**self.fingerprint, "num_layers": self.num_layers, "num_questions": self.num_questions}
        theirs = {**other.fingerprint, "num_layers": other.num_layers, "num_questions": other.num_questions}
        return ", ".join(told(*item) for item in differences(theirs, pairs))


REPLY_S = 0.1
"""A worker replies so many seconds after the first answer that it has not told yet, so that little is lost with it. At
one worker on a CPU the whole layer takes 1.2 % so (benchmarks/cluster-2026-11.md)."""


class Given(NamedTuple):
    """A worker's reply to one part, or to the rest of it."""

    answers: list[tuple[LayerSet, Answers]]
    error: str
    """Why sets are lacking, where the evaluator raised."""
    warnings: list[str]
    is_last: bool = True
    """Whether the worker is through with the part."""
    disk: OSError | None = None
    """That error, where a disk of the worker's host is full or has failed."""


class Worker:
    """Holds an evaluator; the driver calls it through a pool."""

    def __init__(self, make: Callable[[], Evaluator], device: str) -> None:
        """Take what makes the evaluator; `facts` makes it."""
        self._make, self._device = make, device
        self._evaluator: Evaluator | None = None
        self._coming: Iterator[tuple[LayerSet, Answers]] = iter(())

    def facts(self) -> Facts:
        """Load the models and tell of them."""
        self._evaluator = evaluator = self._make()
        fingerprint = dict(getattr(evaluator, "fingerprint", {}))
        return Facts(
            name=f"{socket.gethostname()}:{os.getpid()}",
            device=self._device,
            num_layers=int(evaluator.num_layers),
            num_questions=int(evaluator.num_questions),
            subjects=np.asarray(evaluator.subjects, dtype=np.int64),
            subject_names=tuple(getattr(evaluator, "subject_names", ())),
            weights=getattr(evaluator, "weights", None),
            tokens=getattr(evaluator, "tokens", None),
            coarse_from=getattr(evaluator, "coarse_from", None),
            fingerprint=fingerprint,
            setting=getattr(evaluator, "setting", ""),
            least_questions=getattr(evaluator, "least_questions", None),
        )

    def describe(self) -> tuple[dict[str, Any], float | None]:
        """`describe()` and `seconds_per_question` of the evaluator, where it has them."""
        evaluator = self._evaluator
        return dict(getattr(evaluator, "describe", dict)()), getattr(evaluator, "seconds_per_question", None)

    def answers(self, sets: Sequence[LayerSet], questions: NDArray[np.int64]) -> Given:
        """Ask the evaluator; what it gave before it raised counts."""
        assert self._evaluator is not None
        self._coming = iter(self._evaluator.answers(sets, questions))
        return self.more()

    def more(self) -> Given:
        """What else there is of what was asked last."""
        given, error, disk, until = list[tuple[LayerSet, Answers]](), "", None, math.inf
        with _collected() as lines:
            try:
                for each in self._coming:
                    given.append(each)
                    until = min(until, time.monotonic() + REPLY_S)
                    if time.monotonic() >= until:
                        return Given(given, "", lines, is_last=False)
            except Exception as raised:  # told to the driver, which decides
                error = in_words(raised)
                if isinstance(raised, OSError) and is_of_the_disk(raised):
                    where = f"{raised.filename or 'a disk'} of {socket.gethostname()}"
                    disk = OSError(raised.errno, raised.strerror, where)
        return Given(given, error, lines, disk=disk)


@contextmanager
def _collected() -> Iterator[list[str]]:
    """Warnings of this project meanwhile: a worker has no log of its own."""
    lines = list[str]()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Collect(logging.WARNING)
    names = ("evaluation", "models", "genetic_algorithm")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        yield lines
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)


def limit_threads(count: int) -> None:
    """Let this process compute on so many cores; torch, where it is loaded or will be."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
