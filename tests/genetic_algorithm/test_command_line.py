"""What the flags of the search mean, and what it says before and after it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.entry import run_tool
from evaluation.journal import Journal
from evaluation.remembering import Remembering, journal_header
from genetic_algorithm import LayerSet, Search, SearchConfig, SearchSpace, run_search
from genetic_algorithm.arguments import make_parser, search_config
from genetic_algorithm.config import tiny
from genetic_algorithm.search import CHECK
from genetic_algorithm.strategies import STRATEGIES
from model_preparation.sources import add_pair_options
from tests.genetic_algorithm.conftest import FACTORY, SMALL
from tests.genetic_algorithm.simulator import NUM_LAYERS, Simulator

pytestmark = pytest.mark.usefixtures("no_drawings")
HERE = ["--evaluator", FACTORY, *SMALL]


@pytest.fixture(autouse=True)
def _small_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_QUESTIONS", "70")
    for name in ("PAIR", "BASE", "DONOR"):
        monkeypatch.delenv(name, raising=False)


def _run(*flags: str) -> int:
    return run_tool("run_search", run_search.main, [*HERE, *flags])


def _result(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("search_result_*.json")
    return dict(json.loads(path.read_text()))


def config(*flags: str, preset: str = "quick") -> SearchConfig:
    return search_config(make_parser(add_pair_options).parse_args(flags), preset)


def test_flags_become_the_configuration() -> None:
    given = config(
        *("--strategy", "ga-original", "--goal", "kl", "--max-questions", "5000", "--max-hours", "2.5"),
        *("--holdout", "0.1", "--growth", "3", "--layer-cost", "0.01", "--max-failed", "0.2"),
        *("--must-include", "17,13", "2", "--forbid", "9, 10", "9", "--window", "2:23"),
    )
    assert (given.strategy, given.goal, given.max_questions, given.max_hours) == ("ga-original", "kl", 5000, 2.5)
    assert (given.holdout, given.growth, given.layer_cost, given.max_failed) == (0.1, 3, 0.01, 0.2)
    assert (given.must_include, given.forbid, given.window) == ((2, 13, 17), (9, 10), (2, 23))
    assert config() == config("--strategy", "ga", "--goal", "accuracy", "--holdout", "0.25")


def test_flags_override_the_preset_and_preset_limits_give_way() -> None:
    assert (config(preset="tiny").fast_limit, config(preset="tiny").full_limit) == (24, 150)
    assert (config().fast_limit, config().full_limit) == (10, 50)
    assert config("--preset", "full").full_limit is None
    assert config("--full-limit", "8").fast_limit == 8
    everything = config("--fast-limit", "none", preset="tiny")
    assert (everything.full_limit, everything.final_limit) == (None, 0)
    assert config("--full-limit", "900", preset="tiny").final_limit == 0
    assert config("--full-limit", "900", "--final-limit", "none", preset="tiny").final_limit is None


def test_a_budget_that_is_given_takes_the_place_of_the_presets() -> None:
    assert (config().max_passes, config(preset="full").max_passes) == (6, 16)
    assert config("--max-full-mmlu", "8") == config("--max-passes", "8")
    assert config("--max-passes", "none").max_passes is None
    assert (config("--max-questions", "900").max_passes, config("--max-questions", "900").max_questions) == (None, 900)
    both = config("--max-questions", "900", "--max-passes", "2")
    assert (both.max_questions, both.max_passes) == (900, 2)
    assert config("--max-hours", "1").max_passes == 6  # the clock may end it before
    assert config("--strategy", "ga-original").max_passes is None  # it ends by itself
    assert config("--strategy", "ga-original", "--max-passes", "9").max_passes == 9


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--strategy", "best"], "argument --strategy: best is none of ga, "),
        (["--goal", "loss"], "argument --goal: invalid choice: 'loss'"),
        (["--window", "8-23"], "argument --window: '8-23' is not FIRST:LAST, such as 8:23"),
        (["--window", "8:12"], "--window 8:12: the model's layers are 0 to 11"),
        (["--window", "8:5"], "--window 8:5 holds no layer"),
        (["--must-include", "1;2"], "argument --must-include: '1;2' names no layers; give them like 13,17"),
        (["--must-include", "13"], "--must-include 13: the model's layers are 0 to 11"),
        (["--must-include", "3", "--forbid", "2,3"], "layer 3 must be included and is forbidden"),
        (["--must-include", "0,1", "2,3", "4"], "--must-include names 5 layers, --max-layers allows 4"),
        (["--forbid", "-2"], "--forbid -2: the model's layers are 0 to 11"),
        (["--min-layers", "3", "--window", "4:5"], "--min-layers 3 cannot be met"),
        (["--max-passes", "0"], "--max-passes must be above 0, got 0.0"),
        (["--max-passes", "many"], "argument --max-passes/--max-full-mmlu: 'many' is neither a number nor none"),
        (["--max-questions", "100"], "a budget of 100 questions is below the least useful one here, "),
        (["--max-hours", "-1"], "--max-hours must be above 0, got -1.0"),
        (["--holdout", "1"], "--holdout must be at least 0 and below 1, got 1.0"),
        (["--holdout-limit", "10"], "unrecognized arguments: --holdout-limit 10"),
        (["--growth", "1"], "--growth must be between 1.2 and 100, got 1.0"),
        (["--layer-cost", "2"], "--layer-cost must be at least 0 and below 1"),
        (["--goal", "kl"], "--goal kl needs an evaluator that gives divergences"),
    ],
)
def test_bad_values_are_one_clear_line(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert _run(*flags, "--output-dir", str(folder)) == 2
    err = capsys.readouterr().err
    assert told in err.splitlines()[-1]
    assert "Traceback" not in err
    assert err.count("error: ") == 1
    if flags != ["--goal", "kl"]:  # which only the first answers tell
        assert err.count("\n") == 1
        assert not folder.exists()


def test_constraints_reach_the_search_and_its_result(tmp_path: Path) -> None:
    flags = ["--must-include", "2", "--forbid", "9", "--window", "0:10", "--layer-cost", "0.01"]
    assert _run(*flags, "--output-dir", str(tmp_path / "run")) == 0
    result = _result(tmp_path / "run")
    assert result["search"]["window"] == [0, 10]
    for entry in [*result["final_results"], *result["best_per_layer_count"].values()]:
        assert 2 in entry["layers"]
        assert not {9, 11} & set(entry["layers"])


def test_the_budget_is_part_of_what_a_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--output-dir", str(tmp_path / "run")) == 0
    assert _run("--output-dir", str(tmp_path / "run"), "--max-passes", "9") == 2
    assert "search.max_passes was 6.0 and is now 9.0" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_runs_and_resumes_from_the_command_line(strategy: str, tmp_path: Path) -> None:
    flags = ["--strategy", strategy, "--max-passes", "8", "--output-dir", str(tmp_path / "run")]
    assert _run(*flags) == 0
    first = _result(tmp_path / "run")
    assert first["usage"]["in_all"]["question_evaluations"] <= 8 * 280
    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[: len(lines) // 2]))
    next((tmp_path / "run").glob("search_result_*.json")).unlink()
    assert _run(*flags) == 0
    again = _result(tmp_path / "run")
    assert again["final_results"] == first["final_results"]
    assert again["comparisons"] == first["comparisons"]


def test_a_dry_run_tells_strategy_questions_hold_out_and_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--dry-run", "--max-passes", "10", "--max-hours", "3") == 0
    out = capsys.readouterr().out
    assert out.startswith("Dry run: 793 possible layer sets, and the base; no run is begun.\n")
    assert "strategy: ga, for accuracy" in out
    assert re.search(r"questions: 280, one pass: fast \d+, full 160, final 200, held out 72; ladder ", out)
    assert "budget: 2,800 question-evaluations (10.0 passes); without it " in out
    assert "time: at most 3 h 00 min of evaluation" in out
    told = json.loads(out.splitlines()[-1])
    assert sum(stage["questions"] for stage in told["stages"]) > 2800
    assert "all stages together to 2,800 evaluations, less than their rows add up to." in out
    assert told["budget"] == 2800
    assert told["questions"]["holdout"] == 72
    assert told["question_evaluations"] <= told["question_evaluations_at_most"] <= 2800
    assert [stage["stage"] for stage in told["stages"]] == ["stage 1", "stage 2", "stage 3", "hold-out"]
    assert all(stage["sets"] > 0 for stage in told["stages"])


def test_a_dry_run_without_a_budget_says_what_it_may_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--dry-run", "--strategy", "ga-original", "--generations", "200") == 0
    out = capsys.readouterr().out
    assert re.search(r"budget: none; [\d,]+ question-evaluations at most \([\d.,]+ passes\)", out)
    assert "all stages together" not in out
    told = json.loads(out.splitlines()[-1])
    assert told["budget"] is None
    assert all(stage["sets"] > 0 for stage in told["stages"])  # also where stage 1 may look at every set


def test_the_help_shows_the_budgets_of_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("run_search", run_search.main, ["--help"]) == 0
    told = capsys.readouterr().out
    flags = "strategy goal max-questions max-passes max-full-mmlu max-hours holdout growth must-include forbid window"
    for flag in [*flags.split(), "layer-cost", "max-failed", "retry-failed"]:
        assert f"--{flag}" in told
    assert re.search(r"--max-passes +12 +6 +16\n", told)
    assert re.search(r"--holdout +0.25 +0.25 +0.25\n", told)
    assert "--strategy ga-original --holdout 0" in told


# The clock.


class Timed(Simulator):
    """Takes a hundredth of a second for each question, by a clock of its own."""

    def __init__(self) -> None:
        super().__init__(0, per_subject=100)
        self.now = 0.0
        self.may_be_asked = True

    def monotonic(self) -> float:
        return self.now

    def answers(self, batch, questions):
        assert self.may_be_asked
        for layers, given in super().answers(batch, questions):
            self.now += 0.01 * len(questions)
            yield layers, given


@pytest.mark.parametrize(
    ("strategy", "minutes"), [*((name, 0.5) for name in sorted(STRATEGIES)), ("ga", 2), ("ga", 20), ("ga-original", 1)]
)
def test_the_time_allowed_is_kept_to_within_one_batch_and_a_resumed_run_stops_where_the_first_did(
    strategy: str, minutes: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Timed()
    monkeypatch.setattr("evaluation.remembering.time", evaluator)
    config = SearchConfig(
        strategy=strategy,
        population=10,
        fast_limit=8,
        full_limit=30,
        verified=6,
        max_hours=minutes / 60,
        max_questions=60_000,
    )
    found, first = [], None
    for _ in range(2):
        search = Search(config, SearchSpace(NUM_LAYERS, 1, 4), evaluator.subjects)
        first = search.ask()  # the pace is learnt from it
        journal = Journal(tmp_path / "journal", journal_header(evaluator), evaluator.num_questions)
        remembering = Remembering(evaluator, journal)
        seconds = run_search._ask_and_tell(search, remembering)
        assert sum(seconds.values()) == pytest.approx(remembering.seconds)
        found.append((search.outcome.final, search.outcome.usage, search.outcome.is_cut_short))
        evaluator.may_be_asked = False
    assert found[0] == found[1]
    assert remembering.seconds <= max(60 * minutes, 0.01 * (first.size + search.hold_out_cost)) + 1e-6
    assert search.outcome.is_cut_short or minutes > 0.5 or remembering.seconds < 30
    assert not (search.outcome.is_cut_short and minutes == 20)
    assert search.outcome.usage[CHECK].questions > 0


def test_what_is_left_of_the_time_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SIM_SLEEP_S", "0.001")
    with caplog.at_level("INFO"):
        assert _run("--max-hours", "1e-6", "--output-dir", str(tmp_path / "run")) == 0
    assert "--max-hours 1e-06: what is left of the time is for the hold-out" in caplog.text
    result = _result(tmp_path / "run")
    assert result["cut_short"]
    assert result["final_results"][0]["holdout_accuracy"] is not None


# Evaluators that do not behave.


class Odd(Simulator):
    """Goes wrong, in one way or another, for every set with layer 7."""

    def __init__(self, how: str) -> None:
        super().__init__(0, per_subject=70)
        self.how = how

    def answers(self, batch, questions):
        for layers, given in super().answers(batch, questions):
            if 7 not in layers:
                yield layers, given
                if self.how == "repeats":
                    yield layers, given._replace(correct=~given.correct)
            elif self.how == "shape":
                yield layers, given._replace(correct=given.correct[1:])
            elif self.how == "nan":
                yield layers, given._replace(margin=np.full(len(questions), np.nan, np.float32))
            elif self.how == "raises":
                raise RuntimeError("layer 7 does not fit")


@pytest.mark.parametrize("how", ["shape", "nan", "silent", "raises", "repeats"])
def test_sets_that_cannot_be_evaluated_are_named_and_the_run_goes_on(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("genetic_algorithm.wiring.imported", lambda *named: lambda: Odd(how))
    assert _run("--output-dir", str(tmp_path / "run")) == 0
    err = capsys.readouterr().err
    result = _result(tmp_path / "run")
    assert [7] in result["failed"]
    assert all(7 in layers for layers in result["failed"])
    assert all(7 not in entry["layers"] for entry in result["final_results"])
    told = {
        "shape": "\n7 could not be evaluated (the evaluator gave correct of shape ",
        "nan": "\n7 could not be evaluated (the evaluator gave NaN as margin",
        "silent": "\n7 could not be evaluated (the evaluator gave no answer for it)",
        "raises": "\n7 could not be evaluated (RuntimeError: layer 7 does not fit)",
        "repeats": "the evaluator answered twice for none: the first answer counts",
    }
    assert err.count(told[how]) == 1
    failed = len(result["failed"])
    assert re.search(rf"\n{failed} of \d+ layer sets could not be evaluated and were left out: 7", err)


def test_more_failures_than_allowed_end_the_run_and_may_be_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIM_BROKEN", "1,3,5,7,9")
    flags = ["--max-failed", "0.1", "--output-dir", str(tmp_path / "run")]
    assert _run(*flags) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "5 of 13 layer sets could not be evaluated, more than --max-failed 0.1 allows" in last
    assert "--retry-failed" in last
    monkeypatch.delenv("SIM_BROKEN")
    assert _run(*flags) == 2  # the same again
    assert _run(*flags, "--retry-failed") == 0
    assert _result(tmp_path / "run")["failed"] == []


def test_the_leader_is_not_chosen_by_what_it_cannot_know(tmp_path: Path) -> None:
    """The result of a run names the hold-out of the questions; the simulator knows the truth of the set."""
    assert _run("--output-dir", str(tmp_path / "run")) == 0
    result = _result(tmp_path / "run")
    best = result["final_results"][0]
    simulator = Simulator(0, 70)
    right = simulator.all_answers(LayerSet(tuple(best["layers"]))).correct
    held = np.concatenate([np.arange(70 * s + 52, 70 * s + 70) for s in range(4)])
    assert best["holdout_accuracy"] == pytest.approx(right[held].mean(), abs=1e-6)
    assert tiny().holdout == 0.25
