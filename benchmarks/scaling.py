"""How far several workers help: the driver in virtual time at measured prices, and in real time over sleeping workers.

    python -m benchmarks.scaling                              # everything; minutes
    python -m benchmarks.scaling --parts requests --workers 1 8 64
    python -m benchmarks.scaling --parts driver               # real time: do driver and journal keep up?

`requests` and `search` run the real driver against a clock that jumps from event to event. A worker takes what a walk
of its part runs, in layers times tokens, at the pace of one H200 (engine-h200-2026-11.md), times a log-normal deviate
of mean 1 where --spread says so, plus --call-s for each part; workers die at random (Poisson) where --kills-per-hour
says so, and take --start-s to come back. Efficiency is the time of one undisturbed worker, over workers times their
time. `search` replays every request of one search of the published 8B landscape.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import logging
import os
import queue
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.landscapes import ReplayedPair
from evaluation.cluster.driver import ClusterEvaluator
from evaluation.cluster.parts import Job, cut
from evaluation.cluster.pool import Event, Lost, Replied, Started
from evaluation.cluster.worker import Facts, Given
from evaluation.entry import run_tool
from evaluation.journal import Journal
from evaluation.remembering import SLICE_QUESTIONS, Remembering, journal_header
from evaluation.walk import count_layer_calls
from genetic_algorithm import Answers, LayerSet, SearchSpace
from genetic_algorithm.config import PRESETS
from genetic_algorithm.evaluator import limit_questions
from genetic_algorithm.search import Search
from tests.evaluation.cluster.threads import ThreadPool

DEPTH, QUESTIONS, TOKENS = 32, 14_042, 1_742_533
PACE = 1.559 / 62_224 / DEPTH
"""Seconds for one token of one layer: one candidate alone at limit 10 on one H200, in bfloat16."""
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@cache
def tokens() -> NDArray[np.float64]:
    """Of each question: median 90 and mean 124, as real prompts have; seeded, float64 [QUESTIONS]."""
    drawn = np.random.default_rng(0).lognormal(np.log(90), 0.8, QUESTIONS).clip(20, 1008)
    return drawn * TOKENS / drawn.sum()


def work(sets: Sequence[LayerSet], questions: NDArray[np.int64]) -> float:
    """Seconds of one undisturbed worker."""
    return count_layer_calls(DEPTH, sets) * float(tokens()[questions].sum()) * PACE


@dataclass(frozen=True)
class Trouble:
    """What goes wrong."""

    spread: float = 0.0
    """Standard deviation of the logarithm of a part's time."""
    kills_per_hour: float = 0.0
    """Of each worker."""
    start_s: float = 20.0
    call_s: float = 0.005


@dataclass
class VirtualPool:
    """Workers without substance, and their clock; see `Pool`. It is its own queue of events."""

    room: int
    trouble: Trouble
    now: float = 0.0
    killed: int = 0
    _ahead: list[tuple[float, int, Event]] = field(default_factory=list)
    _dies: dict[int, float] = field(default_factory=dict)
    _met: set[tuple[int, bytes]] = field(default_factory=set)
    _order: Iterator[int] = field(default_factory=itertools.count)
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def events(self) -> VirtualPool:
        """The pool itself."""
        return self

    def get(self, timeout: float) -> Event:
        """The next event, and its time becomes now."""
        while self._ahead and self._ahead[0][0] <= self.now + timeout:
            when, _, event = heapq.heappop(self._ahead)
            if event.worker not in self._dies:
                continue  # of one that died
            self.now = max(self.now, when)
            if isinstance(event, Lost):
                del self._dies[event.worker]
                self.killed += 1
            return event
        self.now += timeout
        raise queue.Empty

    def clock(self) -> float:
        """Seconds since it began."""
        return self.now

    def slots(self) -> int:
        """See `Pool`."""
        return self.room

    def spawn(self, worker: int) -> None:
        """See `Pool`; all workers are there at the beginning."""
        rate = self.trouble.kills_per_hour / 3600
        start = self.trouble.start_s if worker > self.room else 0.0
        life = float(self._rng.exponential(1 / rate)) if rate else np.inf
        self._dies[worker] = self.now + start + life
        nothing = np.zeros(QUESTIONS, np.int64)
        facts = Facts(f"w{worker}", "", DEPTH, QUESTIONS, nothing, (), None, tokens(), None, {}, "")
        self._put(start, Started(worker, facts))
        if rate:
            self._put(start + life, Lost(worker, "killed"))

    def submit(self, worker: int, ticket: int, sets: Sequence[LayerSet], questions: NDArray[np.int64]) -> None:
        """See `Pool`."""
        spread = self.trouble.spread
        deviate = float(self._rng.lognormal(-(spread**2) / 2, spread)) if spread else 1.0
        answers = Answers(np.zeros(0, np.bool_))
        given = [(layers, answers) for layers in sets]
        if (slice_ := (worker, questions.tobytes())) not in self._met:
            self._met.add(slice_)
            sets = [*sets, LayerSet(tuple(range(DEPTH)))]  # the donor, once for each slice that a worker meets
        seconds = self.trouble.call_s + work(sets, questions) * deviate
        self._put(seconds, Replied(worker, ticket, Given(given, "", [])))

    def dismiss(self, worker: int) -> None:
        """See `Pool`."""
        self._dies.pop(worker, None)

    def close(self, *, at_once: bool = False) -> None:
        """See `Pool`."""

    def _put(self, seconds: float, event: Event) -> None:
        heapq.heappush(self._ahead, (self.now + seconds, next(self._order), event))


