"""What becomes of a job that SLURM warns, preempts or cancels; scontrol is a stand-in that tells of the job."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import without_settings, write_program
from .test_signals import PATIENCE_S, slow_python
from .test_slurm_jobs import job

__all__ = ["slow_python"]
RUNS, PREEMPTED = "JobState=RUNNING PreemptTime=None", "JobState=RUNNING PreemptTime=2026-01-01T10:00:00"
Started = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def started(clone: Path, slow_python: Path, tmp_path: Path) -> Started:
    """Start search.sbatch as SLURM would; scontrol says `facts` and writes down what it is told to do."""

    def start(facts: str, **environment: str) -> subprocess.Popen[str]:
        code = f'[ "$1" = show ] && echo "{facts}" || echo "$*" >>"{tmp_path}/scontrol.log"'
        doubles = write_program(tmp_path / "doubles" / "scontrol", f"#!/bin/sh\n{code}\n").parent
        more = job(clone, PYTHON=str(slow_python), PATH=f"{doubles}:{os.environ['PATH']}") | environment
        return subprocess.Popen(
            ["bash", clone / "scripts" / "slurm" / "search.sbatch", "--output-dir", tmp_path / "run"],
            cwd=tmp_path,
            env=without_settings() | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def end_of(process: subprocess.Popen[str], number: signal.Signals, ready: Callable[[], Any]) -> tuple[int, str]:
    """Send a signal once it is ready; its exit code and last line."""
    until = time.monotonic() + PATIENCE_S
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S / 2)
    return process.returncode, (said.splitlines() or [""])[-1]


def told_scontrol(tmp_path: Path) -> str:
    log = tmp_path / "scontrol.log"
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize(
    ("facts", "number", "code", "last", "told"),
    [
        (PREEMPTED, signal.SIGTERM, 0, "to the queue again; it goes on from here", "requeue 7\n"),
        (PREEMPTED, signal.SIGUSR1, 0, "to the queue again; it goes on from here", "requeue 7\n"),
        (RUNS, signal.SIGUSR1, 1, "before the warning; ask for more time (--time). It is not requeued", ""),
        (RUNS, signal.SIGTERM, 143, "", ""),
    ],
)
def test_only_a_time_that_is_too_short_keeps_a_job_that_did_nothing_from_the_queue(
    facts: str, number: signal.Signals, code: int, last: str, told: str, started: Started, tmp_path: Path
) -> None:
    process = started(facts)
    ended = end_of(process, number, lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    assert ended[0] == code
    assert ended[1].endswith(last)
    assert told_scontrol(tmp_path) == told
    assert (tmp_path / "stopped").exists()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="reads /proc, which only Linux has")
@pytest.mark.parametrize(
    ("facts", "number", "code", "told"),
    [
        (RUNS, signal.SIGUSR1, 0, "requeue 7\n"),
        (PREEMPTED, signal.SIGTERM, 0, "requeue 7\n"),
        (RUNS, signal.SIGTERM, 143, ""),
    ],
)
def test_a_signal_while_it_waits_for_the_run_of_a_lost_node(
    facts: str, number: signal.Signals, code: int, told: str, started: Started, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    config = tmp_path / "run" / "config.json"
    config.touch()
    with config.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = started(facts, SLURM_RESTART_COUNT="1")
        inode = f":{config.stat().st_ino} "
        locks = Path("/proc/locks")
        ended = end_of(
            process, number, lambda: any("->" in line and inode in line for line in locks.read_text().splitlines())
        )
    assert ended[0] == code
    assert told_scontrol(tmp_path) == told
    assert not (tmp_path / "pid").exists()  # no search was begun


def test_the_lock_is_asked_for_as_nfs_wants_it(started: Started, tmp_path: Path) -> None:
    """On a descriptor that can be written."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    write_program(tmp_path / "doubles" / "flock", f'#!/bin/sh\necho >&"$3" && echo "$*" >"{tmp_path}/asked"\n')
    process = started(RUNS, SLURM_RESTART_COUNT="1")
    end_of(process, signal.SIGTERM, (tmp_path / "pid").exists)
    assert (tmp_path / "asked").read_text() == "--wait 600 8\n"
