"""What is shown of searches that run, were stopped, or are damaged."""

from __future__ import annotations

import fcntl
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import ROOT

LOG = """2026-01-01 10:00:00 I search in here
2026-01-01 10:01:00 I stage 1, generation 1: 18 sets x 128 questions in 2.0 s; best 2+9 0.8100 +- 0.0200 \
(128 questions); about 1 min left, at most 3 min 10 s
2026-01-01 10:01:00 I something else
"""


def load() -> ModuleType:
    """The script as a module; scripts/ is no package."""
    import sys

    spec = importlib.util.spec_from_file_location("run_folders", ROOT / "scripts" / "run_folders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_folders"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run_folders = load()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A search that was stopped in the midst of a journal line."""
    folder = tmp_path / "results" / "real_1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "search_log_1.txt").write_text(LOG)
    lines = [
        {"journal": 1, "header": {}},
        {"set": "2+9", "questions": "0-9,20", "status": "ok"},
        {"set": "2+9", "questions": "30-32", "status": "ok"},
        {"set": "1", "questions": "0-9", "status": "failed"},
        {"set": "3", "questions": "0-9,20", "status": "ok"},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "journal.jsonl").write_text(text[:-30])
    return folder


def test_a_stopped_search(folder: Path) -> None:
    progress = run_folders.read_progress(folder)
    assert (progress.state, progress.best) == ("stopped", "2+9 0.8100 +- 0.0200 (128 questions)")
    assert (progress.layer_sets, progress.question_evaluations, progress.failures) == (1, 14, 1)
    assert progress.left == "about 1 min left, at most 3 min 10 s"
    assert "goes on when the same command is given again" in run_folders.spell_progress(progress)


def test_a_running_search_holds_its_folder(folder: Path) -> None:
    with (folder / "config.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_folders.read_progress(folder).state == "running"
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the look did not keep it


def test_no_result_yet_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_folders.main(["results", "--dir", str(folder.parent)]) == 1
    assert "no result yet" in capsys.readouterr().out


def test_a_result_is_shown_with_what_it_establishes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = {"rank": 1, "layers": [2, 9], "accuracy": 0.8, "standard_error": 0.02, "questions": 400}
    best |= {"estimate": 0.79, "holdout_accuracy": 0.78, "full_accuracy": None}
    base = {"layers": [], "accuracy": 0.4, "standard_error": 0.05, "questions": 96, "holdout_accuracy": None}
    document = {
        "final_results": [best],
        "base": base,
        "ranked_by": "rank: by the estimate.",
        "conclusion": "2+9 it is.",
    }
    path = folder / "search_result_1.json"
    path.write_text(json.dumps(document))
    assert run_folders.main(["results", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("  ")[1:3] == ["rank", "layers"]
    assert lines[2].split() == ["1", "2+9", "0.7900", "0.8000", "0.0200", "400", "0.7800"]
    assert lines[3].split() == ["base", "none", "-", "0.4000", "0.0500", "96", "-"]
    assert [line.strip() for line in lines[4:6]] == ["rank: by the estimate.", "2+9 it is."]
    for name in ("ranked_by", "conclusion"):
        del document[name]  # as in results of before there were these
    del best["estimate"], best["full_accuracy"]
    path.write_text(json.dumps(document))
    assert run_folders.main(["results", str(folder)]) == 0
    assert "estimate" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "{}", '{"final_results": []}', '{"final_results": [{"layers": [1]}]}'])
@pytest.mark.parametrize("what", ["results", "progress"])
def test_a_damaged_result_is_named(what: str, content: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "search_result_1.json").write_text(content)
    assert run_folders.main([what, str(folder)]) == 2
    error = capsys.readouterr().err
    assert "search_result_1.json is damaged" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("what", ["results", "progress"])
def test_no_search_at_all(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_folders.main([what, "--dir", str(tmp_path)]) == 2
    assert "there is no search in" in capsys.readouterr().err
    assert run_folders.main([what, str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
