#!/usr/bin/env python
"""Whether a search on several hosts comes to the same result however often its parts are killed.

    python benchmarks/chaos.py                                             # the tiny pair, 50 kills
    python benchmarks/chaos.py --evaluator chaos_evaluators:simulated --kills 100     # the simulator of the tests

A search runs undisturbed in one process; then again with a driver and joined hosts, which are processes of this
machine with one worker each. At random moments of it one of these is killed with SIGKILL: a worker; the raylet (Ray's
daemon) of a host; a joined host with all that runs there; the driver. What a person or SLURM would start again is
started again. In the end results and journals must be the same. All that workers are asked is written down, too.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from chaos_evaluators import CALLS, calls_in

from evaluation.cluster.reaper import MARK
from evaluation.entry import run_tool
from evaluation.errors import EvaluationError
from evaluation.journal import decode, parse_questions

ROOT = Path(__file__).resolve().parents[1]
LABEL = "GA_CHAOS"
"""In the environment of all that one run of this file starts."""
KINDS = ("worker", "raylet", "node", "driver")


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was killed and what became of it, then one JSON object; 1 where anything differs."""
    args, search = parse(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    quiet, disturbed = args.folder / "undisturbed", args.folder / "disturbed"
    since = time.monotonic()
    run_alone(args, search, quiet)
    alone_s, since = time.monotonic() - since, time.monotonic()
    chaos = Chaos(args, search, disturbed, answers=Answered(quiet).count())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whatever ends this ends what it started
    try:
        chaos.run()
    finally:
        chaos.end()
    found = {
        "kills": dict(chaos.kills),
        "driver_starts": chaos.starts,
        "driver_ended_by_itself": chaos.own_ends,
        "seconds_alone": round(alone_s, 1),
        "seconds": round(time.monotonic() - since, 1),
        **compare(quiet, disturbed),
        **extra_work(quiet, disturbed),
        "processes_left": len(list(chaos.processes())),
    }
    for name, value in found.items():
        print(f"{name}: {value}")
    print(json.dumps(found))
    made = sum(chaos.kills.values())
    if made < args.kills:
        print(f"the search ended after {made} of {args.kills} kills; take a longer one", file=sys.stderr)
    is_sound = found["same_result"] and not any(found[name] for name in ("lost", "twice", "other_answers", "damaged"))
    return 0 if is_sound and made == args.kills and not found["processes_left"] else 1


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and those of the search."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options go to the search, such as --preset tiny --max-passes 16.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--kills", type=int, default=50, help="[%(default)s]")
    add("--seed", type=int, default=0, help="of what is killed when [%(default)s]")
    add("--hosts", type=int, default=2, help="that join the driver's [%(default)s]")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what may be killed [all]")
    text = "a kill follows up to so many seconds after the answer drawn for it [%(default)s]"
    add("--delay", type=float, default=3.0, metavar="S", help=text)
    add("--evaluator", default="chaos_evaluators:tiny", metavar="MODULE:FACTORY", help="[%(default)s]")
    add("--folder", type=Path, help="for both runs; an undisturbed one that is there is taken [a new one]")
    add("--listen", default=own_address(), help="address of the driver [%(default)s]")
    args, search = parser.parse_known_args(argv)
    if args.kills < 0 or args.hosts < 1:
        parser.error(f"--kills {args.kills} --hosts {args.hosts}: no kills and one host are the least")
    args.folder = (args.folder or Path(tempfile.mkdtemp(prefix="chaos_"))).absolute()
    return args, search or ["--preset", "tiny", "--max-passes", "16"]


def own_address() -> str:
    """The first of this machine at which others reach it."""
    addresses = (each for interface in psutil.net_if_addrs().values() for each in interface)
    numbers = (each.address for each in addresses if each.family == socket.AF_INET)
    return next((number for number in numbers if not number.startswith("127.")), "127.0.0.1")


def command(args: argparse.Namespace, folder: Path) -> list[str]:
    """A search."""
    module = [sys.executable, "-m", "genetic_algorithm.run_search"]
    return [*module, "--evaluator", args.evaluator, "--output-dir", str(folder)]


