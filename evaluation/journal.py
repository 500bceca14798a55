"""The journal: an append-only file of answers, which is a search's memory, cache and resume point.

JSON lines. The first line holds everything that shapes an answer; a run whose header differs is refused
and the field named. Then one line per (layer set, question slice): right or wrong as packed bits, margins
and divergences in float16, seconds, status and worker, under a checksum. One line is one `write`, so a
`kill -9` can tear at most the last line, which is then dropped with a warning.

Legend: n questions asked.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import socket
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from genetic_algorithm.differences import differences, told
from genetic_algorithm.evaluator import Answers
from genetic_algorithm.layer_set import LayerSet

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; one writer only, as O_APPEND alone must do
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1
_SLICES_KEPT = 512  # spelled and read once each: thousands of lines are about the same questions
_LARGEST = float(np.finfo(np.float16).max)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One journal line: answers of one layer set to one question slice, or the failure to get them.

    `questions` int64 [n] increasing, `correct` bool [n], `margin` and `divergence` float16 [n] or None;
    `failure` says why there are no answers, and is empty where there are.
    """

    layers: LayerSet
    questions: NDArray[np.int64]
    correct: NDArray[np.bool_]
    margin: NDArray[np.float16] | None
    divergence: NDArray[np.float16] | None
    seconds: float
    worker: str
    failure: str = ""


def quantised(values: NDArray[np.float32] | None) -> NDArray[np.float16] | None:
    """Round to float16, the precision of the journal; finite values stay finite."""
    if values is None:
        return None
    wide = np.asarray(values, dtype=np.float32)
    return np.where(np.isfinite(wide), np.clip(wide, -_LARGEST, _LARGEST), wide).astype(np.float16)


def spell_questions(questions: NDArray[np.int64]) -> str:
    """Spell increasing indices as runs: `0-9,250-259`."""
    return _spelled(questions.astype("<i8", copy=False).tobytes())


@lru_cache(maxsize=_SLICES_KEPT)
def _spelled(data: bytes) -> str:
    questions = np.frombuffer(data, dtype="<i8")
    starts = np.flatnonzero(np.diff(questions, prepend=-2) != 1)
    ends = np.append(starts[1:], len(questions)) - 1
    pairs = zip(questions[starts].tolist(), questions[ends].tolist(), strict=True)
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in pairs)


def parse_questions(text: str, num_questions: int = 1 << 24) -> NDArray[np.int64]:
    """Read what `spell_questions` wrote about fewer than `num_questions` questions; ValueError when it did not.

    The array cannot be written to: thousands of lines about the same questions share it.
    """
    return _parsed(text, num_questions)


@lru_cache(maxsize=_SLICES_KEPT)
def _parsed(text: str, num_questions: int) -> NDArray[np.int64]:
    pieces: list[NDArray[np.int64]] = []
    for run in text.split(","):
        low, _, high = run.partition("-")
        if int(high or low) >= num_questions:  # before memory is taken for so many
            raise ValueError(f"question {(high or low)[:20]} does not exist")
        pieces.append(np.arange(int(low), int(high or low) + 1, dtype=np.int64))
    questions = np.concatenate(pieces)
    if len(questions) == 0 or questions[0] < 0 or (np.diff(questions) < 1).any():
        raise ValueError("its questions are not in increasing order")
    questions.flags.writeable = False
    return questions


def encode(record: Record) -> bytes:
    """One journal line, newline included."""
    fields: dict[str, Any] = {
        "set": str(record.layers),
        "questions": spell_questions(record.questions),
        "status": "failed" if record.failure else "ok",
        "bits": None if record.failure else _text(np.packbits(record.correct)),
        "margin": None if record.margin is None else _text(record.margin.astype("<f2")),
        "divergence": None if record.divergence is None else _text(record.divergence.astype("<f2")),
        "seconds": round(record.seconds, 6),
        "worker": record.worker,
    }
    if record.failure:
        fields["failure"] = record.failure
    line = _line(fields)
    return line[:-2] + b',"crc":"%08x"}\n' % zlib.crc32(line)


