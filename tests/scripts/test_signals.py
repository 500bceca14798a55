"""A script that is told to end: what it runs stops in good order, and the script with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import ROOT, without_settings, write_program

PATIENCE_S = 60.0


@pytest.fixture
def slow_python(tmp_path: Path) -> Path:
    """A Python whose search waits to be told to end, takes its time over that, and writes down that it did."""
    return write_program(
        tmp_path / "bin" / "slow python",
        f"""#!{sys.executable}
import os, pathlib, signal, sys, time
folder = pathlib.Path({str(tmp_path)!r})
def stop(number, frame):
    time.sleep(0.5)
    (folder / "stopped").touch()
    sys.exit(143)
if sys.argv[3:4] == ["model_preparation.pair_facts"]:
    os.execve({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]], os.environ | {{"PYTHONPATH": {str(ROOT)!r}}})
if sys.argv[1:3] == ["-P", "-m"] and sys.argv[3].endswith("run_search"):
    signal.signal(signal.SIGTERM, stop)
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep({PATIENCE_S})
""",
    )


def started(script: str, python: Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    """The script, in a process group of its own, once its search is running."""
    process = subprocess.Popen(
        [ROOT / script, "--pair", "tiny"],
        cwd=tmp_path,
        env=without_settings() | {"PYTHON": str(python)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + PATIENCE_S
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        assert process.poll() is None, "it ended before it searched"
        assert time.monotonic() < until, "it never searched"
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("script", ["scripts/quick_test_real.sh", "scripts/run_full_search_fast.sh"])
def test_a_search_takes_the_place_of_its_script(script: str, slow_python: Path, tmp_path: Path) -> None:
    process = started(script, slow_python, tmp_path)
    assert int((tmp_path / "pid").read_text()) == process.pid
    process.terminate()
    assert process.wait(PATIENCE_S) == 143
    assert (tmp_path / "stopped").exists()


def test_deploying_waits_for_its_step_to_stop(slow_python: Path, tmp_path: Path) -> None:
    process = started("DEPLOY_TEST.sh", slow_python, tmp_path)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 143
    assert (tmp_path / "stopped").exists()
