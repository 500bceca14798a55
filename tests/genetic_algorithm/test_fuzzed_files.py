"""Files of a run folder, and those that options name, damaged in every way: a value, or one line that says which file.

tests/fuzzing.py says how to run them for longer.
"""

from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from evaluation.entry import run_tool
from genetic_algorithm import LayerSet, SearchError, SearchSpace, run_folder, run_search
from genetic_algorithm.observers import Observers
from genetic_algorithm.prior_knowledge import check_scores, read_elite, read_single_scores
from tests.fuzzing import NESTED, Damage, Refused, always, damaged, damaged_json, fuzz, put, read
from tests.genetic_algorithm.conftest import FACTORY, SMALL

RUN = {
    "evaluator": {"factory": FACTORY},
    "search": {"seed": 0, "holdout": 0.25, "strategy": "ga", "must_include": []},
    "single_layer_scores": {"0": 0.5, "1": 0.25},
    "elite": [[0, 2]],
}
CONFIG = {"format": 1, "timestamp": "20260101_100000", "run": RUN, "command": ["run_search"], "versions": {}}


pytestmark = pytest.mark.usefixtures("no_drawings")  # which a finished run makes anew where its result was written


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that is over."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIM_QUESTIONS", "70")
        patch.setitem(sys.modules, "matplotlib", None)  # drawings take longer than the search
        assert run_search.main([*COMMAND, str(folder)]) == 0
    return folder


COMMAND = ["--evaluator", FACTORY, *SMALL, "--output-dir"]


@fuzz(20)
@always(NESTED, *(json.dumps({**CONFIG, "timestamp": odd}).encode() for odd in ("../x", "a\0b", "9" * 300)))
@given(content=damaged_json(CONFIG))
def test_fuzzed_config(tmp_path: Path, content: Damage) -> None:
    path = tmp_path / "config.json"
    put(path, content)
    found = read(lambda: run_folder._take_up(tmp_path, RUN), path, SearchError)
    if not isinstance(found, Refused):
        assert found.result.parent == tmp_path
        assert not found.result.exists()


@pytest.mark.usefixtures("quiet")
@fuzz(20)
@given(content=damaged_json(CONFIG))
def test_fuzzed_config_before_anything_is_loaded(tmp_path: Path, content: Damage) -> None:
    put(tmp_path / "config.json", content)
    found = read(lambda: run_folder.peek(tmp_path, RUN), tmp_path / "config.json", SearchError)
    assert found is None or isinstance(found, Refused)


