"""The verdict of DEPLOY_TEST.sh: a number against the best of all sets."""

from __future__ import annotations

import json
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
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert line.startswith("PASSED in 7 s" if code == 0 else "FAILED")
    for words in (
        "+".join(map(str, layers)),
        "the best of all sets (0+2) 0.9050",
        "0.9000 +- 0.0100 on 2048 questions of tiny_heldout",
        "made",
    ):
        assert words in line


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
    assert "0.5500 on questions that took no part in the choice, the base 0.3100" in line


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
