from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
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
        self.environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        self.environment |= {"SIM_QUESTIONS": "70", "PYTHONPATH": str(ROOT)}

    def command(self, *flags: str, out: str | None = "run") -> list[str]:
        where = [] if out is None else ["--output-dir", str(self.folder / out)]
        module = [sys.executable, "-m", "genetic_algorithm.run_search", "--evaluator", FACTORY]
        return [*module, *SMALL, *flags, *where]

    def fork(self, *flags: str, **environment: str) -> int:
        """The search in a copy of this process, which starts at once; returns the id of the process."""
        process = os.fork()
        if process:
            return process
        code = 70
        try:  # nothing of the copy may reach the test that it is a copy of
            os.environ |= self.environment | environment
            os.chdir(self.folder)
            output = os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            code = run_tool("run_search", run_search.main, self.command(*flags)[3:])
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

    def run(self, *flags: str, out: str | None = "run", **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(self.command(*flags, out=out), **environment)
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
def command_line(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)
