from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACTORY = "tests.genetic_algorithm.simulator:factory"
SMALL = ["--population", "8", "--generations", "3", "--fast-limit", "10", "--full-limit", "40"]
SMALL += ["--holdout-limit", "10", "--final-limit", "60"]


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
