"""Reads files that grow: at each look only what was appended since the last one."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections import deque
from functools import lru_cache
from pathlib import Path

_MOST = 1e12  # questions or seconds of a line; more is damage
_WINDOW_S = 60.0  # of answering, over which the pace is taken
_LINE = re.compile(r"\S+ \S+ (?P<level>[A-Z]) (?P<text>.*)")
_REQUEST = re.compile(r"(?:begins )?(?P<stage>[^:,]+), (?P<label>[^:]+): \d+ (?:sets? x \d+ question|of \d+ set)")
_BEST = re.compile(r"; best:? (?P<best>.+?);(?:.* (?P<left>about [^;]* left.*)$)?")  # at the end, nothing is left
_ABOUT = re.compile(r"; [\d,]+ of (?:about )?(?P<about>[0-9,]{1,20}) done")
_ENDED = "the search ended by "


class Tail(ABC):
    """The complete lines of a file; a last one that is cut off waits for its end.

    Args:
        path: may not be there yet, and is read anew where it became shorter or another file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at, self._inode = 0, -1
        self.changed: float | None = None
        """When it was last written, seconds since 1970; None while it is not there."""

    def look(self) -> None:
        """Take in what was appended."""
        try:
            file = self._path.open("rb")  # anew each time: NFS shows what others wrote on opening
        except (FileNotFoundError, IsADirectoryError):
            return
        with file:
            status = os.fstat(file.fileno())
            self.changed = status.st_mtime
            if status.st_size < self._at or status.st_ino != self._inode:
                self._at, self._inode = 0, status.st_ino
                self.reset()
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._at += len(line)
                self.take(line)

    @abstractmethod
    def reset(self) -> None:
        """Forget all lines."""

    @abstractmethod
    def take(self, line: bytes) -> None:
        """Take in one line, its end included."""


class JournalTail(Tail):
    """What a journal says: how much was answered, what failed, and how fast it went of late."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reset()

    def reset(self) -> None:
        """Forget all lines."""
        self.layer_sets: set[str] = set()
        self.failed: set[str] = set()
        """Sets that could not be evaluated, and were not since."""
        self.question_evaluations = 0
        self._recent: deque[tuple[int, float]] = deque()  # questions and seconds of the last lines
        self._recent_s = 0.0

    def take(self, line: bytes) -> None:
        """Count a line; the header and damaged ones are passed over."""
        try:
            entry = json.loads(line)
            layers, is_failure = str(entry["set"]), entry["status"] == "failed"
            questions, seconds = _count(entry["questions"]), float(entry.get("seconds", 0.0))
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            return
        if not (0 < questions < _MOST and 0 <= seconds < _MOST):
            return
        if is_failure:
            self.failed.add(layers)
            return
        self.failed.discard(layers)
        self.layer_sets.add(layers)
        self.question_evaluations += questions
        self._recent.append((questions, seconds))
        self._recent_s += seconds
        while self._recent_s - self._recent[0][1] >= _WINDOW_S:
            self._recent_s -= self._recent.popleft()[1]

    @property
    def longest_wait_s(self) -> float:
        """The longest time of late between two answers."""
        return max((seconds for _, seconds in self._recent), default=0.0)

    def pace(self, quiet_s: float) -> float | None:
        """Questions per second over the last minute of answering; None while nothing is known.

        Answers come in bursts, so a silence counts only from where it is longer than those before.

        Args:
            quiet_s: since the last sign of life.
        """
        if not self._recent:
            return None
        seconds = sum(seconds for _, seconds in self._recent) + max(0.0, quiet_s - self.longest_wait_s)
        return sum(questions for questions, _ in self._recent) / seconds if seconds > 0 else None


class LogTail(Tail):
    """What the log last said of each thing; None where it has not yet."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reset()

    def reset(self) -> None:
        """Forget all lines."""
        self.stage: str | None = None
        self.label: str | None = None
        self.best: str | None = None
        self.about: int | None = None
        """Question-evaluations that the whole search takes."""
        self.left: str | None = None
        self.error: str | None = None
        """What ended the last sitting, where that was an error."""

    def take(self, line: bytes) -> None:
        """Take in one line."""
        found = _LINE.match(line.decode(errors="replace").rstrip())
        text = found["text"] if found else ""
        self.error = text.removeprefix(_ENDED) if found and found["level"] == "E" and text.startswith(_ENDED) else None
        if request := _REQUEST.match(text):
            self.stage, self.label = request["stage"], request["label"]
        if told := _BEST.search(text):
            self.best, self.left = told["best"], told["left"] or "nothing left"
        if told := _ABOUT.search(text):
            self.about = int(told["about"].replace(",", "") or 0)


@lru_cache(maxsize=64)  # thousands of lines ask the same questions
def _count(questions: str) -> int:
    """Of `0-9,250-259`, 20."""
    runs = [run.partition("-") for run in questions.split(",")]
    return sum(int(high or low) - int(low) + 1 for low, _, high in runs)
