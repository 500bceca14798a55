from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from evaluation.entry import run_tool
from genetic_algorithm import run_search

ROOT = Path(__file__).resolve().parents[2]
FACTORY = "tests.genetic_algorithm.simulator:factory"
SMALL = ["--population", "8", "--generations", "3", "--fast-limit", "10", "--full-limit", "40"]
SMALL += ["--final-limit", "50"]


class CommandLine:
    """The search in a process of its own, over the simulator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "SIM_QUESTIONS": "70", "PYTHONPATH": str(ROOT)}

    def command(self, *flags: str, out: str | None = "run") -> list[str]:
        where = [] if out is None else ["--output-dir", str(self.folder / out)]
        module = [sys.executable, "-m", "genetic_algorithm.run_search", "--evaluator", FACTORY]
        return [*module, *SMALL, *flags, *where]

    def fork(
        self,
        *flags: str,
        out: str | None = "run",
        outputs: tuple[int, int] | None = None,
        inside: AbstractContextManager[None] | None = None,
        **environment: str,
    ) -> int:
        """The search in a copy of this process, which starts at once; returns the id of the process.

        What it says goes to the file `output`, or to the two files that `outputs` gives; it runs within `inside`.
        """
        process = os.fork()
        if process:
            return process
        code = 70
        try:  # nothing of the copy may reach the test that it is a copy of
            gc.freeze()
            signal.alarm(60)  # it would end by then, or never
            os.environ |= self.environment | environment
            os.chdir(self.folder)
            outputs = outputs or (os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND),) * 2
            for number, output in zip((1, 2), outputs, strict=True):
                os.dup2(output, number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            with inside or nullcontext():
                code = run_tool("run_search", run_search.main, self.command(*flags, out=out)[3:])
                sys.stdout.flush()
        finally:
            os._exit(code)

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *flags: str,
        out: str | None = "run",
        inside: AbstractContextManager[None] | None = None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """All of the search in such a copy."""
        (out_read, out_write), (err_read, err_write) = pipes = os.pipe(), os.pipe()
        process = self.fork(*flags, out=out, outputs=(out_write, err_write), inside=inside, **environment)
        for _, write in pipes:
            os.close(write)
        with open(out_read) as said, open(err_read) as told, ThreadPoolExecutor() as readers:
            stdout, stderr = readers.map(lambda file: file.read(), (said, told))
        _, status = os.waitpid(process, 0)
        return subprocess.CompletedProcess(flags, os.waitstatus_to_exitcode(status), stdout, stderr)

    def run_anew(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """All of the search in a Python of its own, as users start it."""
        process = self.start(self.command(*flags))
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def result(self, out: str = "run") -> dict[str, Any]:
        """What must not depend on how often a run was stopped."""
        (path,) = (self.folder / out).glob("search_result_*.json")
        document = json.loads(path.read_text())
        for stage in document["usage"].values():
            del stage["seconds"]
        return {name: value for name, value in document.items() if name not in ("timestamp", "versions")}


@pytest.fixture
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where matplotlib is not installed, for searches that take less time than their drawings; report/ draws."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)
