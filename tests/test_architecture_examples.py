"""The examples of ARCHITECTURE.md, put into files and run as they stand, each in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from genetic_algorithm import LayerSet, SearchSpace
from genetic_algorithm.strategies.strategy import Setting
from tests.conftest import long_one
from tests.genetic_algorithm.simulator import NUM_LAYERS, Simulator
from tests.genetic_algorithm.strategies.driving import SPACE, drive, start

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 40


class Example(NamedTuple):
    """One file, and the commands that use it."""

    path: str
    text: str
    commands: str


def examples() -> dict[str, Example]:
    """By what is added."""
    found = {}
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for section in text.split("\n## How to add a")[1:]:
        (path,) = re.findall(r"Put this into\s+`([\w./]+)`:\n", section)
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
        (language, file), (shell, commands) = blocks
        assert (language, shell) == ({".py": "python", ".yaml": "yaml"}[Path(path).suffix], "bash")
        found[section.splitlines()[0].split()[-1]] = Example(path, file, commands)
    return found


EXAMPLES = examples()


def run(folder: Path, kind: str) -> subprocess.CompletedProcess[str]:
    """The example's commands in a folder that holds its file, and the models as a clone does."""
    path, text, commands = EXAMPLES[kind]
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text(text)
    if not (folder / "models").exists():
        (folder / "models").symlink_to(ROOT / "models")
    environment = {name: value for name, value in os.environ.items() if name not in ("PAIR", "BASE", "DONOR")}
    environment |= {"PYTHONPATH": str(ROOT), "GA_CACHE_DIR": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    commands = commands.replace("python ", f"{sys.executable} -P ")  # -P: our packages, not the linked folder
    script = f"set -euo pipefail\n{commands}"
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_there_is_an_example_of_each() -> None:
    assert set(EXAMPLES) == {"strategy", "pair", "task", "evaluator"}


@pytest.mark.parametrize(
    "kind", [kind if kind == "evaluator" else pytest.param(kind, marks=long_one) for kind in EXAMPLES]
)
def test_each_is_one_file_of_few_lines_and_runs_as_it_stands(kind: str, tmp_path: Path) -> None:
    assert len(EXAMPLES[kind].text.splitlines()) <= MOST_LINES
    done = run(tmp_path, kind)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[0])
    assert last["layers"]
    result = json.loads((tmp_path / last["result"]).read_text())
    told = {
        "strategy": (result["search"]["strategy"], "climb:Climb"),
        "pair": (result["evaluator"].get("pair"), str(tmp_path / "my_pair.yaml")),
        "task": (result["conditions"].get("subjects"), ["by_heart", "tiny_recall"]),
        "evaluator": (result["evaluator"].get("factory"), "landscape:Landscape"),
    }
    assert told[kind][0] == told[kind][1]
    assert (tmp_path / "my_hybrid" / "checkpoint_info.json").exists() == (kind == "pair")


def test_what_a_strategy_may_call_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("\n## How to add a strategy")[2].partition("\n## ")[0]
    named = set(re.findall(r"\b(ledger|space)\.(\w+)", section))
    assert len(named) > 10
    ledger = start("random", Simulator(0, 10))[1]
    for what, name in named:
        assert hasattr({"ledger": ledger, "space": SPACE}[what], name), f"{what}.{name}"


@pytest.mark.parametrize("space", [SPACE, SearchSpace(NUM_LAYERS, 12, 12), SearchSpace(NUM_LAYERS, 0, 0)])
@pytest.mark.parametrize("budget", [None, 0, 41, 700, 3000])
def test_the_strategy_keeps_to_the_contract_that_it_explains(
    space: SearchSpace, budget: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / EXAMPLES["strategy"].path).write_text(EXAMPLES["strategy"].text)
    monkeypatch.chdir(tmp_path)
    simulator = Simulator(0, 60)
    elite = [] if space is not SPACE else [LayerSet((0, 1, 2, 9))]
    strategy, ledger = start("climb:Climb", simulator, space, budget=budget, elite=elite)
    requests = drive(strategy, ledger, simulator)
    assert ledger.spent <= (ledger.spent if budget is None else budget)
    assert bool(strategy.ranking()) == bool(requests)
    assert set(elite) <= set(requests[0].batch if requests else elite)
    assert json.loads(json.dumps(strategy.details()))


def test_all_that_a_strategy_is_given_is_told() -> None:
    told = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("\n## How to add a strategy\n")[2]
    given = [name for name in dir(Setting) if not name.startswith("_")]
    assert "singles" in given
    assert not [name for name in given if f"`{name}`" not in told.partition("```")[0]]