def environment(calls: Path) -> dict[str, str]:
    """Of a search whose evaluator writes down what it is asked."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    return {**os.environ, "PYTHONPATH": paths, CALLS: str(calls), "OMP_WAIT_POLICY": "PASSIVE"}


def run_alone(args: argparse.Namespace, search: Sequence[str], folder: Path) -> None:
    """In one process, to the end."""
    done = subprocess.run(
        [*command(args, folder), *search],
        env=environment(calls_of(folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EvaluationError(f"the undisturbed search failed: {done.stderr.strip().splitlines()[-1]}")


def calls_of(folder: Path) -> Path:
    """The file in which the workers of a run write what they are asked."""
    return folder.with_name(f"{folder.name}.calls")


class Answered:
    """How many question-evaluations are in the journal of a run, which grows."""

    def __init__(self, folder: Path) -> None:
        self._path, self._end, self._count = folder / "journal.jsonl", 0, 0

    def count(self) -> int:
        """Up to its last whole line."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._end)
                whole = file.read().rpartition(b"\n")[0].splitlines(keepends=True)
            self._end += sum(map(len, whole)) + (len(whole) > 0)
            self._count += sum(map(_questions_in, whole))
        return self._count


def _questions_in(line: bytes) -> int:
    """Of a journal line; none in its header, nor in what is damaged."""
    try:
        return len(parse_questions(json.loads(line)["questions"]))
    except (ValueError, KeyError):
        return 0


