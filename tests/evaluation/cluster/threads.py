"""A small real pool: each worker a thread with a queue of its own, which a test may kill at any moment."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.cluster.driver import ClusterEvaluator
from evaluation.cluster.pool import Event, Lost, Replied, Started
from evaluation.cluster.worker import Given, Worker
from evaluation.errors import in_words
from genetic_algorithm import Evaluator, LayerSet


class Died(BaseException):
    """Raised by an evaluator to end its worker, as SIGKILL would."""


class ThreadPool:
    """See `Pool`; warnings stay where they are, as all workers share this process's log.

    Args:
        make: Makes the evaluator of a worker, by number.
        room: Workers that there is room for; a test may change it at any time.
    """

    def __init__(self, make: Callable[[int], Evaluator], room: int = 2) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.room = room
        self.spawned: list[int] = []
        self.alive: dict[int, queue.SimpleQueue[tuple[int, Callable[[Worker], Given]] | None]] = {}
        self.up: set[int] = set()
        """Workers that have come up, or have failed to."""
        self.submitted: list[tuple[int, int, int]] = []
        """worker, sets, questions"""
        self.is_closed = False
        self._make = make
        self._workers: dict[int, Worker] = {}
        self._lock = threading.Lock()

    def slots(self) -> int:
        return self.room

    def spawn(self, worker: int) -> None:
        self.spawned.append(worker)
        self.alive[worker] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(worker,), daemon=True).start()

    def submit(self, worker: int, ticket: int, sets: Sequence[LayerSet], questions: NDArray[np.int64]) -> None:
        self.submitted.append((worker, len(sets), len(questions)))
        if (calls := self.alive.get(worker)) is not None:  # else its loss is in the events already
            calls.put((ticket, lambda holder: holder.answers(sets, questions)))

    def more(self, worker: int, ticket: int) -> None:
        if (calls := self.alive.get(worker)) is not None:
            calls.put((ticket, Worker.more))

    def describe(self, worker: int) -> tuple[dict[str, Any], float | None]:
        return self._workers[worker].describe()

    def dismiss(self, worker: int) -> None:
        with self._lock:
            calls = self.alive.pop(worker, None)
        if calls is not None:
            calls.put(None)

    def announce(self, path: Path) -> None:
        """Nobody can join threads."""

    def close(self, *, at_once: bool = False) -> None:
        self.is_closed = True
        for worker in list(self.alive):
            self.dismiss(worker)

    def kill(self, worker: int, reason: str = "killed") -> None:
        """In the middle of a call, too: what it says from now on is not heard."""
        with self._lock:
            calls = self.alive.pop(worker, None)
            if calls is not None:
                calls.put(None)
                self.events.put(Lost(worker, reason))

    def _run(self, worker: int) -> None:
        calls = self.alive[worker]
        self._workers[worker] = holder = Worker(lambda: self._make(worker), f"thread {worker}")
        try:
            self._say(worker, Started(worker, holder.facts()))
        except BaseException as error:
            own = error if isinstance(error, Exception) else None
            self._say(worker, Lost(worker, in_words(error), own), is_last=True)
            return
        while (call := calls.get()) is not None:
            ticket, ask = call
            try:
                given = ask(holder)
            except Died as error:
                self._say(worker, Lost(worker, in_words(error)), is_last=True)
                return
            self._say(worker, Replied(worker, ticket, given._replace(warnings=[])))

    def _say(self, worker: int, event: Event, *, is_last: bool = False) -> None:
        with self._lock:
            self.up.add(worker)
            if worker in self.alive:
                self.events.put(event)
                if is_last:
                    del self.alive[worker]


@contextmanager
def cluster(make: Callable[[int], Evaluator], room: int = 2) -> Iterator[tuple[ClusterEvaluator, ThreadPool]]:
    """A driver over such a pool."""
    pool = ThreadPool(make, room)
    with ClusterEvaluator(pool) as evaluator:
        yield evaluator, pool


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"did not come true in {seconds} s"
        time.sleep(0.002)