@pytest.fixture
def quiet(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    return capsys


def result_of(folder: Path) -> Path:
    (path,) = folder.glob("search_result_*.json")
    return path


@pytest.fixture(scope="module")
def whole_result(finished: Path) -> dict[str, Any]:
    return json.loads(result_of(finished).read_text())


def spelled_with(document: dict[str, Any], field: str, value: Any) -> bytes:
    """A result with one field of its leader changed."""
    leader, *others = document["final_results"]
    return json.dumps({**document, "final_results": [{**leader, field: value}, *others]}).encode()


def test_fuzzed_result(
    finished: Path, whole_result: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The command given once more tells what was found, or that the file is damaged."""
    path = result_of(finished)
    small = {**whole_result, "final_results": whole_result["final_results"][:2]}
    told = {name: small[name] for name in ("final_results", "base", "usage", "ranked_by", "conclusion")}

    @fuzz(40)
    @always(
        NESTED,
        None,
        *(
            spelled_with(told, field, value)
            for field, value in (("layers", None), ("layers", ""), ("accuracy", 10**400))
        ),
    )
    @given(content=damaged_json(told))
    def holds(content: Damage) -> None:
        put(path, content)
        sys.stderr.reconfigure(errors="backslashreplace")  # as it is but for the capturing of tests
        code = run_tool("run_search", run_search.main, [*COMMAND, str(finished)])
        out, err = capsys.readouterr()
        if code == 0:
            assert isinstance(json.loads(out)["layers"], list)
        else:
            assert code == (1 if content is None else 2), err
            assert out == ""
            (line,) = err.splitlines()
            assert line.startswith(f"run_search: error: {path}")

    try:
        holds()
    finally:
        put(path, json.dumps(whole_result).encode())


HOLDER = {"host": "node7", "pid": 123, "since": "20260101_100000"}


@fuzz(20)
@always(NESTED, b'{"host": "two\\nlines", "pid": 1, "since": ""}')
@given(content=damaged_json(HOLDER))
def test_fuzzed_holder(tmp_path: Path, content: Damage) -> None:
    """Whoever holds the folder, and whatever it wrote of itself, the second search is refused in a line."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    put(tmp_path / "holder.json", content)
    with (tmp_path / "config.json").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = read(lambda: run_folder.peek(tmp_path, RUN), tmp_path / "config.json", SearchError)
    assert isinstance(found, Refused)
    assert found.startswith("another search is running in")


@fuzz(20)
@always(NESTED, b'{"steps": {}, "wandb_run": ""}', b'{"steps": {"wandb": Infinity}, "wandb_run": "5f"}')
@given(content=damaged_json({"steps": {"tensorboard": 700, "wandb": 12}, "wandb_run": "5f0c1a2b"}))
def test_fuzzed_record_of_observers(tmp_path: Path, content: Damage) -> None:
    put(tmp_path / "log_to.json", content)
    observers = Observers([], tmp_path / "log_to.json", {})
    assert all(isinstance(step, int) for step in observers._steps.values())
    assert isinstance(observers._run_id, str)
    assert observers._run_id
    observers.log(800, {"best": 0.5})


SCORES = {str(i): round(0.3 + 0.01 * i, 2) for i in range(6)}
CSV = "layers,mmlu_acc,stderr\r\n" + "".join(f"{i},{s},0.01\r\n" for i, s in SCORES.items()) + '"1+2",0.5,0.02\r\n'


def scores_are_scores(path: Path, content: Damage) -> None:
    put(path, content)

    def used() -> dict[int, float]:
        scores = read_single_scores(path)
        check_scores(scores, 6, path)
        return scores

    found = read(used, path, SearchError)
    if not isinstance(found, Refused):
        assert set(found) == set(range(6))
        assert all(isinstance(score, float) and 0 <= score <= 1 for score in found.values())


@fuzz(26)
@always(NESTED, b'{"0": 1' + b"0" * 400 + b"}")
@given(content=damaged_json(SCORES))
def test_fuzzed_single_scores_in_json(tmp_path: Path, content: Damage) -> None:
    scores_are_scores(tmp_path / "scores.json", content)


@fuzz(26)
@always(b'layers,mmlu_acc\r\n"1\n2",0.5\r\n')
@given(content=damaged(CSV.encode()))
def test_fuzzed_single_scores_in_csv(tmp_path: Path, content: Damage) -> None:
    scores_are_scores(tmp_path / "scores.csv", content)


def elite_is_layer_sets(path: Path, content: Damage) -> None:
    put(path, content)
    found = read(lambda: read_elite(path), path, SearchError)
    if not isinstance(found, Refused):
        assert found
        space = SearchSpace(12, 0, 12)
        for layers in found:
            assert isinstance(layers, LayerSet)
            assert all(type(layer) is int for layer in layers)
            read(lambda layers=layers: space.check(layers), path, SearchError) if space.contains(layers) else None


@fuzz(26)
@always(NESTED)
@given(content=damaged_json([[11, 3], [0], [], [2, 5, 7]]))
def test_fuzzed_elite_of_lists(tmp_path: Path, content: Damage) -> None:
    elite_is_layer_sets(tmp_path / "elite.json", content)


@fuzz(26)
@given(content=damaged_json({"final_results": [{"rank": 1, "layers": [2, 9]}, {"rank": 2, "layers": [2]}]}))
def test_fuzzed_elite_of_a_result(tmp_path: Path, content: Damage) -> None:
    elite_is_layer_sets(tmp_path / "elite.json", content)
