"""How far a search is: from its lock, its journal, its log, its workers and its result."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folders import Run, RunError
from .locks import is_locked
from .results import read_result
from .spelling import spell_seconds
from .tails import JournalTail, LogTail

_QUIET_S = 120.0  # without a lock to see, a search that wrote nothing for longer counts as stopped
_STALE_S = 60.0  # workers.json is written every few seconds
_AHEAD_S = 5.0  # what a host wrote may seem to come from the future by so much before its clock is told of
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_BEST = re.compile(
    rf"(?:layers? )?(?P<layers>[0-9]{{1,9}}(?:\+[0-9]{{1,9}})*|none),? (?P<words>.*?)"
    rf"(?P<score>{_NUMBER}) \+- (?P<error>{_NUMBER}).*\((?P<n>[0-9,]{{1,11}}) question"
)


@dataclass(frozen=True)
class Best:
    """The highest score of the sets asked most so far, when over the set found; `measure` says of what it is."""

    layers: list[int]
    score: float
    standard_error: float
    questions: int
    measure: str


@dataclass(frozen=True)
class Workers:
    """Processes that answer: those alive of how many, and how many were lost since the start."""

    alive: int
    of: int
    lost: int


@dataclass(frozen=True)
class Progress:
    """How far one search is; the fields are those of --json. What is not known is None."""

    run: str
    state: str
    """`running`, `finished`, `stopped` or `failed`."""
    stage: str | None
    label: str | None
    """Of the last request in the log, within the stage."""
    best: Best | None
    question_evaluations: int
    question_evaluations_expected: int | None
    layer_sets: int
    failures: int
    """Layer sets that could not be evaluated."""
    questions_per_second: float | None
    """Over the last minute of answering; of a finished search, over all of it."""
    seconds_left: float | None
    left: str | None
    """What the log last said of it."""
    workers: Workers
    notes: list[str]
    log: str | None


class Watch:
    """Looks at one search again and again; files that grow are read once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._journal, self._log = JournalTail(run.journal), LogTail(run.log)

    def look(self, now: float | None = None) -> Progress:
        """How far it is; `now` in seconds since 1970.

        Raises:
            RunError: its result is damaged.
        """
        locked = is_locked(self.run.config)  # first: one that ends meanwhile has its result by then
        self._journal.look()
        self._log.look()
        workers = _read_workers(self.run.workers)
        result = read_result(self.run)
        now = time.time() if now is None else now
        written = [self._journal.changed, self._log.changed, None if workers is None else workers[1]]
        quiet_s = max(0.0, now - max((at for at in written if at is not None), default=0.0))
        notes: list[str] = []
        state = self._state(locked, result, quiet_s, notes)
        is_running = state == "running"
        if is_running and workers is not None and now - workers[1] > _STALE_S:
            age = spell_seconds(now - workers[1])
            notes.append(f"workers.json is {age} old, or the clock where the search runs is behind this one")
        ahead = max((at for at in written if at is not None), default=now) - now
        if is_running and ahead > _AHEAD_S:
            notes.append(f"the clock where the search runs is {spell_seconds(ahead)} ahead of this one")
        usage = {} if result is None else result.get("usage", {}).get("in_all") or {}
        done = usage.get("question_evaluations", self._journal.question_evaluations)  # without what the donor was asked
        about, pace = self._log.about, _mean_pace(usage)
        seconds_left = None if result is None else 0.0
        if is_running:
            answered = [at for at in (self._journal.changed, self._log.changed) if at is not None]
            pace = self._journal.pace(max(0.0, now - max(answered, default=now)))
            if pace and about is not None:
                seconds_left = max(0, about - done) / pace
        return Progress(
            run=str(self.run.folder),
            state=state,
            stage=self._log.stage,
            label=self._log.label,
            best=_best_told(self._log.best) if result is None else _best_found(result),
            question_evaluations=done,
            question_evaluations_expected=done if result is not None else None if about is None else max(done, about),
            layer_sets=usage.get("new_layer_sets", len(self._journal.layer_sets)),
            failures=len(self._journal.failed),
            questions_per_second=None if pace is None else round(pace, 2),
            seconds_left=None if seconds_left is None else round(seconds_left, 1),
            left=None if result is not None else self._log.left,
            workers=_count_workers(workers, is_running),
            notes=notes,
            log=str(self.run.log) if self._log.changed is not None else None,
        )

    def _state(self, locked: bool | None, result: Any, quiet_s: float, notes: list[str]) -> str:
        if result is not None:
            return "finished"
        if locked:
            return "running"
        if locked is None:
            notes.append(f"locks cannot be seen on this file system; it last wrote {spell_seconds(quiet_s)} ago")
            if quiet_s <= max(_QUIET_S, 3 * self._journal.longest_wait_s) and self._log.error is None:
                return "running"
        if self._log.error is not None:
            notes.append(self._log.error)
            return "failed"
        return "stopped"


def _read_workers(path: Path) -> tuple[dict[str, Any], float] | None:
    """The document, and when it was written; None where there is none that can be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        states = [str(worker["state"]) for worker in document["workers"]]
        written = float(document["time"])
        return ({"states": states, "lost": int(document["lost"])}, written) if math.isfinite(written) else None
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        return None


def _count_workers(workers: tuple[dict[str, Any], float] | None, is_running: bool) -> Workers:
    """Without a list, the search is one process."""
    if workers is None:
        return Workers(int(is_running), 1, 0)
    states, lost = workers[0]["states"], workers[0]["lost"]
    alive = sum(state != "lost" for state in states) if is_running else 0
    return Workers(alive, len(states), lost)


def _best_told(text: str | None) -> Best | None:
    """The best set as a line of the log spells it."""
    found = None if text is None else _BEST.match(text)
    if found is None:
        return None
    words = found["words"]
    measure = "divergence" if "divergence" in words else "weighted accuracy" if "weighted" in words else "accuracy"
    layers = [] if found["layers"] == "none" else [int(layer) for layer in found["layers"].split("+")]
    return Best(layers, float(found["score"]), float(found["error"]), int(found["n"].replace(",", "") or 0), measure)


def _best_found(result: dict[str, Any]) -> Best:
    """The leader of a result."""
    entry = result["final_results"][0]
    score, error, measure = entry["accuracy"], entry["standard_error"], "accuracy"
    if "value" in entry:
        is_divergence = result.get("search", {}).get("goal") == "kl"
        score, error = abs(entry["value"]) if is_divergence else entry["value"], entry["value_error"]
        measure = "divergence" if is_divergence else "weighted accuracy"
    return Best(list(entry["layers"]), score, error, entry["questions"], measure)


def _mean_pace(usage: dict[str, Any]) -> float | None:
    return usage["question_evaluations"] / usage["seconds"] if usage.get("seconds") else None


def look_at(watches: list[Watch]) -> list[Progress]:
    """Each search; where there are several, one that is damaged is said to be and does not hide the others.

    Raises:
        RunError: there is one, and it is damaged.
    """
    found = []
    for watch in watches:
        try:
            found.append(watch.look())
        except RunError as error:
            if len(watches) == 1:
                raise
            nothing = Progress(
                str(watch.run.folder), "failed", None, None, None, 0, None, 0, 0, None, None, None, Workers(0, 1, 0),
                [str(error)], None,
            )  # fmt: skip
            found.append(nothing)
    return found