def virtual_seconds(requests: Sequence[Sequence[Job]], workers: int, trouble: Trouble) -> tuple[float, int]:
    """How long workers take for requests, one after the other, and how many died."""
    pool = VirtualPool(workers, trouble)
    with ClusterEvaluator(pool, pool.clock) as evaluator:  # type: ignore[arg-type]
        list(evaluator.pieces([([LayerSet(())], np.arange(1))]))  # all have come up
        began = pool.now
        for jobs in requests:
            given = sum(1 for _ in evaluator.pieces(jobs))
            if given != sum(len(sets) for sets, _ in jobs):
                raise RuntimeError("every set must be answered on every slice")
        return pool.now - began, pool.killed


def kinds(pair: ReplayedPair, slice_questions: int) -> dict[str, list[Job]]:
    """Requests as a search of the 8B pair makes them, cut as Remembering cuts them."""

    def jobs_of(sets: Sequence[LayerSet], questions: NDArray[np.int64]) -> list[Job]:
        return [(sets, piece) for piece in np.array_split(questions, -(-len(questions) // slice_questions))]

    space, rng = SearchSpace(DEPTH, 2, 4), np.random.default_rng(0)
    few, everything = limit_questions(pair.subjects, 10), np.arange(QUESTIONS)
    population: dict[LayerSet, None] = {}
    while len(population) < 40:
        population[space.random(rng)] = None
    swaps = SearchSpace(DEPTH, 4, 4).neighbours(LayerSet((11, 13, 17, 21)))
    scan = list(SearchSpace(DEPTH, 2, 3))
    return {
        "one set, limit 10": jobs_of([LayerSet((11, 13, 17, 21))], few),
        "population of 40, limit 10": jobs_of(list(population), few),
        f"{len(swaps)} neighbours, limit 10": jobs_of(swaps, few),
        "20 sets, all questions": jobs_of(list(population)[:20], everything),
        f"scan of {len(scan):,}, limit 10": jobs_of(scan, few),
    }


class Recorder:
    """A pair that notes what it is asked, as several workers are asked."""

    def __init__(self, pair: ReplayedPair) -> None:
        self.num_layers, self.num_questions, self.subjects = pair.num_layers, pair.num_questions, pair.subjects
        self.requests: list[list[Job]] = []
        self._pair = pair

    def pieces(self, jobs: Sequence[Job]) -> Iterator[tuple[LayerSet, NDArray[np.int64], Answers]]:
        """See `ClusterEvaluator`."""
        self.requests.append(list(jobs))
        for sets, questions in jobs:
            for layers, answers in self._pair.answers(sets, questions):
                yield layers, questions, answers

    answers = None


def recorded(pair: ReplayedPair, strategy: str, preset: str, slice_questions: int) -> tuple[list[list[Job]], float]:
    """Every request of a search, and the seconds that the search itself thought between them."""
    recorder = Recorder(pair)
    config = replace(PRESETS[preset](), strategy=strategy)
    search = Search(config, config.space(DEPTH), pair.subjects)
    thought = 0.0
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal", journal_header(recorder), QUESTIONS)
        asked = Remembering(recorder, journal, slice_questions=slice_questions)
        while True:
            began = time.process_time()
            request = search.ask()
            thought += time.process_time() - began
            if request is None:
                break
            answers = dict(asked.answers(request.batch, request.questions))
            began = time.process_time()
            search.tell(answers)
            thought += time.process_time() - began
    return recorder.requests, thought


def table(rows: dict[str, list[list[Job]]], counts: Sequence[int], trouble: Trouble) -> dict[str, Any]:
    """Print and return efficiency and seconds by the number of workers."""
    found: dict[str, Any] = {}
    print(f"{'':<28}{'1 worker':>10}" + "".join(f"{count:>9}" for count in counts))
    for name, requests in rows.items():
        alone = sum(work(sets, questions) for jobs in requests for sets, questions in jobs)
        times = {count: virtual_seconds(requests, count, trouble) for count in counts}
        found[name] = {
            "work_s": round(alone, 2),
            "seconds": {n: round(s, 3) for n, (s, _) in times.items()},
            "efficiency": {n: round(alone / n / s, 3) for n, (s, _) in times.items()},
            "killed": {n: killed for n, (_, killed) in times.items()},
        }
        print(f"{name:<28}{alone:>8.1f} s" + "".join(f"{alone / n / s:>9.3f}" for n, (s, _) in times.items()))
        print(f"{'':<36} s" + "".join(f"{s:>9.2f}" for s, _ in times.values()))
    return found


class Sleeper:
    """Answers like the engine's, after as long as `work` says, times `slower`."""

    num_layers, num_questions = DEPTH, QUESTIONS

    def __init__(self, subjects: NDArray[np.int64], slower: float) -> None:
        self.subjects, self.tokens = subjects, tokens()
        self._slower = slower
        self.slept = 0.0
        rng = np.random.default_rng(0)
        self._margin = rng.normal(size=QUESTIONS).astype(np.float32)

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """As `Evaluator` says."""
        seconds = work(batch, questions) * self._slower
        time.sleep(seconds)
        self.slept += seconds
        margin = self._margin[questions]
        for layers in batch:
            yield layers, Answers(margin > 0, margin, np.abs(margin))


def driver(workers: int, seconds: float, requests: int, size: int) -> dict[str, float]:
    """The real driver, Remembering and a journal on disk over threads that sleep: how busy they are kept."""
    subjects = ReplayedPair().subjects
    few = limit_questions(subjects, 10)
    sets = list(itertools.islice(SearchSpace(DEPTH, 4, 4), requests * size))
    slower = seconds / (sum(part.price for part in cut([(sets[:size], few)], workers, DEPTH, tokens())) * PACE / size)
    made: list[Sleeper] = []

    def make(worker: int) -> Sleeper:
        made.append(Sleeper(subjects, slower))
        return made[-1]

    with tempfile.TemporaryDirectory(dir=".") as folder, ClusterEvaluator(ThreadPool(make, workers)) as evaluator:
        while len(made) < workers:
            time.sleep(0.1)
        journal = Journal(Path(folder) / "journal", journal_header(evaluator), QUESTIONS)
        asked = Remembering(evaluator, journal)
        began, cpu = time.monotonic(), time.process_time()
        for low in range(0, len(sets), size):
            given = sum(1 for _ in asked.answers(sets[low : low + size], few))
            if given != size:
                raise RuntimeError("every set must be answered")
        took, cpu = time.monotonic() - began, time.process_time() - cpu
    busy = sum(inner.slept for inner in made)
    return {
        "workers": workers,
        "sets": len(sets),
        "seconds": round(took, 2),
        "sets_per_second": round(len(sets) / took, 1),
        "cpu_s_of_driver_and_stubs": round(cpu, 2),
        "busy": round(busy / workers / took, 4),
    }


def main(argv: list[str] | None = None) -> int:
    """Print tables, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("requests", "search", "driver")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to measure [all]")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=WORKERS, metavar="N", help="in virtual time [1 to 1024]"
    )
    parser.add_argument("--spread", type=float, default=0.0, help="of the logarithm of a part's time [%(default)s]")
    parser.add_argument("--kills-per-hour", type=float, default=0.0, help="of each worker [%(default)s]")
    parser.add_argument("--start-s", type=float, default=20.0, help="until a worker is there again [%(default)s]")
    parser.add_argument("--call-s", type=float, default=0.005, help="of handing out a part [%(default)s]")
    parser.add_argument("--slice", type=int, default=SLICE_QUESTIONS, help="questions that go together [%(default)s]")
    parser.add_argument("--strategy", default="ga", help="of the search [%(default)s]")
    parser.add_argument("--preset", choices=PRESETS, default="full", help="of the search [%(default)s]")
    parser.add_argument("--local-workers", type=int, default=256, help="of the driver in real time [%(default)s]")
    parser.add_argument("--sleep-s", type=float, default=0.5, help="for each set there [%(default)s]")
    parser.add_argument("--requests", type=int, default=2, help="there [%(default)s]")
    parser.add_argument("--size", type=int, default=8192, help="sets of each of them [%(default)s]")
    args = parser.parse_args(argv)
    logging.getLogger("evaluation.cluster").setLevel(logging.ERROR)  # workers are lost on purpose
    trouble = Trouble(args.spread, args.kills_per_hour, args.start_s, args.call_s)
    pair, found = ReplayedPair(), dict[str, Any]()
    if "requests" in args.parts:
        found["requests"] = table({k: [jobs] for k, jobs in kinds(pair, args.slice).items()}, args.workers, trouble)
    if "search" in args.parts:
        requests, thought = recorded(pair, args.strategy, args.preset, args.slice)
        sizes = [sum(len(sets) for sets, _ in jobs) for jobs in requests]
        print(f"{len(requests)} requests, of {sizes} sets and slices; the search thought {thought:.1f} s of CPU")
        found["search"] = table({f"search, {args.strategy}, {args.preset}": requests}, args.workers, trouble)
        found["search"] |= {"requests": sizes, "thought_s": round(thought, 2)}
    if "driver" in args.parts:
        found["driver"] = driver(args.local_workers, args.sleep_s, args.requests, args.size)
        print(found["driver"])
    print(json.dumps({"load_average": os.getloadavg(), "trouble": vars(trouble), **found}))
    return 0


if __name__ == "__main__":
    sys.exit(run_tool("scaling.py", main))
