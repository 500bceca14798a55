"""The verdict of DEPLOY_TEST.sh: a number against the best of all sets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.entry import run_tool
from model_preparation import check_deployment
from model_preparation.check_deployment import main
from models.pairs import PAIRS

SETS = {"none": 300, "0": 500, "0+2": 905, "1+2": 895, "0+1": 894, "0+1+2+3+4": 1000}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a command line about a search that found `layers`."""
    landscape = tmp_path / "landscape.json"
    landscape.write_text(json.dumps({"questions": 1000, "sets": SETS}))
    pairs = PAIRS | {"tiny": replace(PAIRS["tiny"], landscape=landscape)}
    monkeypatch.setattr(check_deployment, "get_pair", pairs.__getitem__)

    def make(layers: list[int], *, pair: str = "tiny", base: float = 0.3, test: Any = None) -> list[str]:
        found = {"layers": layers, "accuracy": 0.5}
        if pair == "tiny":
            found |= {"holdout_accuracy": 0.9473, "holdout_standard_error": 0.007, "holdout_questions": 300}
        result = {"final_results": [found], "base": {"accuracy": base}, "search": {"max_layers": 4}}
        if test is None:
            score = {"accuracy": 0.9, "standard_error": 0.01, "questions": 2048, "tasks": ["tiny_heldout"]}
            test = {"layers": layers, "evaluation": score}
        (tmp_path / "result.json").write_text(json.dumps(result))
        (tmp_path / "test.json").write_text(json.dumps(test))
        files = ["--result", str(tmp_path / "result.json"), "--checkpoint_test", str(tmp_path / "test.json")]
        return [*files, "--pair", pair, "--checkpoint", "made", "--seconds", "7"]

    return make


@pytest.mark.parametrize(("layers", "code"), [([0, 2], 0), ([1, 2], 0), ([0, 1], 1), ([0], 1)])
def test_a_set_within_a_hundredth_of_the_best_passes(
    layers: list[int], code: int, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("check", main, command(layers)) == code
    first, *lines = capsys.readouterr().out.splitlines()
    found = "+".join(map(str, layers))
    how = ("PASSED in 7 s", "within 0.01 of") if code == 0 else ("FAILED in 7 s", "more than 0.01 below")
    assert first.startswith(f"{how[0]}: layers {found} of the pair tiny, {how[1] if layers != [0, 2] else ''}".rstrip())
    assert first.endswith(" the best of all sets")
    assert (", the best of all sets" in first) == (layers == [0, 2])
    assert f"{SETS[found] / 1000:.4f} on 1,000 questions, from a table of all sets that comes with tiny" in lines[0]
    assert "the best of all sets, 0+2: 0.9050" in lines[1]
    assert "0.9473 +- 0.0070 on 300 of these questions" in lines[2]
    assert "0.9000 +- 0.0100 on 2,048 other questions, of tiny_heldout" in lines[3]
    assert lines[4].endswith(": made")
    assert max(map(len, (first, *lines))) <= 120


def test_the_verdict_speaks_the_language_of_the_locale(
    command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = command([0, 2])
    assert main(given) == 0
    english = capsys.readouterr().out
    monkeypatch.setenv("GA_LANGUAGE", "zh")
    assert main(given) == 0
    chinese = capsys.readouterr().out
    assert chinese.startswith("PASSED（通过，用时 7 秒）：")
    figures = [re.findall(r"0\.\d{4}", text) for text in (english, chinese)]
    assert figures[0] == figures[1]
    assert len(figures[0]) == 6


def test_another_pair_must_beat_its_base(command: Any) -> None:
    assert main(command([3], pair="llamba-8b", base=0.4)) == 0
    assert main(command([3], pair="llamba-8b", base=0.5)) == 1


def test_the_base_is_met_on_questions_that_both_answered(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command([3], pair="llamba-8b", base=0.6)  # on fewer questions, and easier ones
    path = tmp_path / "result.json"
    result = json.loads(path.read_text())
    result["final_results"][0]["holdout_accuracy"], result["base"]["holdout_accuracy"] = 0.55, 0.31
    for difference, code in ((0.24, 0), (-0.01, 1)):
        compared = [{"roles": ["runner-up"], "difference": -0.1}, {"roles": ["base"], "difference": difference}]
        path.write_text(json.dumps(result | {"comparisons": compared}))
        assert main(arguments) == code
    line = capsys.readouterr().out
    assert "0.5500, the base 0.3100, on questions that took no part in the choice" in line


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ({"layers": [0, 2]}, "no accuracy on held-out questions"),
        (
            {"layers": [1], "evaluation": {"accuracy": 1.0, "standard_error": 0.0}},
            "the checkpoint has layers",
        ),
        ([], "does not hold an object"),
    ],
)
def test_a_checkpoint_without_its_test_does_not_pass(
    test: Any, told: str, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("check", main, command([0, 2], test=test)) == 2
    assert told in capsys.readouterr().err


def test_a_missing_file_is_named(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = command([0, 2])
    (tmp_path / "test.json").unlink()
    assert run_tool("check", main, line) == 2
    assert "test.json cannot be read" in capsys.readouterr().err
