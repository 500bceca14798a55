"""An evaluator of many: hands parts to whichever worker is free, and gives what a lost worker had to others.

The driver decides, and never waits for one worker; how workers are started and reached is their pool's business
(ray_pool.py). What they say arrives in one queue, which is read while something is asked.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from genetic_algorithm.report.words import plural
from genetic_algorithm.run_folder import write_json

FAILED_STARTS = 3
"""After so many starts in a row that brought no worker, no more are made until a worker is lost or the room changes."""
LOSSES_IN_A_ROW = 16
"""So many workers, and twice as many as there is room for, may die over what they are asked without any reply."""
SLOTS_S, STATUS_S = 2.0, 2.0
"""Seconds between two looks at how many workers there is room for, and between two states of them on disk."""

_log = logging.getLogger(__name__)


class ClusterEvaluator:
    """An Evaluator that asks workers; close it, or use it as a context manager.

    Args:
        pool: Whatever runs the workers.
        clock: Monotonic, in seconds.

    Raises:
        EvaluationError: if no worker comes up; with what the first one said.
    """

    def __init__(self, pool: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        """Start workers, and wait for the first."""
        self._pool, self._clock = pool, clock
        self._first: Facts | None = None
        self._ready: dict[int, Facts] = {}
        self._busy: dict[int, int] = {}  # worker: ticket
        self._starting: set[int] = set()
        self._answered: dict[int, int] = {}  # worker: question-evaluations
        self._met: dict[int, set[int]] = {}  # worker: slices of questions
        self._numbers, self._tickets, self._first_ticket, self._first_start = 0, 0, 1, 1
        self._failed_starts, self._lost, self._lost_in_a_row = 0, 0, 0
        self._reason = ""  # of the first of the failed starts
        self._slots, self._looked_at_slots, self._wrote_status = 0, -np.inf, -np.inf
        self._round: Round | None = None
        self._status: Path | None = None
        self.failures: dict[LayerSet, str] = {}
        """Why sets were not answered, of all requests."""
        try:
            self._any_ready()
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
        list(self._events())

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
    def least_questions(self) -> int | None:
        """How many questions keep a worker busy; None for those of a whole slice."""
        return self._facts.least_questions

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What shapes an answer: the same for all workers."""
        return self._facts.fingerprint

    @property
    def setting(self) -> str:
        """On what the workers run, in words."""
        return f"{plural(self._slots, 'worker')}; the first: {self._facts.setting or self._facts.device}"

    @property
    def seconds_per_question(self) -> float | None:
        """Of all workers together."""
        pace = self._pool.describe(self._any_ready())[1]
        return None if pace is None else pace / max(self._slots, 1)

    def describe(self) -> dict[str, Any]:
        """Of the first worker, and how many there is room for."""
        return {**self._pool.describe(self._any_ready())[0], "workers": self._slots}

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """Yield each distinct set of `batch` that can be evaluated; `failures` says why others cannot."""
        job = (list(dict.fromkeys(batch)), np.asarray(questions, dtype=np.int64))
        for layers, _, answers in self.pieces([job]):
            yield layers, answers

    def pieces(self, jobs: Sequence[Job]) -> Iterator[Piece]:
        """Yield sets with the questions of a job and their answers to them, as they come.

        A set that cannot be evaluated on one job is left out of those that still wait. One request goes on at a time: a
        new one ends the one before.

        Raises:
            EvaluationError: when no worker is left and none can be started, or all die over what they are asked.
            OSError: when a disk of a worker's host is full or has failed.
        """
        self._staff()
        tokens_Q = np.ones(self.num_questions) if self._facts.tokens is None else self._facts.tokens
        self._first_ticket = self._tickets + 1
        parts = cut(jobs, max(1, self._slots), self.num_layers, tokens_Q)
        self._round = going = Round(parts, self._clock, self._met)
        waiting = deque[Piece]()
        try:
            while waiting or not going.is_done:
                if self._round is not going:
                    raise EvaluationError("a request cannot go on after the next one has begun")
                self._staff()
                self._hand_out(going)
                waiting += self._events(is_patient=not waiting)
                if waiting:
                    # Workers come first: who takes the answers writes them to disk, and they would wait for that.
                    self._hand_out(going)
                    yield waiting.popleft()
            self.failures |= going.failures
        except (EvaluationError, OSError):
            yield from waiting
            raise
        finally:
            if self._round is going:
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
        """End all workers; who interrupts does not wait for that."""
        self._pool.close(at_once=kind is not None and issubclass(kind, KeyboardInterrupt))

    # --- workers ---

    def _any_ready(self) -> int:
        """A worker that can be asked; waits for one where there is none."""
        while not self._ready:
            self._staff()
            list(self._events())
        return next(iter(self._ready))

    def _staff(self) -> None:
        """Start workers where there is room for them.

        Raises:
            EvaluationError: if there are none, and none can be started.
        """
        now = self._clock()
        if now - self._looked_at_slots >= SLOTS_S or not self._ready:
            self._look_at_slots(now)
        while self._failed_starts < FAILED_STARTS and len(self._ready) + len(self._starting) < self._slots:
            self._numbers += 1
            self._starting.add(self._numbers)
            self._pool.spawn(self._numbers)
        if not self._ready and not self._starting and self._failed_starts >= FAILED_STARTS:
            raise EvaluationError(f"no worker comes up: {self._reason}")
        if now - self._wrote_status >= STATUS_S:
            self._write_status()

    def _look_at_slots(self, now: float) -> None:
        before, self._slots, self._looked_at_slots = self._slots, self._pool.slots(), now
        if self._slots == before and self._numbers:
            return
        self._failed_starts = 0
        if not self._slots and not self._numbers:
            raise EvaluationError("the cluster has no room for a worker: no GPU, or no core for --cpu-workers")
        if not self._slots:
            _log.warning("there is no room for a worker any more; waiting until there is")
            self._first_start = self._numbers + 1  # that those before are lost says nothing of the next

    def _hand_out(self, going: Round) -> None:
        if len(self._busy) == len(self._ready):
            return
        for worker in self._ready.keys() - self._busy.keys():
            if not going.may_give:
                return
            task = going.take(worker, is_only_one=len(self._ready) == 1)
            if task is not None:
                self._tickets += 1
                self._busy[worker] = self._tickets
                self._pool.submit(worker, self._tickets, task.part.sets, task.part.questions)

    def _events(self, *, is_patient: bool = True) -> Iterator[Piece]:
        """All that has happened; if patient, waits for the first of it, not for long. Yields the answers in it."""
        timeout = SLOTS_S / 2 if is_patient else 0.0
        while True:
            try:
                event: Event = self._pool.events.get(timeout=timeout)
            except queue.Empty:
                return
            timeout = 0.0
            if isinstance(event, Started):
                self._started(event)
            elif isinstance(event, Lost):
                self._lose(event)
            elif self._busy.get(event.worker) == event.ticket:
                if self._round_of(event.ticket) is not None and not event.given.is_last:
                    self._pool.more(event.worker, event.ticket)
                else:
                    del self._busy[event.worker]
                yield from self._reply(event)

    def _started(self, event: Started) -> None:
        self._starting.discard(event.worker)
        facts = event.facts
        self._first = self._first or facts
        if differing := facts.difference(self._first):
            reason = f"{facts.name} on {facts.device} is refused, it would answer otherwise: {differing}"
            _log.warning("%s", reason)
            self._start_failed(reason)
            self._pool.dismiss(event.worker)
            return
        self._failed_starts = 0
        self._ready[event.worker] = facts
        self._answered[event.worker] = 0
        _log.info("worker %d is ready: %s on %s", event.worker, facts.name, facts.device)

    def _start_failed(self, reason: str) -> None:
        self._reason = self._reason if self._failed_starts else reason
        self._failed_starts += 1

    def _lose(self, event: Lost) -> None:
        if event.worker in self._starting:
            self._starting.remove(event.worker)
            self._pool.dismiss(event.worker)  # what is left of it would keep its place
            if event.worker >= self._first_start:
                self._start_failed(event.reason)
            _log.warning("worker %d did not come up: %s", event.worker, event.reason)
            if event.error is not None:  # its own code raised, and would again
                self._failed_starts = FAILED_STARTS
        elif (facts := self._ready.pop(event.worker, None)) is not None:
            self._lost += 1
            self._met.pop(event.worker, None)
            _log.warning("worker %d (%s) is lost: %s", event.worker, facts.name, event.reason)
            ticket = self._busy.pop(event.worker, 0)
            self._failed_starts = 0
            self._looked_at_slots = -np.inf
            if ticket:
                self._lost_in_a_row += 1
            if self._lost_in_a_row > LOSSES_IN_A_ROW + 2 * self._slots:
                raise EvaluationError(
                    f"{self._lost_in_a_row} workers in a row died over what they were asked; the last: {event.reason}"
                )
            if (going := self._round_of(ticket)) is not None:
                going.lost(event.worker, event.reason)

    def _reply(self, event: Replied) -> Iterator[Piece]:
        self._lost_in_a_row = 0
        for line in event.given.warnings:
            _log.warning("worker %d: %s", event.worker, line)
        if (going := self._round_of(event.ticket)) is None:
            return
        for piece in going.replied(event.worker, event.given, len(self._ready)):
            self._answered[event.worker] += len(piece[1])
            yield piece

    def _round_of(self, ticket: int) -> Round | None:
        """The request that goes on, where the ticket is one of its own; else nobody wants the answers any more."""
        return self._round if ticket >= self._first_ticket else None

    def _write_status(self) -> None:
        self._wrote_status = self._clock()
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
