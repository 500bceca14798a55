"""The report of a run that goes on, is killed, resumed, or has no place to be written."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genetic_algorithm import run_folder
from genetic_algorithm.report import live
from genetic_algorithm.report.figures import drawn
from genetic_algorithm.report.page import render
from genetic_algorithm.report.reading import RunDocuments, paths_of
from tests.genetic_algorithm.conftest import CommandLine
from tests.genetic_algorithm.report.runs import EVALUATOR, Page, Told


class Clock:
    """Time that passes when it is told to, and as long as a drawing takes."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module", autouse=True)
def _ready_to_draw() -> None:
    """So that no copy of this process has to import matplotlib and to find its fonts once more."""
    drawn("any", "", 100, lambda figure: figure.subplots())


@pytest.fixture
def paths(tmp_path: Path) -> run_folder.RunPaths:
    found = run_folder.RunPaths(tmp_path, "20260102_030405")
    search = json.loads(json.dumps(vars(Told().config)))
    document = {"timestamp": found.timestamp, "run": {"evaluator": EVALUATOR, "search": search}}
    run_folder.write_json(found.config, document)
    return found


def watched(told: Told, report: live.LiveReport) -> Iterator[None]:
    """Answer requests one by one, and tell the report."""
    while request := told.search.ask():
        told.step()
        report.note(request, told.done, {request.stage: 1.0}, None)
        yield


