"""A strategy of a user's own, in a file beside no other of ours: --strategy MODULE:CLASS."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.genetic_algorithm.conftest import CommandLine

pytestmark = pytest.mark.usefixtures("no_drawings")
STEPS = """
from genetic_algorithm.questions import FAST
from genetic_algorithm.strategies.racing import VERIFY, race_forecast, verify
from genetic_algorithm.strategies.strategy import StageForecast, ranked_on_ladder


class Steps:
    stages = ("steps", VERIFY)

    def __init__(self, setting):
        self.setting = setting

    def run(self):
        space, ledger, rng = self.setting.space, self.setting.ledger, self.setting.rng
        here = space.random(rng)
        for number in range(30):
            around = space.neighbours(here)
            near = [here, *(around[i] for i in rng.permutation(len(around))[:3])]
            yield from ledger.wanted(near, FAST, "steps", f"step {number}")
            here = next(iter(ledger.ranked(near, FAST)), here)
        yield from verify(self.setting)

    def ranking(self):
        return ranked_on_ladder(self.setting)

    def forecast(self):
        return [StageForecast("steps", 91, 91 * 24, 91 * 24), race_forecast(self.setting.ledger, VERIFY, 91)]

    def details(self):
        return {"steps": {"number": 30}}
"""
OWN = ("--strategy", "steps:Steps")


@pytest.fixture
def with_steps(command_line: CommandLine) -> CommandLine:
    (command_line.folder / "steps.py").write_text(STEPS)
    return command_line


def test_it_searches_within_its_budget_and_tells_what_it_found(with_steps: CommandLine) -> None:
    done = with_steps.run(*OWN, "--max-questions", "2000")
    assert done.returncode == 0, done.stderr
    result = with_steps.result()
    assert result["search"]["strategy"] == "steps:Steps"
    assert result["stages"] == {"steps": {"number": 30}}
    assert list(result["usage"]) == ["steps", "verification", "hold-out", "in_all"]
    assert 1000 < result["usage"]["in_all"]["question_evaluations"] <= 2000
    assert result["final_results"][0]["accuracy"] > 0.7
    base = result["base"]  # which it never asked: the finalists' last check did
    assert base["accuracy"] == base["holdout_accuracy"] > 0
    assert base["questions"] == base["holdout_questions"] > 0
    assert json.loads(done.stdout)["base_accuracy"] == base["accuracy"]
    rows = {line.split()[0]: line.split()[1:] for line in done.stderr.splitlines() if line.strip()}
    assert rows["base"] == ["-", "-", "-", f"{base['holdout_accuracy']:.4f}", "none"]
    assert (with_steps.folder / "run" / "report.html").exists()


def test_its_cost_is_told_beforehand(with_steps: CommandLine) -> None:
    done = with_steps.run(*OWN, "--dry-run", out=None)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout.splitlines()[-1])
    assert plan["strategy"] == "steps:Steps"
    assert {path.name for path in with_steps.folder.iterdir()} <= {"steps.py", "__pycache__"}


def test_killed_it_goes_on_to_the_same_result_and_pays_nothing_twice(with_steps: CommandLine) -> None:
    assert with_steps.run(*OWN, out="undisturbed").returncode == 0
    journal = with_steps.folder / "run" / "journal.jsonl"
    process = with_steps.fork(*OWN, SIM_SLEEP_S="0.01")
    while not journal.exists() or journal.read_bytes().count(b"\n") < 20:
        assert os.waitpid(process, os.WNOHANG) == (0, 0), (with_steps.folder / "output").read_text()
    os.kill(process, 9)
    os.waitpid(process, 0)
    paid = journal.read_bytes().count(b"\n")
    assert with_steps.run(*OWN).returncode == 0
    assert with_steps.result() == with_steps.result("undisturbed")
    known = [(line["set"], line["questions"]) for line in map(json.loads, journal.read_text().splitlines()[1:])]
    assert paid < len(known) == len(set(known))


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [
        (None, "steps:Steps", "--strategy steps:Steps: No module named 'steps'; check the name, and that it can be"),
        ("", "steps.py:Steps", "--strategy steps.py:Steps names a file, not a module; did you mean steps:Steps?"),
        (
            "import numpyy",
            "steps:Steps",
            "steps.py, line 1: ModuleNotFoundError: No module named 'numpyy'; install it,",
        ),
        (
            "\nfrom numpy.rando import x",
            "steps:Steps",
            "steps.py, line 2: ModuleNotFoundError: No module named 'numpy.rand",
        ),
        (None, "gaa", "argument --strategy: gaa is none of ga, ga-original, scan, "),
        (None, "gaa", "nor MODULE:CLASS; did you mean ga?"),
        (None, "./steps.py:Steps", "./steps.py:Steps is none of ga, "),
        ("", "steps:Steps", "--strategy steps:Steps: steps has no class Steps; define it there, or name another"),
        ("Steps = [", "steps:Steps", "steps.py, line 1: '[' was never closed; mend it"),
        ("\nSteps = none", "steps:Steps", "steps.py, line 2: NameError: name 'none' is not defined; mend it"),
        (
            STEPS.replace("def ranking", "def order"),
            "steps:Steps",
            "made a Steps, which has no ranking; a strategy has ",
        ),
        (
            STEPS.replace('FAST, "steps"', 'FAST, "walk"'),
            "steps:Steps",
            "asks in stage 'walk', but its stages are steps",
        ),
        (
            STEPS.replace(
                "yield from ledger.wanted(near", "ledger.budget = 7\n            yield from _all(ledger, near"
            )
            + "\n\ndef _all(ledger, sets, part, *names):\n    from genetic_algorithm.ledger import Request\n"
            "    yield Request(tuple(sets), ledger.parts[part], *names)\n",
            "steps:Steps",
            "questions where its budget has 7 left; let it ask by `ledger.wanted`, which keeps to the budget",
        ),
    ],
)
def test_what_is_wrong_with_it_is_told_in_one_line(
    command_line: CommandLine, module: str | None, name: str, told: str
) -> None:
    if module is not None:
        (command_line.folder / "steps.py").write_text(module)
    done = command_line.run("--strategy", name, "--max-passes", "12")
    assert done.returncode == 2, done.stderr
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_file_of_settings_may_name_it(with_steps: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("strategy: steps:Steps\nmax_questions: 2000\n")
    done = with_steps.run("--config", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert with_steps.result()["search"]["strategy"] == "steps:Steps"
    (tmp_path / "mine.yaml").write_text("strategy: steps\n")
    done = with_steps.run("--config", "mine.yaml", out="other")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "mine.yaml, line 1: strategy: 'steps' cannot be (steps is none of ga, " in done.stderr
