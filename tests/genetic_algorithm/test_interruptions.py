from __future__ import annotations

import os
import re
import resource
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.genetic_algorithm.conftest import CommandLine

pytestmark = pytest.mark.usefixtures("no_drawings")
SLOW = {"SIM_SLEEP_S": "0.004"}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _wait_for_lines(process: subprocess.Popen[str], journal: Path, lines: int) -> None:
    until = time.monotonic() + 30
    while process.poll() is None and _lines(journal) < lines:
        assert time.monotonic() < until, "the search wrote nothing for 30 s"
        time.sleep(0.005)


KILLS = 20
LONGER = ("--population", "30", "--generations", "8", "--max-passes", "40")  # 160 answered sets and more


@pytest.mark.parametrize("strategy", ["ga", "ga-original"])
def test_killed_at_random_moments_it_comes_to_the_same_result(command_line: CommandLine, strategy: str) -> None:
    flags = ("--strategy", strategy, *LONGER)
    assert command_line.run(*flags, out="undisturbed").returncode == 0
    calls, journal = command_line.folder / "calls", command_line.folder / "run" / "journal.jsonl"
    rng = np.random.default_rng(0)
    kills, status = 0, None
    while status is None:
        process = command_line.fork(*flags, SIM_CALLS=str(calls), **SLOW)
        status = None if kills < KILLS else os.waitpid(process, 0)[1]
        wanted = _lines(journal) + int(rng.integers(0, 4))
        while status is None and _lines(journal) < wanted:
            time.sleep(0.002)
            finished, found = os.waitpid(process, os.WNOHANG)
            status = found if finished else None
        if status is None:
            time.sleep(float(rng.uniform(0, 0.02)))
            os.kill(process, signal.SIGKILL)
            _, found = os.waitpid(process, 0)
            status = None if os.WIFSIGNALED(found) else found
            kills += 1
    output = (command_line.folder / "output").read_text()
    assert os.waitstatus_to_exitcode(status) == 0, output
    assert kills == KILLS
    assert command_line.result() == command_line.result("undisturbed")
    repeated = Counter(calls.read_text().splitlines())
    assert sum(repeated.values()) - len(repeated) <= kills  # the evaluation in flight, at most
    assert output.count('"layers": [') == 1


def test_a_set_that_failed_once_stays_failed_unless_told_otherwise(command_line: CommandLine) -> None:
    bad = "0+2+9,2,0+1+2+9"
    assert command_line.run(out="never").returncode == 0
    assert command_line.run(out="always", SIM_BROKEN=bad).returncode == 0
    assert command_line.result("always") != command_line.result("never")
    first = command_line.run(SIM_BROKEN=bad)
    assert first.returncode == 0
    assert re.search(r"\n\d of \d+ layer sets could not be evaluated and were left out: 2\b", first.stderr)
    result = next((command_line.folder / "run").glob("search_result_*.json"))
    result.unlink()  # as if it had been killed before its end
    again = command_line.run()
    assert again.returncode == 0
    assert (
        "2 could not be evaluated in an earlier sitting (RuntimeError: 2 does not fit): it is left out" in again.stderr
    )
    assert command_line.result() == command_line.result("always")
    result.unlink()
    assert command_line.run("--retry-failed").returncode == 0
    assert command_line.result() == command_line.result("never")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_it_tells_the_command_that_resumes(
    command_line: CommandLine, number: int, code: int
) -> None:
    assert command_line.run(out="undisturbed").returncode == 0
    process = command_line.start(command_line.command(), **SLOW)
    _wait_for_lines(process, command_line.folder / "run" / "journal.jsonl", 15)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert stdout == ""
    last = stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert "nothing is lost; resume with: " in last
    resumed = command_line.start(shlex.split(last.partition("resume with: ")[2]))
    _, stderr = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, stderr
    assert command_line.result() == command_line.result("undisturbed")


def test_told_to_stop_again_and_again_it_stops_once(command_line: CommandLine) -> None:
    process = command_line.start(command_line.command(), **SLOW)
    _wait_for_lines(process, command_line.folder / "run" / "journal.jsonl", 15)
    while process.poll() is None:  # as SLURM does, which tells every process, and the shell that passes it on
        process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 143
    assert stderr.splitlines()[-1].startswith("run_search: stopped; nothing is lost; resume with: ")
    assert "Traceback" not in stderr


def test_stopped_before_it_began_it_says_that_nothing_was_written(command_line: CommandLine) -> None:
    (command_line.folder / "slow.py").write_text(
        "import time, pathlib\ndef make():\n    pathlib.Path('here').touch()\n    time.sleep(30)\n"
    )
    process = command_line.start(command_line.command("--evaluator", "slow:make"))
    while process.poll() is None and not (command_line.folder / "here").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "run_search: stopped; nothing was written\n"
    assert not (command_line.folder / "run").exists()


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file can have more bytes, as where a disk is full."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize("kilobytes", [0, 2, 9, 16])
def test_a_disk_that_is_full_is_one_line_and_the_run_resumes(command_line: CommandLine, kilobytes: int) -> None:
    assert command_line.run(out="undisturbed").returncode == 0

    full = command_line.run(inside=small_files(1024 * kilobytes))
    assert full.returncode == 1
    errors = [line for line in full.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1
    assert errors[0].startswith("run_search: error: the disk is full for ")
    assert "Traceback" not in full.stderr
    assert not list((command_line.folder / "run").glob(".*"))
    assert not list((command_line.folder / "run").glob("search_result_*"))
    done = command_line.run()
    assert done.returncode == 0, done.stderr
    assert command_line.result() == command_line.result("undisturbed")


def test_a_missing_journal_is_said_and_everything_is_asked_again(command_line: CommandLine) -> None:
    assert command_line.run().returncode == 0
    expected = command_line.result()
    folder = command_line.folder / "run"
    (folder / "journal.jsonl").unlink()
    next(folder.glob("search_result_*.json")).unlink()
    again = command_line.run()
    assert again.returncode == 0
    assert "journal.jsonl is missing: all questions are asked again" in again.stderr
    assert command_line.result() == expected