def test_it_is_refreshed_no_sooner_than_a_hundred_times_what_it_took(
    paths: run_folder.RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, clock, drawn = Told(), Clock(), list[float]()

    def draw(_: Any) -> None:
        drawn.append(clock.now)
        clock.now += 0.5

    monkeypatch.setattr(live, "write", draw)
    report = live.LiveReport(paths, told.search, told.document, clock)
    for _ in watched(told, report):
        clock.now += 20
    assert drawn[0] == 1020  # the first after 10 s
    gaps = np.diff(drawn)
    assert len(gaps) > 1
    assert (gaps >= 50.5).all()
    assert (gaps <= 70.5).all()
    assert json.loads(paths.report_data.read_text())["is_over"] is False
    report.finish()
    assert json.loads(paths.report_data.read_text())["is_over"] is True


def test_a_quick_refresh_still_waits_ten_seconds(paths: run_folder.RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    told, clock, drawn = Told(), Clock(), list[float]()
    monkeypatch.setattr(live, "write", lambda _: drawn.append(clock.now))
    report = live.LiveReport(paths, told.search, told.document, clock)
    for _ in watched(told, report):
        clock.now += 4
    assert set(np.diff(drawn)) == {12.0}


@pytest.mark.usefixtures("no_drawings")
def test_a_resumed_search_does_not_take_the_report_back(paths: run_folder.RunPaths) -> None:
    clock, first = Clock(), Told()
    report = live.LiveReport(paths, first.search, first.document, clock)
    steps = watched(first, report)
    for _ in range(8):
        clock.now += 1000
        next(steps)
    before, reached = paths.report.read_text(), first.done
    again = Told()
    resumed = live.LiveReport(paths, again.search, again.document, clock)
    for _ in watched(again, resumed):
        clock.now += 1000
        if again.done <= reached:
            assert paths.report.read_text() == before
        else:
            assert paths.report.read_text() != before
            break


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_what_cannot_be_written_is_told_once_and_ends_nothing(
    number: int, paths: run_folder.RunPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    told, clock = Told(), Clock()
    monkeypatch.setattr(run_folder, "write_text", refuse)
    report = live.LiveReport(paths, told.search, told.document, clock)
    with caplog.at_level(logging.WARNING):
        for _ in watched(told, report):
            clock.now += 1000
        report.finish()
        report.draw()
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("the report cannot be written (")
    assert os.strerror(number) in line
    assert told.document() == Told().finish().document()


def test_a_log_on_the_same_full_disk_ends_nothing_either(
    paths: run_folder.RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    told = Told().finish()
    monkeypatch.setattr(run_folder, "write_text", refuse)
    monkeypatch.setattr(live._log, "warning", refuse)
    report = live.LiveReport(paths, told.search, told.document)
    report.finish()
    report.draw()


def test_a_fault_of_our_own_ends_nothing(
    paths: run_folder.RunPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told().finish()
    monkeypatch.setattr(live, "collect", lambda *_: 1 / 0)
    live.LiveReport(paths, told.search, told.document).finish()
    assert "the report cannot be written (ZeroDivisionError: division by zero)" in caplog.text


def test_ctrl_c_while_it_draws_is_not_swallowed(paths: run_folder.RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    told = Told().finish()
    monkeypatch.setattr(live, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        live.LiveReport(paths, told.search, told.document).draw()


def test_without_matplotlib_it_is_told_how_to_get_it(
    paths: run_folder.RunPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told().finish()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    report = live.LiveReport(paths, told.search, told.document)
    report.finish()
    run_folder.write_json(paths.result, told.document())
    report.draw()
    report.draw()
    assert caplog.text.count("pip install matplotlib") == 1
    assert "matplotlib is not installed here" in paths.report.read_text()


def timeless(value: Any) -> Any:
    """A document without times."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "timestamp", "versions")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def page_of(folder: Path) -> str:
    """The report that a run wrote, which must be the one its documents give, drawn anew without times."""
    documents = RunDocuments.read(paths_of(folder))
    assert (folder / "report.html").read_text() == render(documents)
    assert documents.result is not None
    result = timeless(documents.result)
    for stage in result["usage"].values():
        stage["seconds"] = 0.0
    paths = run_folder.RunPaths(Path("/runs/mine"), "20260102_030405")
    config = {"run": documents.config["run"], "command": []}
    return render(replace(documents, paths=paths, config=config, result=result, data=timeless(documents.data)))


def test_killed_and_resumed_the_report_is_that_of_an_undisturbed_search(command_line: CommandLine) -> None:
    done = command_line.run(out="undisturbed")
    assert done.returncode == 0, done.stderr
    journal = command_line.folder / "run" / "journal.jsonl"
    for lines in (10, 30, 50):
        process = command_line.fork(SIM_SLEEP_S="0.003")
        until = time.monotonic() + 30
        while (not journal.exists() or journal.read_bytes().count(b"\n") < lines) and time.monotonic() < until:
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert not list((command_line.folder / "run").glob("search_result_*"))
    done = command_line.run()
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    report = command_line.folder / "run" / "report.html"
    assert last["report"] == str(report)
    assert f"report: {report}" in done.stderr
    assert page_of(report.parent) == page_of(command_line.folder / "undisturbed")
    assert not [path for path in report.parent.iterdir() if path.name.startswith(".")]


def test_killed_before_its_last_drawing_it_is_drawn_when_the_command_is_given_again(command_line: CommandLine) -> None:
    assert command_line.run().returncode == 0
    report = command_line.folder / "run" / "report.html"
    page = report.read_text()
    report.unlink()
    again = command_line.run()
    assert "finished already" in again.stderr
    assert report.read_text() == page
    assert json.loads(again.stdout.splitlines()[-1])["report"] == str(report)


def test_a_folder_in_its_place_is_told_and_the_search_ends_well(command_line: CommandLine) -> None:
    process = command_line.fork(SIM_SLEEP_S="0.01")
    journal = command_line.folder / "run" / "journal.jsonl"
    while not journal.exists():
        time.sleep(0.002)
    (journal.parent / "report.html").mkdir()
    _, status = os.waitpid(process, 0)
    output = (command_line.folder / "output").read_text()
    assert os.waitstatus_to_exitcode(status) == 0, output
    assert len(re.findall("the report cannot be written", output)) == 1
    assert list(journal.parent.glob("search_result_*"))


def test_of_several_failed_sets_it_tells_and_is_well_formed(command_line: CommandLine) -> None:
    assert command_line.run(SIM_BROKEN="3,2+9").returncode == 0
    text = Page((command_line.folder / "run" / "report.html").read_text()).text
    assert "could not be evaluated" in text
