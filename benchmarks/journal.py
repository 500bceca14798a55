#!/usr/bin/env python
"""Whether a journal keeps what it acknowledged: many writers on one file, killed at random moments.

    python benchmarks/journal.py                                  # 8 writers, 60 s, in the system's folder for such
    python benchmarks/journal.py --questions 14042 --folder DIR   # lines of all of MMLU, on another file system

Each writer tells through a pipe of every append that has returned. Random ones get SIGKILL, and others take their
places. In the end every line that was told of must be in the journal, once, with its content.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import selectors
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.entry import run_tool
from evaluation.journal import Journal, decode
from genetic_algorithm import Answers, LayerSet

HEADER = {"benchmark": "journal"}


@dataclass(slots=True)
class Writer:
    """A process, and what it told of so far: the number of the last line."""

    number: int
    process: Any
    pipe: int
    told: int = 0
    heard: bytes = b""


def main(argv: Sequence[str] | None = None) -> int:
    """Print one JSON object; 1 where a line that was told of is lost, stands there twice or is another one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seconds", type=float, default=60, help="[%(default)s]")
    parser.add_argument("--writers", type=int, default=8, help="at a time [%(default)s]")
    parser.add_argument("--kills-per-second", type=float, default=5, metavar="X", help="[%(default)s]")
    parser.add_argument("--questions", type=int, default=512, help="answers of a line [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed when [%(default)s]")
    parser.add_argument("--folder", type=Path, help="for the journal [a new one]")
    args = parser.parse_args(argv)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="journal_"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"journal_{os.getpid()}.jsonl"
    told, kills = disturb(path, args)
    found = {"writers": len(told), "kills": kills, "told": sum(told.values()), **check(path, told, args.questions)}
    print(json.dumps({**vars(args), "folder": str(folder), **found}))
    return 1 if found["lost"] or found["twice"] or found["other"] or found["damaged"] else 0


def disturb(path: Path, args: argparse.Namespace) -> tuple[dict[int, int], int]:
    """Let writers write and kill them; returns how many lines each told of, and how many were killed."""
    rng = np.random.default_rng(args.seed)
    running: list[Writer] = []
    told: dict[int, int] = {}
    kills, until = 0, time.monotonic() + args.seconds
    next_kill = time.monotonic() + rng.exponential(1 / args.kills_per_second)
    with selectors.DefaultSelector() as ears:
        while time.monotonic() < until:
            while len(running) < args.writers:
                running.append(start(path, len(told), args.questions))
                told[running[-1].number] = 0
                ears.register(running[-1].pipe, selectors.EVENT_READ, running[-1])
            for key, _ in ears.select(timeout=max(0.0, min(until, next_kill) - time.monotonic())):
                listen(key.data)
            if time.monotonic() >= next_kill:
                victim = running.pop(int(rng.integers(len(running))))
                kills += 1
                ears.unregister(victim.pipe)
                told[victim.number] = end(victim)
                next_kill = time.monotonic() + rng.exponential(1 / args.kills_per_second)
        for writer in running:
            told[writer.number] = end(writer)
    return told, kills + len(running)


def start(path: Path, number: int, questions: int) -> Writer:
    """A process that writes until it is killed."""
    ear, mouth = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=write, args=(path, number, questions, mouth))
    process.start()
    os.close(mouth)
    return Writer(number, process, ear)


def write(path: Path, number: int, questions: int, mouth: int) -> None:
    """Append lines 0, 1, ... of this writer, and tell of each."""
    journal = Journal(path, HEADER, questions)
    line = 0
    while True:
        journal.append(layers_of(number, line), np.arange(questions), answers_of(number, line, questions), 0.0)
        line += 1
        os.write(mouth, f"{line}\n".encode())


def layers_of(number: int, line: int) -> LayerSet:
    """Its own for each line."""
    return LayerSet((number, number + 1 + line))


def answers_of(number: int, line: int, questions: int) -> Answers:
    """Its own for each line."""
    margin = np.random.default_rng([number, line]).standard_normal(questions).astype(np.float16)
    return Answers(margin > 0, margin.astype(np.float32), np.abs(margin).astype(np.float32))


def listen(writer: Writer) -> bool:
    """Take what it told of; whether there may be more."""
    heard = os.read(writer.pipe, 65536)
    *lines, writer.heard = (writer.heard + heard).split(b"\n")
    if lines:
        writer.told = int(lines[-1])
    return bool(heard)


def end(writer: Writer) -> int:
    """Kill it, and take what it told of until then."""
    writer.process.kill()
    writer.process.join()
    while listen(writer):
        pass
    os.close(writer.pipe)
    return writer.told


def check(path: Path, told: dict[int, int], questions: int) -> dict[str, int]:
    """Lines of a journal: lost, twice, not as written, damaged within; and bytes that the last writer tore."""
    *lines, torn = path.read_bytes().split(b"\n")
    seen: set[tuple[int, int]] = set()
    damaged = twice = other = 0
    for text in lines[1:]:
        try:
            record = decode(json.loads(text), questions)
        except ValueError:
            damaged += 1
            continue
        number, line = record.layers.indices[0], record.layers.indices[1] - record.layers.indices[0] - 1
        twice += (number, line) in seen
        seen.add((number, line))
        expected = answers_of(number, line, questions)
        other += not (
            np.array_equal(record.correct, expected.correct) and np.array_equal(record.margin, expected.margin)
        )
    lost = sum((number, line) not in seen for number, count in told.items() for line in range(count))
    beyond = len(seen) - sum(told.values()) + lost
    return {
        "lines": len(lines) - 1,
        "lost": lost,
        "twice": twice,
        "other": other,
        "damaged": damaged,
        "written_but_not_told": beyond,
        "torn_bytes_at_the_end": len(torn),
    }


if __name__ == "__main__":
    sys.exit(run_tool("journal.py", main))