def decode(fields: Any, num_questions: int) -> Record:
    """Read one parsed line.

    Raises:
        ValueError: if the line is damaged; the message says how.
    """
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    claimed = fields.pop("crc", None)
    if claimed != _checksum(fields):
        raise ValueError("its checksum does not match")
    try:
        layers = LayerSet.parse(fields["set"])
        questions = parse_questions(fields["questions"], num_questions)
        failure = " ".join(fields["failure"].split()) if fields["status"] == "failed" else ""
        seconds, worker = float(fields["seconds"]), str(fields["worker"])
        n = len(questions)
        if not 0 <= seconds < math.inf:
            raise ValueError(f"it says that it took {seconds} seconds")
        if failure:
            return Record(layers, questions, np.zeros(0, np.bool_), None, None, seconds, worker, failure)
        packed = np.frombuffer(base64.b64decode(fields["bits"], validate=True), dtype=np.uint8)
        if len(packed) != (n + 7) // 8:
            raise ValueError(f"it has {len(packed)} bytes of answers for {n} questions")
        correct = np.unpackbits(packed, count=n).astype(np.bool_)
        margin, divergence = (_halves(fields[name], n) for name in ("margin", "divergence"))
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it lacks a field or has one of the wrong type ({error})") from error
    return Record(layers, questions, correct, margin, divergence, seconds, worker)


