from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given

from evaluation.entry import run_tool
from genetic_algorithm import run_folder
from genetic_algorithm.report.__main__ import main
from genetic_algorithm.run_folder import RunPaths
from tests.fuzzing import NESTED, Damage, altered_json, always, damaged_json, fuzz, put, spelled
from tests.genetic_algorithm.report.runs import EVALUATOR, Page, Told


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that is over."""
    folder = tmp_path_factory.mktemp("runs") / "it's mine"
    folder.mkdir()
    told = Told().finish()
    documents = told.documents(is_over=True)
    paths = RunPaths(folder, "20260102_030405")
    run_folder.write_json(paths.config, documents.config)
    run_folder.write_json(paths.result, told.document())
    run_folder.write_json(paths.report_data, documents.data or {})
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the tool refuses."""
    assert run_tool("report", main, [str(argument) for argument in arguments]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1, found.err
    assert found.err.startswith("report: error: ")
    return found.err


def test_it_writes_the_page_of_one_run_without_models(run: Path) -> None:
    command = [sys.executable, "-m", "genetic_algorithm.report", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"report": str(run / "report.html"), "runs": [str(run)]}
    Page((run / "report.html").read_text())


def test_output_and_several_runs(
    finished: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(run), "--output", "elsewhere.html"]) == 0
    assert "Best layers" in (tmp_path / "elsewhere.html").read_text()
    assert not (run / "report.html").exists()
    assert main(["run", str(finished)]) == 0
    page = (tmp_path / "comparison.html").read_text()
    assert "2 searches compared" in page
    assert "these runs have the same settings" in page
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["report"] == str(tmp_path / "comparison.html")


def test_folders_that_are_no_search(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not the folder of a search" in refused(capsys, tmp_path / "nothing")
    assert "is not the folder of a search" in refused(capsys, run / "config.json")
    (tmp_path / "empty").mkdir()
    assert "is not the folder of a search" in refused(capsys, run, tmp_path / "empty")
    assert f"{run} is named twice" in refused(capsys, run, run)


def test_a_run_that_has_just_begun(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.json").unlink()
    next(run.glob("search_result_*")).unlink()
    line = refused(capsys, run)
    assert "no report.json and no result yet" in line
    assert "give its command again" in line


def test_a_place_that_cannot_be_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("report", main, [str(run), "--output", str(tmp_path / "no" / "page.html")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{tmp_path / 'no' / 'page.html'}: No such file or directory" in err


@pytest.mark.parametrize("name", ["config.json", "report.json", "search_result_20260102_030405.json"])
def test_no_damage_makes_a_traceback(
    name: str, finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # drawing takes long
    path = run / name

    @fuzz(80)
    @always(None, NESTED)
    @given(content=damaged_json(json.loads(path.read_bytes())))
    def holds(content: Damage) -> None:
        put(path, content)
        for more in ([], [str(finished), "--output", str(run / "comparison.html")]):
            code = run_tool("report", main, [str(run), *more])
            err = capsys.readouterr().err
            assert code in (0, 1, 2), err  # 1: the timestamp makes no name of a file, or a folder lies there
            assert err.count("\n") == (code != 0), err
            assert code == 0 or str(run) in err

    holds()


def test_drawings_of_values_that_cannot_be_are_left_out_or_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "report.json"

    @fuzz(6)
    @given(changed=altered_json(json.loads(path.read_bytes())))
    def holds(changed: object) -> None:
        path.write_bytes(spelled(changed))
        code = run_tool("report", main, [str(run)])
        err = capsys.readouterr().err
        assert code in (0, 2), err
        assert err.count("\n") == (code == 2), err

    holds()


def test_what_is_made_of_an_unfinished_run(tmp_path: Path) -> None:
    told = Told()
    for _ in range(3):
        told.step()
    documents, paths = told.documents(is_over=False), RunPaths(tmp_path, "20260102_030405")
    run_folder.write_json(paths.config, documents.config)
    run_folder.write_json(paths.report_data, documents.data or {})
    assert main([str(tmp_path)]) == 0
    page = paths.report.read_text()
    assert "This search is not over" in page
    assert EVALUATOR["pair"] in page
