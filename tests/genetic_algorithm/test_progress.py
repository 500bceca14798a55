"""What a search shows while it goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from genetic_algorithm import run_search
from genetic_algorithm.progress import logging_to, spell_seconds
from tests.genetic_algorithm.conftest import FACTORY, SMALL


class Terminal(io.StringIO):
    """Takes down what a terminal would show."""

    def isatty(self) -> bool:
        return True


pytestmark = pytest.mark.usefixtures("no_drawings")


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_QUESTIONS", "70")


def shown_on(stream: io.StringIO, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    assert run_search.main(["--evaluator", FACTORY, *SMALL, "--output-dir", str(folder)]) == 0
    return stream.getvalue()


def test_a_terminal_has_a_bar_with_the_lines_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_on(Terminal(), tmp_path / "run", monkeypatch)
    assert "\r" in shown
    assert "%|" in shown
    (log,) = (tmp_path / "run").glob("search_log_*.txt")
    for line in log.read_text().splitlines():
        assert line.split(" ", 3)[3] in shown  # all but time and level
    assert "%|" not in log.read_text()


def test_elsewhere_there_are_lines_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_on(io.StringIO(), tmp_path / "run", monkeypatch)
    assert "\r" not in shown
    assert "%|" not in shown
    # Not what the result will rank first: a strategy may rank by more than the score.
    assert re.search(r"; best: layers? [0-9+]+, 0\.\d+ \+- 0\.\d+ \(\d+ questions, of those asked most\); ", shown)
    (log,) = (tmp_path / "run").glob("search_log_*.txt")
    assert [line.split(" ", 3)[3] for line in log.read_text().splitlines()] == shown.splitlines()


def test_without_tqdm_a_terminal_has_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    shown = shown_on(Terminal(), tmp_path / "run", monkeypatch)
    assert "%|" not in shown
    assert "\nresult: " in shown


@pytest.mark.parametrize(
    ("seconds", "spelled"),
    [(0.4, "0 s"), (59.4, "59 s"), (190, "3 min 10 s"), (7500, "2 h 05 min"), (273_600, "3 d 4 h")],
)
def test_times_are_spelled_as_people_do(seconds: float, spelled: str) -> None:
    assert spell_seconds(seconds) == spelled


def test_a_log_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(OSError, match="log"), logging_to(tmp_path / "log"):
        pass