class Journal:
    """Answers on disk, safe with several writers.

    Args:
        path: the file; it is created with its header when it is missing or empty.
        header: JSON values; everything that shapes an answer.
        num_questions: how many questions there are; lines about others are damaged.

    Raises:
        EvaluationError: if the file is not a journal, or is one of another configuration.
        OSError: if it cannot be read or written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], num_questions: int) -> None:
        self.path = path
        self.num_questions = num_questions
        self._header: dict[str, Any] = json.loads(json.dumps(dict(header)))  # as a reader will see it
        self._records: dict[LayerSet, list[Record]] = {}
        self._failures: dict[LayerSet, list[Record]] = {}
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._end = 0  # bytes read so far, always just after a newline
        self._lines = 0
        with self._locked(os.O_CREAT) as (fd, alone):
            self._read_whole_lines(fd, alone)
            if self._lines == 0:
                self._append(fd, alone, _line({"journal": _FORMAT, "header": self._header}))

    @property
    def layer_sets(self) -> tuple[LayerSet, ...]:
        """Every set with at least one answer, in the order first written."""
        return tuple(self._records)

    def example(self, but: Container[LayerSet] = ()) -> Record | None:
        """A line with answers of a set that is not in `but`, None while there is none."""
        return next((records[0] for layers, records in self._records.items() if layers not in but), None)

    def refresh(self) -> None:
        """Read what other writers have appended since."""
        with self._locked() as (fd, _):
            self._read_tail(fd)

    def covering(self, layers: LayerSet, questions: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Answers, float]:
        """What is known of one set on some questions.

        Returns:
            Which questions are known, bool [n]; the answers [n], meaningful where known; and the seconds
            those answers took. Where a question was answered twice, the line written first counts.
        """
        if layers not in self._records:  # as most sets that are asked for the first time, thousands of them at once
            n = len(questions)
            return np.zeros(n, np.bool_), Answers(np.zeros(n, np.bool_)), 0.0
        known = np.zeros(self.num_questions, np.int8)  # bit 1: answer, bit 2: margin, bit 4: divergence
        correct = np.zeros(self.num_questions, np.bool_)
        margin = np.full(self.num_questions, np.nan, np.float32)
        divergence = np.full(self.num_questions, np.nan, np.float32)
        asked = np.zeros(self.num_questions, np.bool_)
        asked[questions] = True
        seconds = 0.0
        for record in reversed(self._records[layers]):
            at = record.questions
            known[at] = 1 | (2 * (record.margin is not None)) | (4 * (record.divergence is not None))
            correct[at] = record.correct
            margin[at] = np.nan if record.margin is None else record.margin
            divergence[at] = np.nan if record.divergence is None else record.divergence
            seconds += record.seconds * float(asked[at].mean())
        known, some = known[questions], len(questions) > 0
        return (
            (known & 1).astype(np.bool_),
            Answers(
                correct[questions],
                margin[questions] if some and bool((known & 2).all()) else None,
                divergence[questions] if some and bool((known & 4).all()) else None,
            ),
            seconds,
        )

    def failure(self, layers: LayerSet, questions: NDArray[np.int64]) -> str:
        """Why a set could not be evaluated on some of these questions; empty where no line says so."""
        failures = self._failures.get(layers, ())
        return next((record.failure for record in failures if np.isin(record.questions, questions).any()), "")

    def append(self, layers: LayerSet, questions: NDArray[np.int64], answers: Answers, seconds: float) -> None:
        """Write answers [n] to increasing `questions` [n]; they are on disk when this returns."""
        self._write(
            Record(
                layers,
                questions,
                np.array(answers.correct, dtype=np.bool_),
                quantised(answers.margin),
                quantised(answers.divergence),
                seconds,
                self._worker,
            )
        )

    def append_failure(self, layers: LayerSet, questions: NDArray[np.int64], reason: str, seconds: float) -> None:
        """Write that a set could not be evaluated on these questions."""
        nothing = np.zeros(0, np.bool_)
        reason = " ".join(reason.split())[:500] or "no reason given"
        self._write(Record(layers, questions, nothing, None, None, seconds, self._worker, reason))

    def _write(self, record: Record) -> None:
        line = encode(record)
        record = replace(
            record,
            questions=parse_questions(spell_questions(record.questions), self.num_questions),
            seconds=round(record.seconds, 6),
        )
        with self._locked() as (fd, alone):
            self._read_whole_lines(fd, alone)
            self._append(fd, alone, line)
            if os.fstat(fd).st_size == self._end + len(line):  # this line and nothing else: no need to read it
                self._end += len(line)
                self._lines += 1
                self._keep(record)
            else:
                self._read_tail(fd)

    def _read_whole_lines(self, fd: int, alone: bool) -> None:
        """What others have written, and drop what one of them could not finish, where that is safe."""
        self._read_tail(fd)
        torn = os.fstat(fd).st_size - self._end
        if torn and alone:  # whoever wrote it is dead: writers hold the lock while they write
            _log.warning(
                "%s: the last line was cut off (%d bytes) and is dropped; its answers are asked again", self.path, torn
            )
            os.ftruncate(fd, self._end)

    def _append(self, fd: int, alone: bool, line: bytes) -> None:
        """Append in one write; a full disk leaves the file as it was, where that is safe."""
        size = os.fstat(fd).st_size
        if size > self._end:  # a fragment that could not be cut off: end it, so that it harms only itself
            line = b"\n" + line
        written = 0
        try:
            while written < len(line):  # a second turn only after a short write, to learn its reason
                written += os.write(fd, line[written:])
        except OSError as error:
            if written and alone:
                os.ftruncate(fd, size)
            raise OSError(error.errno, os.strerror(error.errno or 0), str(self.path)) from error

    def _read_tail(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        if size < self._end:
            raise EvaluationError(
                f"{self.path} became shorter while in use; nothing else may edit it: start the run again"
            )
        pieces = []
        at = self._end
        while at < size and (piece := os.pread(fd, size - at, at)):
            pieces.append(piece)
            at += len(piece)
        complete, newline, _ = b"".join(pieces).rpartition(b"\n")
        if newline:
            for line in complete.split(b"\n"):
                self._lines += 1
                self._take(line)
            self._end += len(complete) + 1

    def _take(self, line: bytes) -> None:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if self._lines == 1 or (isinstance(fields, dict) and "journal" in fields):
            self._check_header(fields)
            return
        try:
            record = decode(fields, self.num_questions)
        except ValueError as error:
            _log.warning(
                "%s: line %d is damaged (%s) and is skipped; its answers are asked again",
                self.path,
                self._lines,
                error,
            )
            return
        self._keep(record)

    def _keep(self, record: Record) -> None:
        kept = self._failures if record.failure else self._records
        kept.setdefault(record.layers, []).append(record)

    def _check_header(self, fields: Any) -> None:
        if not isinstance(fields, dict) or not isinstance(fields.get("header"), dict):
            raise EvaluationError(
                f"{self.path} is not a journal of answers (line {self._lines} is no header); "
                "choose another output folder, or move the file away"
            )
        if fields.get("journal") != _FORMAT:
            raise EvaluationError(
                f"{self.path} is a journal of format {fields.get('journal')!r}, this version writes {_FORMAT}; "
                "choose another output folder"
            )
        differing = ", ".join(told(*item) for item in differences(fields["header"], self._header))
        if differing:
            raise EvaluationError(
                f"{self.path} holds answers of another configuration: {differing}; set it back, or choose "
                "another output folder"
            )

    @contextmanager
    def _locked(self, flags: int = 0) -> Iterator[tuple[int, bool]]:
        """The open file, and whether no other writer can be in it.

        Opened anew each time: NFS shows other writers' lines on opening.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | flags, 0o666)
        try:
            alone = False
            if fcntl is not None:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX)
                    alone = True
                except OSError:  # a file system without locks: O_APPEND keeps whole lines whole
                    _log.debug("%s: no locks on this file system", self.path)
            yield fd, alone
        finally:
            os.close(fd)  # gives the lock back


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _checksum(fields: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(_line(fields)):08x}"


def _text(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _halves(text: str | None, n: int) -> NDArray[np.float16] | None:
    if text is None:
        return None
    values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2")
    if len(values) != n:
        raise ValueError(f"it has {len(values)} margins or divergences for {n} questions")
    return values.astype(np.float16)
