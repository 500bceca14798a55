"""The parts of one request on their way through the workers: which is next, and what becomes of those that fail."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evaluation.cluster.parts import Part
from evaluation.cluster.worker import Given
from genetic_algorithm import Answers, LayerSet

LOSSES_TOGETHER, LOSSES_ALONE = 2, 5
"""How often workers may die over a part before its sets go alone, and over one set before it has failed."""
TRIES = 2
"""Workers on which a set must raise before it has failed, where there are as many."""
NEARLY_LONGEST = 0.85
"""Of the longest part: with less, one that is long may come last and end late; with more, every worker asks the donor
for every slice. With 0.7, as simulated (benchmarks/scaling.py), a whole search on 64 workers takes 4 % less, and a
population of 40 on two workers 2 % more."""
STRAGGLER, STRAGGLER_S = 3.0, 30.0
"""A part that takes so many times as long as its price says, and so many seconds, goes to a free worker as well."""
LOOK_S = 1.0
"""Seconds between two looks for such parts, as many free workers would look at many parts."""

Piece = tuple[LayerSet, NDArray[np.int64], Answers]


@dataclass(slots=True, eq=False)
class Task:
    """A part, who has it since when, and how it fared."""

    part: Part
    since: dict[int, float] = field(default_factory=dict)
    losses: int = 0
    raised_on: set[int] = field(default_factory=set)
    answered: set[LayerSet] = field(default_factory=set)
    is_done: bool = False

    def leave_out(self, sets: Container[LayerSet]) -> None:
        """Ask no more of these; the price shrinks as their number does."""
        part = self.part
        kept = tuple(layers for layers in part.sets if layers not in sets)
        if len(kept) < len(part.sets):
            self.part = Part(kept, part.questions, part.price * len(kept) / len(part.sets))


class Round:
    """One request. Workers are numbers; the clock gives seconds.

    Args:
        parts: What is asked, the longest first.
        clock: Monotonic.
        met: Slices of questions that each worker has been asked, in earlier requests as well; it grows.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        clock: Callable[[], float] = time.monotonic,
        met: MutableMapping[int, set[int]] | None = None,
    ) -> None:
        self._waiting: dict[int, list[Task]] = {}  # by slice; the next is the last
        self._left: dict[int, float] = defaultdict(float)  # their prices
        for part in reversed(parts):
            self._wait(Task(part))
        self._running: dict[int, Task] = {}
        self._clock = clock
        self._met = {} if met is None else met
        self._price_done, self._seconds_done = 0.0, 0.0
        self._looked = -math.inf
        self.failures: dict[LayerSet, str] = {}
        """Why sets are not answered."""

    @property
    def is_done(self) -> bool:
        """Whether nothing waits, and what runs is done already."""
        return not self._waiting and all(task.is_done for task in self._running.values())

    @property
    def may_give(self) -> bool:
        """Whether it is worth asking what a free worker does next."""
        return bool(self._waiting) or self._clock() - self._looked >= LOOK_S

    def take(self, worker: int, is_only_one: bool) -> Task | None:
        """What a free worker does next: one of the longest parts that it has not failed on, else one overdue.

        Of parts nearly as long as the longest, those of slices that the worker has met come first: an engine asks the
        donor once for each, too, and so would every worker for all of them. Then come those of slices with the most
        left for each worker that is at them.
        """
        at = Counter(task.part.slice for task in self._running.values())
        met = self._met.get(worker, set())
        next_of = {key: tasks[-1].part.price for key, tasks in self._waiting.items()}
        long = NEARLY_LONGEST * max(next_of.values(), default=0.0)
        for key in sorted(
            self._waiting, key=lambda key: (next_of[key] < long, key not in met, -self._left[key] / (at[key] + 1))
        ):
            tasks = self._waiting[key]
            for place in range(len(tasks) - 1, -1, -1):
                task = tasks[place]
                if worker not in task.raised_on or is_only_one:
                    del tasks[place]
                    self._left[key] -= task.part.price
                    if not tasks:
                        del self._waiting[key], self._left[key]
                    return self._give(task, worker)
        if self._clock() - self._looked < LOOK_S:
            return None
        overdue = [task for task in self._running.values() if self._is_overdue(task)]
        if not overdue:
            self._looked = self._clock()
        second = next((task for task in overdue if worker not in task.raised_on), None)
        return None if second is None else self._give(second, worker)

    def replied(self, worker: int, given: Given, workers: int) -> Iterator[Piece]:
        """Take a worker's reply; yields what is new in it.

        Raises:
            OSError: if a disk of its host is full or has failed, for which no set is to blame.
        """
        task = self._running[worker]
        asked = {*task.part.sets}
        answered = {layers: answers for layers, answers in given.answers if layers in asked - task.answered}
        task.answered |= answered.keys()
        for layers, answers in answered.items():
            if layers not in self.failures:
                yield layers, task.part.questions, answers
        if not given.is_last:
            return
        del self._running[worker]
        since = task.since.pop(worker)
        if task.is_done:
            return  # another was faster
        if given.error and task.since and given.disk is None:
            task.raised_on.add(worker)
            return  # another is at it, too
        if not given.error:
            self._price_done += task.part.price
            self._seconds_done += self._clock() - since
        if given.disk is not None:
            raise given.disk
        left = [layers for layers in task.part.sets if layers not in task.answered and layers not in self.failures]
        if left:
            self._raised(task, left, worker, given.error or "the evaluator gave no answer for it", workers)
        task.is_done = True

    def lost(self, worker: int, reason: str) -> None:
        """A worker is gone: what it had goes to others."""
        task = self._running.pop(worker, None)
        if task is None:
            return
        del task.since[worker]
        if task.is_done or task.since:
            return
        task.losses += 1
        task.leave_out(task.answered | self.failures.keys())  # these failed meanwhile, on other questions
        if not task.part.sets:
            task.is_done = True
        elif len(task.part.sets) > 1 and task.losses >= LOSSES_TOGETHER:
            self._alone(task, task.part.sets)
            task.is_done = True
        elif len(task.part.sets) == 1 and task.losses >= LOSSES_ALONE:
            self._fail(task.part.sets[0], f"{task.losses} workers died over it; the last: {reason}")
            task.is_done = True
        else:
            self._wait(task)

    def _wait(self, task: Task) -> None:
        self._waiting.setdefault(task.part.slice, []).append(task)
        self._left[task.part.slice] += task.part.price

    def _give(self, task: Task, worker: int) -> Task:
        self._met.setdefault(worker, set()).add(task.part.slice)
        task.since[worker] = self._clock()
        self._running[worker] = task
        return task

    def _is_overdue(self, task: Task) -> bool:
        if not self._price_done or len(task.since) != 1:
            return False
        expected = task.part.price * self._seconds_done / self._price_done
        return self._clock() - min(task.since.values()) > max(STRAGGLER * expected, STRAGGLER_S)

    def _raised(self, task: Task, left: Sequence[LayerSet], worker: int, reason: str, workers: int) -> None:
        """Sets whose evaluation raised: each alone, then on another worker, then they have failed."""
        task.raised_on.add(worker)
        if len(task.part.sets) > 1:
            self._alone(task, left)
        elif len(task.raised_on) < min(TRIES, workers):
            self._wait(Task(task.part, losses=task.losses, raised_on=task.raised_on))
        else:
            self._fail(left[0], reason)

    def _alone(self, task: Task, sets: Sequence[LayerSet]) -> None:
        price = task.part.price / len(task.part.sets)
        for layers in sets:
            self._wait(Task(Part((layers,), task.part.questions, price)))

    def _fail(self, layers: LayerSet, reason: str) -> None:
        """The set is left out of what waits, too."""
        self.failures[layers] = reason
        waiting = [task for tasks in self._waiting.values() for task in tasks]
        self._waiting.clear()
        self._left.clear()
        for task in waiting:
            task.leave_out(self.failures)
            if task.part.sets:
                self._wait(task)
