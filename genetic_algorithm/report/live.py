"""The report of a search that runs: written again and again, seldom enough to cost nothing, and never in its way."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from threadpoolctl import threadpool_limits

from genetic_algorithm import run_folder
from genetic_algorithm.evaluator import Score
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Request
from genetic_algorithm.report.data import collect
from genetic_algorithm.report.reading import RunDocuments
from genetic_algorithm.report.track import Track
from genetic_algorithm.search import Outcome, Search

_LEAST_S = 10.0  # between two refreshes
_SHARE = 0.01  # of the time, that refreshes may take
_log = logging.getLogger(__name__)


class Told(Protocol):
    """Makes the result document of an outcome."""

    def __call__(self, outcome: Outcome, *, seconds: Mapping[str, float]) -> dict[str, Any]:
        """`seconds` of evaluation, by stage."""


class LiveReport:
    """Writes `report.json` and `report.html` of a run. Whatever fails in here is told once, and ends nothing.

    Args:
        paths: of the run; its configuration is there.
        search: read, and left as it is.
        told: makes a result document.
        clock: seconds, monotonic.
    """

    def __init__(
        self, paths: run_folder.RunPaths, search: Search, told: Told, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths, self._search, self._told, self._clock = paths, search, told, clock
        self._track = Track()
        self._due = clock() + _LEAST_S
        self._has_told = False
        self._written = _written(paths)

    def note(
        self, request: Request, done: int, seconds: Mapping[str, float], best: tuple[LayerSet, Score] | None
    ) -> None:
        """A request was answered; refreshes the report where that is due.

        A resumed search goes through its journal first: until it is where it was, the report stays what it was.

        Args:
            request: what was asked.
            done: question-evaluations so far.
            seconds: of evaluation, by stage.
            best: the best set so far, and its score.
        """
        self._track.note(request, done, sum(seconds.values()), best)
        if self._clock() < self._due or done <= self._written:
            return
        began = self._clock()
        with self._harmless():
            self._write_data(lambda outcome: self._told(outcome, seconds=seconds))
            self._draw()
        ended = self._clock()
        self._due = ended + max(_LEAST_S, (ended - began) / _SHARE)

    def finish(self) -> None:
        """The search is over: write what the report needs beside the result, which is written next."""
        with self._harmless():
            self._write_data(None)

    def draw(self) -> None:
        """The result is written: draw the page for the last time."""
        with self._harmless():
            self._draw()

    def _write_data(self, told: Callable[[Outcome], dict[str, Any]] | None) -> None:
        with threadpool_limits(limits=1, user_api="blas"):  # as in the search, whose matrices are as small
            run_folder.write_json(self._paths.report_data, collect(self._search, self._track, told))

    def _draw(self) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            self._tell("the report has no drawings without matplotlib; install it with: pip install matplotlib")
        write(self._paths)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a page is not worth a search of days
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._tell(f"the report cannot be written ({reason}); the search goes on without it")

    def _tell(self, line: str) -> None:
        if not self._has_told:
            self._has_told = True
            with suppress(OSError):  # the log may be on the disk that is full
                _log.warning("%s", line)


def write(paths: run_folder.RunPaths) -> None:
    """Write `report.html` of a run from what lies in its folder.

    Raises:
        SearchError: if something there is damaged.
        OSError: if it cannot be read or written.
    """
    from genetic_algorithm.report.page import render  # late: few processes draw

    run_folder.write_text(paths.report, render(RunDocuments.read(paths)))


def complete(paths: run_folder.RunPaths) -> None:
    """Draw the page of a search that is over where it was killed before that, as well as may be."""
    with suppress(Exception):
        if not paths.report.exists() or paths.report.stat().st_mtime < paths.result.stat().st_mtime:
            write(paths)


def _written(paths: run_folder.RunPaths) -> int:
    """Question-evaluations that an earlier sitting's report tells of."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(paths.report_data.read_text(encoding="utf-8"))["question_evaluations"])
    return 0