@dataclass
class Chaos:
    """A search and what is killed of it."""

    args: argparse.Namespace
    search: Sequence[str]
    folder: Path
    answers: int
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    own_ends: int = 0
    label: str = field(default_factory=lambda: secrets.token_hex(8))
    driver: subprocess.Popen[bytes] | None = None
    hosts: list[subprocess.Popen[bytes]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    answered: Answered = field(init=False)

    def __post_init__(self) -> None:
        self.answered = Answered(self.folder)

    def run(self) -> None:
        """To the end of the search; raises EvaluationError where the driver fails by itself."""
        rng = np.random.default_rng(self.args.seed)
        due = sorted(rng.integers(0, self.answers, self.args.kills).tolist())
        while True:
            if self.is_over():
                self.say("the search is over")
                return
            self.keep_up()
            if due and self.answered.count() >= due[0]:
                time.sleep(float(rng.uniform(0, self.args.delay)))
                if self.kill(rng):
                    due.pop(0)
            time.sleep(0.05)

    def keep_up(self) -> None:
        """Start the driver and the hosts where they do not run."""
        if self.driver is None or self.driver.poll() is not None:
            if self.driver is not None and self.driver.returncode != -signal.SIGKILL:
                self.own_ends += 1
                self.say(f"the driver ended by itself with {self.driver.returncode}")
                if self.own_ends > self.args.kills:
                    raise EvaluationError(f"the driver does not come up; see {self.folder}.log")
            self.starts += 1
            self.driver = self.start("--cpu-workers", "1", "--listen", self.args.listen, *self.search)
        self.hosts = [host for host in self.hosts if host.poll() is None]
        while len(self.hosts) < self.args.hosts:
            self.hosts.append(self.start("--cpu-workers", "1", "--join"))

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """The driver or a host."""
        with self.folder.with_name(f"{self.folder.name}.log").open("ab") as log:
            return subprocess.Popen(
                [*command(self.args, self.folder), *options],
                env={**environment(calls_of(self.folder)), LABEL: self.label},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def is_over(self) -> bool:
        """Whether there is a result."""
        return self.driver is not None and self.driver.poll() == 0 and bool(list(self.folder.glob("search_result_*")))

    def kill(self, rng: np.random.Generator) -> bool:
        """One of what runs; whether there was any of the kind drawn."""
        kind = str(rng.choice(list(self.args.kinds)))
        targets = self.targets(kind)
        if not targets:
            return False
        chosen = targets[int(rng.integers(len(targets)))]
        for process in chosen:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.kills[kind] += 1
        self.say(
            f"kill {sum(self.kills.values())}: {kind} ({len(chosen)} processes), {self.answered.count():,} answers"
        )
        if kind == "driver" and self.driver is not None:
            self.driver.wait()
        return True

    def targets(self, kind: str) -> list[list[psutil.Process]]:
        """Processes to be killed together, for each that is there."""
        if kind == "driver":
            return [] if self.driver is None or self.driver.poll() is not None else [[psutil.Process(self.driver.pid)]]
        running = list(self.processes())
        raylets = [p for p, words, _ in running if Path(words[0]).name == "raylet"]
        if kind == "raylet":
            return [[raylet] for raylet in raylets]
        if kind == "worker":
            parents = {raylet.pid for raylet in raylets}
            workers = [p for p, words, _ in running if words[0].startswith("ray::RayWorker")]
            return [[worker] for worker in workers if parent_of(worker) in parents]
        marks = {parent_of(p): mark for p, words, mark in running if mark and "ray.scripts.scripts" in " ".join(words)}
        return [
            [psutil.Process(host.pid), *(p for p, _, mark in running if mark == marks[host.pid])]
            for host in self.hosts
            if host.pid in marks and host.poll() is None
        ]

    def processes(self) -> Iterator[tuple[psutil.Process, list[str], str]]:
        """All that run of this search, with their command lines and the marks of their clusters."""
        for process in psutil.process_iter():
            try:
                words, names = process.cmdline(), process.environ()
            except psutil.Error:
                continue
            if words and names.get(LABEL) == self.label:
                yield process, words, names.get(MARK, "")

    def say(self, text: str) -> None:
        """Print with the time."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def end(self) -> None:
        """Hosts leave by themselves when the search is over; what does not is killed in the end."""
        until = time.monotonic() + 30
        while self.is_over() and time.monotonic() < until and any(host.poll() is None for host in self.hosts):
            time.sleep(0.1)
        for process in (self.driver, *self.hosts):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
        while time.monotonic() < until and any(True for _ in self.processes()):
            time.sleep(0.2)


def parent_of(process: psutil.Process) -> int:
    """0 where it is gone."""
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def journal_lines(folder: Path) -> list[bytes]:
    """The header apart."""
    return (folder / "journal.jsonl").read_bytes().split(b"\n")[1:-1]


def result_in(folder: Path) -> dict[str, Any]:
    """What must not depend on how often a run was stopped."""
    (path,) = folder.glob("search_result_*.json")
    document = json.loads(path.read_text())
    for stage in document["usage"].values():
        del stage["seconds"]
    return {name: value for name, value in document.items() if name not in ("timestamp", "versions")}


def compare(quiet: Path, disturbed: Path) -> dict[str, Any]:
    """Results, and journals answer by answer."""
    expected, _, _ = answers_in(quiet)
    found, twice, damaged = answers_in(disturbed)
    common = expected.keys() & found.keys()
    differing = {
        name: sum(expected[key][place] != found[key][place] for key in common)
        for place, name in enumerate(("correct", "margin", "divergence"))
    }
    theirs, ours = result_in(quiet), result_in(disturbed)
    return {
        "same_result": theirs == ours,
        "differs_in": [name for name in theirs if theirs[name] != ours.get(name)],
        "answers": len(found),
        "lost": len(expected) - len(common),
        "besides": len(found) - len(common),
        "twice": twice,
        "damaged": damaged,
        "other_answers": sum(differing.values()),
        "other_answers_by_kind": differing,
    }


def answers_in(folder: Path) -> tuple[dict[tuple[str, int], tuple[Any, ...]], int, int]:
    """Of each set to each question: right or wrong, margin, divergence; how many stand there twice; damaged lines."""
    found: dict[tuple[str, int], tuple[Any, ...]] = {}
    twice = damaged = 0
    for line in journal_lines(folder):
        try:
            record = decode(json.loads(line), sys.maxsize)
        except ValueError:
            damaged += 1
            continue
        n = len(record.questions)
        signals = [[None] * n if values is None else values.tolist() for values in (record.margin, record.divergence)]
        for question, *answer in zip(record.questions.tolist(), record.correct.tolist(), *signals, strict=True):
            twice += (str(record.layers), question) in found
            found.setdefault((str(record.layers), question), tuple(answer))
    return found, twice, damaged


def extra_work(quiet: Path, disturbed: Path) -> dict[str, Any]:
    """Question-evaluations beyond those of the undisturbed run: asked of workers in parts, begun, ended."""
    needed, found = calls_in(calls_of(quiet)).ended, calls_in(calls_of(disturbed))
    return {
        "needed": needed,
        **found._asdict(),
        **{f"extra_{name}": round(count / needed - 1, 4) for name, count in found._asdict().items()},
    }


if __name__ == "__main__":
    sys.exit(run_tool("chaos.py", main))
