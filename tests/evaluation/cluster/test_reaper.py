from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.cluster import reaper
from tests.evaluation.cluster.threads import wait_for

ROOT = Path(__file__).resolve().parents[3]
DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
from evaluation.cluster import reaper
mark, folder = sys.argv[1], Path(sys.argv[2])
watch = reaper.start(mark, folder)
marked = {**os.environ, reaper.MARK: mark}
tree = "sleep 300 & (trap '' TERM HUP; setsid sleep 300 & exec sleep 300) & wait"
subprocess.Popen(["sh", "-c", tree], env=marked)
print(watch.pid, flush=True)
if sys.argv[3] == "close":
    sys.stdin.readline()
    watch.stdin.close()
    watch.wait()
else:
    time.sleep(300)
"""


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "300"], env={**os.environ, reaper.MARK: "another"})
    yield process
    process.kill()
    process.wait()


def start(mark: str, folder: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    folder.mkdir()
    (folder / "socket").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, mark, str(folder), how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    watch = int(process.stdout.readline())
    wait_for(lambda: len(list(reaper.marked(mark))) >= 4 and ignores_signals(watch))
    return process, watch


def ignores_signals(process: int) -> bool:
    """Whether its module has begun to run."""
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigIgn"))
    return bool(int(line.split()[1], 16) & 1 << signal.SIGTERM - 1)


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_all_that_a_killed_driver_started_ends_and_others_live(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    folder, mark = tmp_path / "a folder", f"killed{os.getpid()}"
    driver, watch = start(mark, folder, "sleep")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(watch, number)  # as a terminal sends them to all
    assert folder.exists()
    driver.kill()
    driver.wait()
    wait_for(lambda: not list(reaper.marked(mark)) and not folder.exists() and is_gone(watch))
    assert bystander.poll() is None
    assert list(reaper.marked("another")).count(bystander.pid) == 1


def test_closing_the_watch_ends_them_too_and_not_the_driver(tmp_path: Path) -> None:
    folder, mark = tmp_path / "folder", f"closed{os.getpid()}"
    driver, _ = start(mark, folder, "close")
    driver.communicate("\n", timeout=10)
    assert driver.returncode == 0
    assert list(reaper.marked(mark)) == []
    assert not folder.exists()
