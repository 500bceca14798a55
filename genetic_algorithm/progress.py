"""What a person sees of a running search: plain lines in the log, and a bar on a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from genetic_algorithm.conclusion import spell_score
from genetic_algorithm.evaluator import Score
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Ledger, Request
from genetic_algorithm.observers import Values
from genetic_algorithm.questions import FINAL, FULL
from genetic_algorithm.search import CHECK, Outcome
from genetic_algorithm.strategies import StageForecast

_log = logging.getLogger(__name__)
_OURS = ("genetic_algorithm", "evaluation", "models")
ENDED = "the search ended by"
"""Begins the last line of the log where an error ended a sitting."""
_QUIET_S = 30.0  # a request that takes longer than this says so meanwhile


def spell_seconds(seconds: float) -> str:
    """`45 s`, `3 min 10 s`, `2 h 05 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def remaining(
    forecast: Sequence[StageForecast], used: Mapping[str, int], stage: str, budget_left: float
) -> tuple[int, int]:
    """Question-evaluations left from `stage` on, as searches mostly go and at most.

    Args:
        forecast: by stage, in order.
        used: question-evaluations by stage.
        stage: the one that runs.
        budget_left: question-evaluations that stages before the hold-out may still ask.
    """
    names = [item.stage for item in forecast]
    typical, most, check = 0, 0, 0
    for item in forecast[names.index(stage) :]:
        if item.stage == CHECK:
            check = max(0, item.questions - used.get(item.stage, 0))
        else:
            typical += max(0, item.typical - used.get(item.stage, 0))
            most += max(0, item.questions - used.get(item.stage, 0))
    return int(min(typical, budget_left)) + check, int(min(most, budget_left)) + check


def best_so_far(ledger: Ledger) -> tuple[LayerSet, Score] | None:
    """The highest score on the most questions so far; a strategy may rank otherwise, as `ga` does by expectation."""
    for part in (FINAL, FULL, *reversed(ledger.questions.rungs)):
        best = next((layers for layers in ledger.ranked(ledger.known, part) if layers != LayerSet(())), None)
        score = None if best is None else ledger.score(best, part)
        if best is not None and score is not None:
            return best, score
    return None


class Progress:
    """Counts question-evaluations as they come and tells of them.

    Args:
        forecast: by stage, from which the time left follows.
        outcome: of the running search, read for the best set so far.
        stream: a terminal for a bar, or None for plain lines alone.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        forecast: Sequence[StageForecast],
        outcome: Outcome,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forecast, self._outcome, self._clock = forecast, outcome, clock
        self._bar = _bar(sum(stage.typical for stage in forecast), stream)
        self.done = 0
        """Question-evaluations that were answered."""
        self.best: tuple[LayerSet, Score] | None = None
        """`best_so_far`, as of the last request that was answered."""
        self._in_request = 0
        self._stage = ""
        self._told = clock()

    def begin(self, request: Request) -> None:
        """A request goes to the evaluator."""
        self._in_request = 0
        self._told = self._clock()
        if request.stage != self._stage:
            self._stage = request.stage
            _log.info(
                "begins %s; %s",
                _spell_request(request),
                self._spell_done(*self._left(request)),
            )
        if self._bar is not None:
            self._bar.set_description(f"{request.stage}, {request.label}")

    def advance(self, request: Request) -> None:
        """One set of the request has its answers."""
        self._in_request += 1
        self.done += len(request.questions)
        if self._bar is not None:
            self._bar.update(len(request.questions))
        if self._clock() - self._told > _QUIET_S:
            self._told = self._clock()
            in_all = _count(len(request.batch), "set")
            _log.info("%s, %s: %d of %s", request.stage, request.label, self._in_request, in_all)

    def end(self, request: Request, seconds: float, seconds_in_all: float) -> None:
        """The request is answered; the times are of evaluations, from the journal where they are older."""
        self.best = best_so_far(self._outcome.ledger)
        left, left_at_most = self._left(request)
        if self._bar is not None:
            self._bar.total = self.done + left
            self._bar.refresh()
        pace = seconds_in_all / self.done if self.done else 0.0
        _log.info(
            "%s in %.1f s; best: %s; %s%s",
            _spell_request(request),
            seconds,
            self._spell_best(),
            self._spell_done(left, left_at_most),
            f"; about {_up_to(left, left_at_most, lambda n: spell_seconds(pace * n), ' left')}" if left_at_most else "",
        )

    def values(self, request: Request, seconds: float) -> Values:
        """What holds after a request that took `seconds`, for `genetic_algorithm.observers`."""
        ledger, found = self._outcome.ledger, self.best
        return {
            "stage": request.stage,
            "question_evaluations": self.done,
            "layer_sets": len(ledger.known),
            "failures": len(ledger.failed),
            "questions_per_second": request.size / seconds if seconds else None,
            "best_layers": None if found is None else str(found[0]),
            "best_score": None if found is None else found[1].value,
            "best_standard_error": None if found is None else found[1].value_error,
            "best_questions": None if found is None else found[1].asked,
        }

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _left(self, request: Request) -> tuple[int, int]:
        used = {stage: usage.questions for stage, usage in self._outcome.usage.items()}
        return remaining(self._forecast, used, request.stage, self._outcome.ledger.left)

    def _spell_done(self, left: int, left_at_most: int) -> str:
        if not left_at_most:
            return f"{self.done:,} of {self.done:,} done"
        return f"{self.done:,} of about {_up_to(left, left_at_most, lambda n: f'{self.done + n:,}', ' done')}"

    def _spell_best(self) -> str:
        if self.best is None:
            return "not known yet"
        layers, score = self.best
        questions = _count(score.asked, "question")
        named = f"layer{'' if len(layers) == 1 else 's'} {layers}"
        return f"{named}, {spell_score(self._outcome.ledger, score)} ({questions}, of those asked most)"


def _spell_request(request: Request) -> str:
    sets, questions = _count(len(request.batch), "set"), _count(len(request.questions), "question")
    return f"{request.stage}, {request.label}: {sets} x {questions}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _up_to(mostly: int, at_most: int, spell: Callable[[int], str], what: str) -> str:
    """`26 s left, at most 1 min 06 s`; the second only where it says more."""
    few, many = spell(mostly), spell(at_most)
    return f"{few}{what}" if few == many else f"{few}{what}, at most {many}"


def _bar(total: int, stream: TextIO | None) -> Any:
    if stream is None:
        return None
    try:
        from tqdm import tqdm  # late: only a terminal needs it
    except ImportError:
        return None
    return tqdm(total=total, file=stream, unit="q", unit_scale=True, dynamic_ncols=True, leave=False)


class _LogFile(logging.Handler):
    """Appends each line in one unbuffered write; a full disk is an error and not a lost line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._fd, (self.format(record) + "\n").encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        super().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Console(logging.Handler):
    """Writes to stderr as it is now, above the bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm

                tqdm.write(line, file=sys.stderr)
                return
            except ImportError:  # no bar either, then
                pass
        print(line, file=sys.stderr, flush=True)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send this project's lines, and everybody's warnings, to a log file and to stderr meanwhile."""
    root, file, console = logging.getLogger(), _LogFile(path), _Console()
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S"))
    console.setFormatter(logging.Formatter("%(message)s"))
    before = {name: logging.getLogger(name).level for name in _OURS}
    for handler in (file, console):
        root.addHandler(handler)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield
    except Exception as error:  # on stderr it is told where the command ends
        ended = logging.LogRecord(_log.name, logging.ERROR, __file__, 0, f"{ENDED} {_in_words(error)}", None, None)
        with suppress(OSError):  # a full disk may be the very reason
            file.emit(ended)
        raise
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        for handler in (file, console):
            root.removeHandler(handler)
            handler.close()
