"""The search over real Ray on this machine: whole runs of the command line, killed in every way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from evaluation.cluster import reaper
from evaluation.cluster.ray_pool import ENVIRONMENT
from evaluation.cluster.ray_pool import LOOPBACK as LOOPBACK_ONLY
from tests.conftest import long_one
from tests.evaluation.cluster.threads import wait_for
from tests.genetic_algorithm.conftest import CommandLine

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install -r requirements-dev.txt"),
    pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc, which only Linux has"),
]

WORKERS, ONE = ("--cpu-workers", "2"), ("--cpu-workers", "1")
SLOW = {"SIM_SLEEP_S": "0.05"}
START_S = 180
"""Ray takes 4 to 12 s to start on 2 free cores, and ten times that on busy ones."""


class Run:
    """A search in a process of its own, with its mark and Ray's folder; killed at the end of the test."""

    def __init__(self, command_line: CommandLine, out: str, workers: tuple[str, str] = WORKERS) -> None:
        command = command_line.command(*workers, out=out)
        self.journal = command_line.folder / out / "journal.jsonl"
        self.process = command_line.start(command, **SLOW)
        self.mark, self.folder = "", Path()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def wait_for_answers(self, count: int) -> None:
        wait_for(lambda: self._lines() > count or self.process.poll() is not None, START_S)
        assert self.process.poll() is None, self.process.communicate()[1]
        self.mark, folder = next(self._watches())
        self.folder = Path(folder)

    def _lines(self) -> int:
        return self.journal.read_bytes().count(b"\n") if self.journal.exists() else 0

    def _watches(self) -> Iterator[list[str]]:
        for child in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for number in child.read_text().split():
                words = Path(f"/proc/{number}/cmdline").read_text().split("\0")
                if any(word.endswith("reaper.py") for word in words):
                    yield words[-3:-1]

    def end(self) -> tuple[int, str]:
        _, stderr = self.process.communicate(timeout=START_S)
        return self.process.returncode, stderr

    def workers(self) -> list[int]:
        """Processes in which an evaluator is."""
        return [number for number in reaper.marked(self.mark) if b"RayWorker" in _command(number)]

    def left_nothing(self) -> bool:
        return not list(reaper.marked(self.mark)) and not self.folder.exists()


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def listening(processes: set[int]) -> set[str]:
    """Addresses, as /proc spells them, at which these processes listen."""
    sockets = set()
    for process in processes:
        for entry in Path(f"/proc/{process}/fd").glob("*"):
            try:
                sockets.add(os.readlink(entry))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                found.add(words[1].partition(":")[0])
    return found


LOOPBACK = {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"}


@pytest.fixture(scope="module")
def module_line(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    line = CommandLine(tmp_path_factory.mktemp("ray"))
    assert line.run(out="alone").returncode == 0
    return line


def test_a_worker_that_is_killed_changes_nothing_and_only_this_host_is_listened_to(module_line: CommandLine) -> None:
    with Run(module_line, "workers") as run:
        run.wait_for_answers(10)
        marked = set(reaper.marked(run.mark))
        assert len(marked) >= 4  # Ray's two daemons and two workers at least
        assert listening(marked)
        assert listening({*marked, run.process.pid}) <= LOOPBACK
        wait_for(lambda: len(run.workers()) == 2)
        os.kill(run.workers()[0], signal.SIGKILL)
        code, stderr = run.end()
        assert code == 0, stderr
        # On a busy machine it may have been killed before it was ready.
        assert re.search(r"\nworker \d (\(.*\) is lost|did not come up): ", stderr), stderr
        assert "Traceback" not in stderr
        assert module_line.result("workers") == module_line.result("alone")
        assert run.left_nothing()


@long_one
def test_a_killed_driver_leaves_nothing_and_resumes_to_the_same_result(module_line: CommandLine) -> None:
    with Run(module_line, "killed") as run:
        run.wait_for_answers(10)
        run.process.kill()
        run.process.communicate()
        wait_for(run.left_nothing, 5)
    again = module_line.run(out="killed")  # by one process: the same search
    assert again.returncode == 0, again.stderr
    assert module_line.result("killed") == module_line.result("alone")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=long_one)])
def test_a_signal_ends_it_with_the_line_that_resumes_it(module_line: CommandLine, number: signal.Signals) -> None:
    with Run(module_line, number.name, ONE) as run:
        run.wait_for_answers(3)
        run.process.send_signal(number)
        code, stderr = run.end()
        assert code == 128 + number
        last = stderr.splitlines()[-1]
        assert last.startswith("run_search: stopped; nothing is lost; resume with: ")
        assert "--cpu-workers 1" in last
        assert "Traceback" not in stderr
        wait_for(run.left_nothing, 5)  # nobody waits for Ray's daemons to end


@long_one
def test_what_an_evaluator_raises_while_it_is_made_is_told_in_one_line(module_line: CommandLine) -> None:
    command = module_line.command(*ONE, out="none")
    command[command.index("--evaluator") + 1] += "_that_is_not_there"
    process = module_line.start(command)
    stdout, stderr = process.communicate(timeout=START_S)
    assert (process.returncode, stdout) == (2, "")
    assert stderr.splitlines()[-1].startswith("run_search: error: no worker comes up: SearchError: --evaluator ")
    assert "Traceback" not in stderr
    assert not (module_line.folder / "none").exists()


@pytest.fixture
def others_cluster(module_line: CommandLine) -> Iterator[str]:
    """The address of a Ray cluster that somebody else runs on this host, with two cores."""
    folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))  # paths of Ray's sockets are long
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**module_line.environment, **ENVIRONMENT, **LOOPBACK_ONLY}
    head = ["--head", f"--port={port}", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *head, "--include-dashboard=false", "--block"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            wait_for(lambda: is_open(port) or daemon.poll() is not None, START_S)
            assert daemon.poll() is None
            yield f"127.0.0.1:{port}"
        finally:
            daemon.terminate()  # and it ends its daemons
            daemon.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@long_one
def test_workers_of_a_cluster_that_runs_already_are_used_and_given_back(
    module_line: CommandLine, others_cluster: str
) -> None:
    for out in ("others", "others_again"):  # the second finds the room that the first took
        process = module_line.start(
            module_line.command("--ray-address", others_cluster, *WORKERS, out=out), **LOOPBACK_ONLY
        )
        _, stderr = process.communicate(timeout=START_S)
        assert process.returncode == 0, stderr
        assert "2 workers" in stderr
        assert module_line.result(out) == module_line.result("alone")
    assert is_open(int(others_cluster.rpartition(":")[2]))
