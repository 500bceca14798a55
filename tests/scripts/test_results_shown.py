"""What check_results.sh shows of a finished search, to people and to machines."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from scripts.run_folders.__main__ import main
from tests.scripts.test_run_folders import STAMP, make_run, write_result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "results" / "real_1")


def test_no_result_yet_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "--dir", str(folder.parent)]) == 1
    assert capsys.readouterr().out == f"{folder}: no result yet; scripts/monitor_progress.sh shows how far it is\n"
    assert main(["results", "--json", "--dir", str(folder.parent)]) == 1
    assert json.loads(capsys.readouterr().out) == {"finished": [], "unfinished": [str(folder)]}


def test_a_result_is_shown_with_what_it_establishes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    donor = {"layers": [*range(12)], "accuracy": 0.99, "standard_error": 0.004, "questions": 1024, "part": "holdout"}
    donor |= {"holdout_accuracy": 0.99, "holdout_standard_error": 0.004}
    document = write_result(folder, donor=donor)
    assert main(["results", str(folder)]) == 0
    lines = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["rank", "layers", "estimate", "accuracy", "questions", "hold-out"]
    assert lines[2] == ["1", "2+9", "0.7900", "0.8000 +- 0.0200", "400", "0.7800"]
    assert lines[3] == ["base", "none", "-", "0.4000 +- 0.0500", "96", "-"]
    assert lines[4] == ["donor", "all", "-", "-", "-", "0.9900 +- 0.0040"]  # the hold-out did not choose
    assert lines[-2:] == [["rank: by the estimate."], ["2+9 it is."]]
    assert main(["results", "--json", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["finished"][0]["report"] is None
    (folder / "report.html").touch()
    assert main(["results", "--json", str(folder)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    (found,) = json.loads(line)["finished"]
    assert (found["layers"], found["accuracy"], found["run"]) == ([2, 9], 0.8, str(folder))
    assert (found["questions"], found["holdout_accuracy"]) == (400, 0.78)
    script = (Path(__file__).parents[2] / "scripts" / "check_results.sh").read_text()
    described = script.partition("--json: one line")[2].partition("examples:")[0]
    assert not [name for name in found if name not in described]
    assert found["report"] == str(folder / "report.html")
    assert (found["final_results"], found["conclusion"]) == (document["final_results"], "2+9 it is.")
    for name in ("ranked_by", "conclusion"):
        del document[name]  # as in results of before there were these
    del document["final_results"][0]["estimate"], document["final_results"][0]["full_accuracy"]
    (folder / f"search_result_{STAMP}.json").write_text(json.dumps(document))
    assert main(["results", str(folder)]) == 0
    assert "estimate" not in capsys.readouterr().out


@pytest.mark.parametrize(("pair", "makes"), [("tiny", True), (None, False)])
def test_what_is_shown_ends_with_the_report_and_before_it_the_next_step(
    pair: str | None, makes: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "a run")
    write_result(folder, evaluator={"pair": pair})
    (folder / "report.html").touch()
    assert main(["results", str(folder)]) == 0
    *_, before, last = capsys.readouterr().out.splitlines()
    assert last == f"  report: {folder / 'report.html'}"
    assert ("--from_result" in before) == makes
    if makes:
        result = str(folder / f"search_result_{STAMP}.json")
        assert shlex.split(before)[-4:] == ["--from_result", result, "--output_dir", "model_checkpoints/best"]


def test_notes_of_several_are_told_once_and_last(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = [make_run(folder.with_name(name)) for name in ("real_2", "real_3")]
    for run in (folder, *others):
        write_result(run)
    assert main(["results", "--all", "--dir", str(folder.parent)]) == 0
    shown = capsys.readouterr().out
    *_, accuracy, ranked_by = shown.splitlines()
    assert accuracy.startswith("accuracy: on questions by which sets were chosen")
    assert ranked_by == "rank: by the estimate."
    assert shown.count(accuracy) == shown.count(ranked_by) == 1
    assert shown.count("2+9 it is.") == 3
    write_result(others[1], ranked_by="rank: by lot.")
    assert main(["results", "--all", "--dir", str(folder.parent)]) == 0
    *_, first, last = capsys.readouterr().out.splitlines()
    assert (first, last) == (f"{folder}, {others[0]}: rank: by the estimate.", f"{others[1]}: rank: by lot.")


def test_a_damaged_result_does_not_hide_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_run(folder.with_name("real_2"))
    (folder / f"search_result_{STAMP}.json").write_text("{")
    write_result(other)
    assert main(["results", "--all", "--json", "--dir", str(folder.parent)]) == 2
    assert [run["run"] for run in json.loads(capsys.readouterr().out)["finished"]] == [str(other)]
