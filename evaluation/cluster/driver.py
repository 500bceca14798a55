"""An evaluator of many: hands parts to whichever worker is free, and gives what a lost worker had to others.

The driver decides, and never waits for one worker; how workers are started and reached is their pool's business
(ray_pool.py). What they say arrives in one queue, which is read while something is asked.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.cluster.parts import Job, cut
from evaluation.cluster.pool import Event, Lost, Pool, Replied, Started
from evaluation.cluster.round import Piece, Round
from evaluation.cluster.worker import Facts
from evaluation.errors import EvaluationError
from genetic_algorithm import Answers, LayerSet
from genetic_algorithm.run_folder import write_json

FAILED_STARTS = 3
"""After so many workers in a row that never came up, no more are started."""
SLOTS_S, STATUS_S = 2.0, 2.0
"""Seconds between two looks at how many workers there is room for, and between two states of them on disk."""

_log = logging.getLogger(__name__)


class ClusterEvaluator:
    """An Evaluator that asks workers; close it, or use it as a context manager.

    Raises:
        EvaluationError: if no worker comes up; with what the first one said.
    """

    def __init__(self, pool: Pool) -> None:
        """Start workers, and wait for the first."""
        self._pool = pool
        self._first: Facts | None = None
        self._ready: dict[int, Facts] = {}
        self._busy: dict[int, int] = {}  # worker: ticket
        self._starting: set[int] = set()
        self._answered: dict[int, int] = {}  # worker: question-evaluations
        self._numbers, self._tickets, self._first_ticket, self._first_start = 0, 0, 1, 1
        self._refused, self._failed_starts, self._lost = 0, 0, 0
        self._last_reason = ""
        self._slots, self._looked_at_slots, self._wrote_status = 0, -np.inf, -np.inf
        self._round: Round | None = None
        self._status: Path | None = None
        self.failures: dict[LayerSet, str] = {}
        """Why sets were not answered, of all requests."""
        try:
            while not self._ready:
                self.wait()
        except BaseException:
            pool.close()
            raise
        self._facts = next(iter(self._ready.values()))

    @property
    def ready(self) -> int:
        """Workers that can be asked."""
        return len(self._ready)

    def wait(self) -> None:
        """For something to happen to a worker, not for long; nothing may be asked meanwhile."""
        self._staff()
        list(self._next_event())

    # --- what a search sees ---

    @property
    def num_layers(self) -> int:
        """Depth of base and donor."""
        return self._facts.num_layers

    @property
    def num_questions(self) -> int:
        """How many questions there are in all."""
        return self._facts.num_questions

    @property
    def subjects(self) -> NDArray[np.int64]:
        """Subject of each question."""
        return self._facts.subjects

    @property
    def subject_names(self) -> tuple[str, ...]:
        """Of each subject."""
        return self._facts.subject_names

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """Of each question in a score; None where all count alike."""
        return self._facts.weights

    @property
    def coarse_from(self) -> int | None:
        """First of the questions that are there again, for coarse answers."""
        return self._facts.coarse_from

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What shapes an answer: the same for all workers."""
        return self._facts.fingerprint

    @property
    def setting(self) -> str:
        """On what the workers run, in words."""
        return f"{self._slots} workers; the first: {self._facts.setting or self._facts.device}"

    @property
    def seconds_per_question(self) -> float | None:
        """Of all workers together."""
        pace = self._pool.describe(next(iter(self._ready)))[1]
        return None if pace is None else pace / max(self._slots, 1)

    def describe(self) -> dict[str, Any]:
        """Of the first worker, and how many there is room for."""
        return {**self._pool.describe(next(iter(self._ready)))[0], "workers": self._slots}

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """Yield each distinct set of `batch` that can be evaluated; `failures` says why others cannot."""
        job = (list(dict.fromkeys(batch)), np.asarray(questions, dtype=np.int64))
        for layers, _, answers in self.pieces([job]):
            yield layers, answers

    def pieces(self, jobs: Sequence[Job]) -> Iterator[Piece]:
        """Yield sets with the questions of a job and their answers to them, as they come.

        A set that cannot be evaluated on one job is left out of those that still wait.

        Raises:
            EvaluationError: when no worker is left and none can be started.
        """
        self._staff()
        tokens_Q = np.ones(self.num_questions) if self._facts.tokens is None else self._facts.tokens
        self._first_ticket = self._tickets + 1
        self._round = Round(cut(jobs, max(1, self._slots), self.num_layers, tokens_Q))
        try:
            while not self._round.is_done:
                self._hand_out(self._round)
                yield from self._next_event()
                self._staff()
            self.failures |= self._round.failures
        finally:
            self._round = None  # what still runs is nobody's any more

    def report_to(self, status: Path, address: Path) -> None:
        """Keep the state of the workers in a file from now on, and in another where hosts can join."""
        self._status = status
        self._write_status()
        self._pool.announce(address)

    def close(self) -> None:
        """End all workers."""
        self._pool.close()

    def __enter__(self) -> ClusterEvaluator:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all workers."""
        self.close()

    # --- workers ---

    def _staff(self) -> None:
        """Start workers where there is room for them.

        Raises:
            EvaluationError: if there are none, and none can be started.
        """
        now = time.monotonic()
        if now - self._looked_at_slots >= SLOTS_S or not self._ready:
            before, self._slots, self._looked_at_slots = self._slots, self._pool.slots(), now
            if self._slots > before:  # a host has joined: workers may come up there
                self._failed_starts = 0
            if not self._slots:  # that those before are lost says nothing of the next
                self._first_start = self._numbers + 1
        while self._failed_starts < FAILED_STARTS and self._staffed < self._slots:
            self._numbers += 1
            self._starting.add(self._numbers)
            self._pool.spawn(self._numbers)
        if not self._ready and not self._starting and self._failed_starts >= FAILED_STARTS:
            raise EvaluationError(f"no worker comes up; the last said: {self._last_reason}")
        if now - self._wrote_status >= STATUS_S:
            self._write_status()

    @property
    def _staffed(self) -> int:
        return len(self._ready) + len(self._starting) + self._refused

    def _hand_out(self, going: Round) -> None:
        for worker in self._ready.keys() - self._busy.keys():
            task = going.take(worker, is_only_one=len(self._ready) == 1)
            if task is not None:
                self._tickets += 1
                self._busy[worker] = self._tickets
                self._pool.submit(worker, self._tickets, task.part.sets, task.part.questions)

    def _next_event(self) -> Iterator[Piece]:
        """Wait for something to happen, not for long; yields the answers that it brings."""
        try:
            event: Event = self._pool.events.get(timeout=SLOTS_S / 2)
        except queue.Empty:
            return
        if isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Lost):
            self._lose(event)
        elif self._busy.get(event.worker) == event.ticket:
            del self._busy[event.worker]
            yield from self._reply(event)

    def _started(self, event: Started) -> None:
        self._starting.discard(event.worker)
        self._failed_starts = 0
        facts = event.facts
        self._first = self._first or facts
        if differing := facts.difference(self._first):
            _log.warning("%s on %s is refused, it would answer otherwise: %s", facts.name, facts.device, differing)
            self._refused += 1
            self._pool.dismiss(event.worker)
            return
        self._ready[event.worker] = facts
        self._answered[event.worker] = 0
        _log.info("worker %d is ready: %s on %s", event.worker, facts.name, facts.device)

    def _lose(self, event: Lost) -> None:
        self._last_reason = event.reason
        if event.worker in self._starting:
            self._starting.remove(event.worker)
            self._failed_starts += event.worker >= self._first_start
            _log.warning("worker %d did not come up: %s", event.worker, event.reason)
            if event.error is not None:  # its own code raised, and would again
                self._failed_starts = FAILED_STARTS
        elif (facts := self._ready.pop(event.worker, None)) is not None:
            self._lost += 1
            _log.warning("worker %d (%s) is lost: %s", event.worker, facts.name, event.reason)
            ticket = self._busy.pop(event.worker, 0)
            if self._round is not None and ticket >= self._first_ticket:
                self._round.lost(event.worker, event.reason)
            self._looked_at_slots = -np.inf

    def _reply(self, event: Replied) -> Iterator[Piece]:
        for line in event.given.warnings:
            _log.warning("worker %d: %s", event.worker, line)
        if self._round is None or event.ticket < self._first_ticket:
            return
        for piece in self._round.replied(event.worker, event.given, len(self._ready)):
            self._answered[event.worker] += len(piece[1])
            yield piece

    def _write_status(self) -> None:
        self._wrote_status = time.monotonic()
        if self._status is None:
            return
        ready = [
            {"name": facts.name, "device": facts.device, "state": "ready", "questions": self._answered[worker]}
            for worker, facts in self._ready.items()
        ]
        starting = [{"name": "", "device": "", "state": "starting", "questions": 0} for _ in self._starting]
        try:
            write_json(self._status, {"time": time.time(), "workers": ready + starting, "lost": self._lost})
        except OSError as error:  # what only tells of the work must not end it
            _log.warning("%s; the state of the workers is not written any more", error)
            self._status = None
