"""Settings come from flags, environment, a file and presets, in that order; and every run can be made again."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.entry import run_tool
from genetic_algorithm import run_search
from genetic_algorithm.config import SearchConfig
from tests.genetic_algorithm.conftest import FACTORY, SMALL

pytestmark = pytest.mark.usefixtures("no_drawings")


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_QUESTIONS", "70")
    for name in ("PAIR", "BASE", "DONOR"):
        monkeypatch.delenv(name, raising=False)


def _run(*flags: str) -> int:
    return run_tool("run_search", run_search.main, flags)


Printed = Any


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """The settings that --print-config prints for some flags, and their text."""

    def run(*flags: str) -> tuple[dict[str, Any], str]:
        capsys.readouterr()
        code = _run(*flags, "--print-config")
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return dict(yaml.safe_load(out)), out

    return run


SOME = [
    ["--gpu", "cpu"],
    ["--gpu", "cpu", "--preset", "full", "--seed", "3", "--max-hours", "2.5"],
    ["--gpu", "cpu", "--window", "1:9", "--must-include", "2,3", "--forbid", "5", "--layer-cost", "0.005"],
    ["--gpu", "cpu", "--tasks", "tiny_recall:1", "tiny_position:0.5", "--num-fewshot", "0", "--strategy", "beam"],
    ["--gpu", "cpu", "--strategy", "ga-original", "--fast-limit", "none", "--holdout", "0", "--final-limit", "none"],
    ["--cpu-workers", "2", "--ray-address", "auto", "--log-to", "tensorboard", "--mmlu-dir", "some where"],
    ["--gpu", "cpu", "--elite", "0+2,7", "--single-layer-scores", "0:0.31,1:4e-1", "--output-dir", "somewhere"],
    ["--gpu", "cpu", "--elite", "none", "--max-questions", "9000", "--retry-failed"],
    ["--base", "org/a", "--donor", "hf:org/b@c", "--gpu", "cpu", "--batch-tokens", "4096", "--memory", "resident"],
    ["--evaluator", FACTORY, *SMALL],
]


@pytest.mark.parametrize("flags", SOME, ids=" ".join)
def test_settings_given_back_are_the_same(flags: list[str], tmp_path: Path, printed: Printed) -> None:
    first, text = printed(*flags)
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert printed("--config", str(file)) == (first, text)
    (tmp_path / "with-dashes.yaml").write_text(
        "".join(f"{k.replace('_', '-')}: {json.dumps(v)}\n" for k, v in first.items())
    )
    assert printed("--config", str(tmp_path / "with-dashes.yaml")) == (first, text)


def test_settings_are_complete_and_hold_no_more_than_settings(printed: Printed) -> None:
    actions = run_search._make_parser(argparse.ArgumentParser)._actions
    options = {name for action in actions for name in action.option_strings}
    dests = {name.lstrip("-").replace("-", "_") for name in options if name.startswith("--")}
    here = set(printed("--gpu", "cpu")[0])
    elsewhere = set(printed("--evaluator", FACTORY)[0])
    told = here | elsewhere | {"preset", "output_dir", "base", "donor", "max_full_mmlu"}
    assert dests - told == {"help", "config", "print_config", "dry_run", "join", "retry_failed"}
    assert "evaluator" not in here
    assert "pair" not in elsewhere


def test_every_value_of_the_configuration_is_printed_and_read(tmp_path: Path, printed: Printed) -> None:
    names = {field.name for field in dataclasses.fields(SearchConfig)}
    found = printed("--gpu", "cpu")[0]
    assert not names - set(found)
    (tmp_path / "s.yaml").write_text("tournament: 5\nplausible: 0.25\n")
    changed = printed("--gpu", "cpu", "--config", str(tmp_path / "s.yaml"))[0]
    assert changed == found | {"tournament": 5, "plausible": 0.25}
    assert printed("--gpu", "cpu", "--config", str(tmp_path / "s.yaml"), "--tournament", "4")[0]["tournament"] == 4


def test_a_run_is_made_again_from_its_folder_with_the_same_result(tmp_path: Path, printed: Printed) -> None:
    (tmp_path / "elite.json").write_text("[[2, 0], [9]]")
    (tmp_path / "scores.csv").write_text("layers,mmlu_acc\n" + "".join(f"{i},0.{30 + i}\n" for i in range(12)))
    flags = ["--evaluator", FACTORY, *SMALL, "--seed", "4", "--forbid", "11", "--window", "0:10"]
    flags += ["--elite", str(tmp_path / "elite.json"), "--single-layer-scores", str(tmp_path / "scores.csv")]
    assert _run(*flags, "--output-dir", str(tmp_path / "first")) == 0
    for name in ("elite.json", "scores.csv"):
        (tmp_path / name).unlink()
    for number, source in enumerate(("first", "first/config.json")):
        again = tmp_path / f"again {number}"
        assert _run("--config", str(tmp_path / source), "--output-dir", str(again)) == 0
        assert _outcome(again) == _outcome(tmp_path / "first")
        configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "first", again)]
        assert configs[0]["run"] == configs[1]["run"]
        assert configs[0]["settings"] == configs[1]["settings"]
    assert _run("--config", str(tmp_path / "first"), "--output-dir", str(tmp_path / "first")) == 0  # it is that run
    assert printed("--config", str(tmp_path / "first"))[0]["elite"] == [[0, 2], [9]]


def _outcome(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("search_result_*.json")
    document = json.loads(path.read_text())
    for stage in document["usage"].values():
        del stage["seconds"]
    return {name: value for name, value in document.items() if name not in ("timestamp", "versions")}


def test_the_bundled_pair_is_searched_again_from_a_folder(tmp_path: Path) -> None:
    small = "--strategy greedy --window 0:3 --max-layers 2 --fast-limit 2 --full-limit 4 --holdout 0 --max-passes none"
    assert _run(*small.split(), "--gpu", "cpu", "--output-dir", str(tmp_path / "first")) == 0
    assert _run("--config", str(tmp_path / "first"), "--output-dir", str(tmp_path / "second")) == 0
    assert _outcome(tmp_path / "first") == _outcome(tmp_path / "second")


def test_flags_then_environment_then_file_then_preset_then_default(
    tmp_path: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("preset: full\npair: llamba-1b\ngenerations: 7\nseed: 5\nfull_limit: null\ntasks: [tiny]\n")
    found = printed("--gpu", "cpu", "--config", str(file), "--seed", "6")[0]
    assert (found["population"], found["generations"], found["seed"]) == (40, 7, 6)
    assert (found["full_limit"], found["tasks"], found["pair"], found["elite"]) == ("none", ["tiny"], "llamba-1b", None)
    monkeypatch.setenv("DONOR", "hf:org/other")
    monkeypatch.setenv("PAIR", "tiny")
    assert printed("--gpu", "cpu", "--config", str(file))[0]["pair"] == "tiny/base:hf:org/other"
    assert printed("--gpu", "cpu", "--config", str(file), "--pair", "llamba-3b")[0]["pair"] == "llamba-3b"


def test_who_says_where_it_runs_says_all_of_it(tmp_path: Path, printed: Printed) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("cpu_workers: 2\n")
    assert printed("--config", str(file))[0]["cpu_workers"] == 2
    found = printed("--config", str(file), "--gpu=cpu")[0]
    assert (found["cpu_workers"], found["gpu"]) == (None, "cpu")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("populaton: 20", "line 1: there is no setting 'populaton'; the nearest is 'population', and --help lists all"),
        ("seed: 1\nfull limit: 3", "line 2: there is no setting 'full limit'; the nearest is 'full_limit'"),
        ("dry_run: true", "there is no setting 'dry_run'; the nearest is"),
        ("population: many", "line 1: population: 'many' cannot be (invalid int value: 'many')"),
        ("population: 2.5", "population: '2.5' cannot be (invalid int value: '2.5')"),
        ("population: yes", "population: 'yes' cannot be (invalid int value: 'yes')"),
        ("population: [20]", "population: a list cannot be (one value is wanted)"),
        ("population: {a: 1}", "population: a mapping cannot be (one value is wanted)"),
        ("max-passes: lots", "max-passes: 'lots' cannot be ('lots' is neither a number nor none)"),
        ("dtype: float64", "dtype: 'float64' cannot be (invalid choice: 'float64'"),
        ("window: 8-23", "window: '8-23' cannot be ('8-23' is not FIRST:LAST, such as 8:23)"),
        ("forbid: [a]", "forbid: a list cannot be ('a' names no layers; give them like 13,17)"),
        ("elite: [[[1]]]", "elite: a list cannot be (it is nested too deep)"),
        ("elite: [[1, 1]]", "elite: a list cannot be ('1+1' is no list of layer sets like 11+13,17 (layer 1 is named"),
        (
            "single_layer_scores: {0: 51}",
            "single_layer_scores: a mapping cannot be ('0:51': 0: '51' is not a layer with",
        ),
        ("tasks: [mmlu, --dry-run]", "tasks: a list cannot be ('--dry-run' is a flag, not a value)"),
        ("log_to: [mlflow]", "log_to: a list cannot be ('mlflow' is nothing to log to; known are"),
        ("seed: 1\nseed: 2", "line 2: seed is given twice; keep one"),
        ("max_passes: 2\nmax-full-mmlu: 2", "line 2: max-full-mmlu is given twice; keep one"),
        ("tournament: 0", "--tournament must be at least 1, got 0 (with the settings in "),
        ("doubt: 2", "--doubt must be between 0 and 1, got 2.0"),
        ("population: 0", "--population must be at least 1, got 0 (with the settings in "),
        ("- population: 20", "holds no settings; write them as `population: 20`, one a line"),
        ("population 20", "holds no settings; write them as `population: 20`, one a line"),
        ("[1]: 2", "holds no settings"),
        ("a: b: c", "line 1 is not YAML (mapping values are not allowed here); write settings as `population: 20`"),
        ("\tseed: 1", "is not YAML ("),
        ("seed: *x", "is not YAML (found undefined alias 'x')"),
        ("[" * 3000, "is not YAML (RecursionError)"),
        ('{"format": 1, "run": {}, "command": []}', "is of a search that kept no settings (an older version)"),
    ],
)
def test_what_cannot_be_in_a_file_is_one_line_that_names_it(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    assert _run("--config", str(file), "--dry-run", "--evaluator", FACTORY) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert str(file) in err
    assert err.startswith("run_search: error: ")
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "--config {} does not exist; check the path"),
        (lambda path: path.mkdir(), "--config {}/config.json does not exist; check the path"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "--config {} is not a text file ("),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    make: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "s")
    assert _run("--config", str(tmp_path / "s")) == 2
    assert told.format(tmp_path / "s") in capsys.readouterr().err


def test_an_empty_file_says_nothing(tmp_path: Path, printed: Printed) -> None:
    (tmp_path / "s").write_text("# seed: 3\n")
    assert printed("--config", str(tmp_path / "s"), "--gpu", "cpu") == printed("--gpu", "cpu")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)
_SETTINGS = st.dictionaries(st.sampled_from(["seed", "elite", "tasks", "window", "x"]), _VALUES, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | _SETTINGS.map(yaml.safe_dump))
def test_no_file_ends_in_a_traceback(text: str, tmp_path: Path) -> None:
    (tmp_path / "s").write_text(text, encoding="utf-8", errors="replace")
    assert _run("--config", str(tmp_path / "s"), "--evaluator", FACTORY, "--print-config") in (0, 2)


def test_an_unknown_flag_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--populaton", "3") == 2
    assert "unrecognized arguments: --populaton 3; the nearest is --population; --help lists" in capsys.readouterr().err
