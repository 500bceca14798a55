"""The comparison of benchmarks/chaos.py finds what it is there to find."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.journal import Journal
from genetic_algorithm import Answers, LayerSet
from tests.genetic_algorithm.simulator import Simulator

A, B = LayerSet((1,)), LayerSet((1, 2))
RIGHT = np.array([True, False, True, True])
MARGIN = np.array([0.5, -0.25, 1.0, 2.0], np.float32)


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    yield importlib.import_module("chaos")
    for name in ("chaos", "chaos_evaluators"):
        sys.modules.pop(name, None)


def make_run(folder: Path, lines: list[tuple[LayerSet, list[int], Answers]], accuracy: float = 0.75) -> Path:
    folder.mkdir()
    journal = Journal(folder / "journal.jsonl", {}, 10)
    for layers, questions, answers in lines:
        journal.append(layers, np.array(questions), answers, 1.0)
    document = {"timestamp": folder.name, "accuracy": accuracy, "usage": {"in_all": {"seconds": len(lines)}}}
    (folder / f"search_result_{folder.name}.json").write_text(json.dumps(document))
    return folder


def test_a_run_in_another_order_and_other_slices_is_the_same(chaos: Any, tmp_path: Path) -> None:
    whole = Answers(RIGHT, MARGIN)
    first = make_run(tmp_path / "first", [(A, [0, 1, 2, 3], whole), (B, [0, 1, 2, 3], whole)])
    halves = [Answers(RIGHT[:2], MARGIN[:2]), Answers(RIGHT[2:], MARGIN[2:])]
    second = make_run(tmp_path / "second", [(B, [0, 1, 2, 3], whole), (A, [2, 3], halves[1]), (A, [0, 1], halves[0])])
    found = chaos.compare(first, second)
    assert found["same_result"]
    assert found["answers"] == 8
    assert [found[name] for name in ("lost", "besides", "twice", "damaged", "other_answers")] == [0] * 5


def test_what_is_wrong_with_a_run_is_counted(chaos: Any, tmp_path: Path) -> None:
    whole, other = Answers(RIGHT, MARGIN), Answers(RIGHT, MARGIN + np.float32([0, 0, 0, 1]))
    first = make_run(tmp_path / "first", [(A, [0, 1, 2, 3], whole), (B, [0, 1, 2, 3], whole)])
    lines = [(A, [0, 1, 2, 3], other), (A, [3, 4, 5, 6], whole)]
    second = make_run(tmp_path / "second", lines, accuracy=0.8)
    with (second / "journal.jsonl").open("a") as file:
        file.write('{"set": "1"\n')
    found = chaos.compare(first, second)
    assert not found["same_result"]
    assert found["differs_in"] == ["accuracy"]
    assert [found[name] for name in ("lost", "besides", "twice", "damaged", "other_answers")] == [4, 3, 1, 1, 1]
    assert found["other_answers_by_kind"]["margin"] == 1


def test_work_that_was_begun_in_vain_is_counted(chaos: Any, tmp_path: Path) -> None:
    for name, lines in (
        ("quiet", "1 7 asked 100\n1 7 begins 100\n1 7 answers 100\n"),
        ("loud", "1 7 asked 100\n1 7 begins 50\n2 8 asked 110\n2 8 begins 55\n2 8"),
    ):
        (tmp_path / f"{name}.calls").write_text(lines)
    found = chaos.extra_work(tmp_path / "quiet", tmp_path / "loud")
    assert [found[name] for name in ("needed", "asked", "begun", "ended")] == [100, 210, 105, 0]
    assert [found[f"extra_{name}"] for name in ("asked", "begun", "ended")] == [1.1, 0.05, -1.0]


def test_a_set_is_begun_when_the_one_before_it_is_answered(chaos: Any, tmp_path: Path) -> None:
    evaluators = sys.modules["chaos_evaluators"]
    written = evaluators.Written(Simulator(per_subject=5), tmp_path / "calls")
    coming = written.answers([A, B], np.arange(4))
    next(coming)
    assert evaluators.calls_in(tmp_path / "calls") == (8, 4, 4)
    assert len(list(coming)) == 1
    assert evaluators.calls_in(tmp_path / "calls") == (8, 8, 8)


def test_answers_are_counted_as_a_journal_grows(chaos: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [(A, [0, 1, 2, 3], Answers(np.ones(4, bool)))])
    answered = chaos.Answered(folder)
    assert chaos.Answered(tmp_path / "none").count() == 0
    assert answered.count() == 4
    whole = (folder / "journal.jsonl").read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    (folder / "journal.jsonl").write_bytes(whole + line[:20])
    assert answered.count() == 4
    (folder / "journal.jsonl").write_bytes(whole + line + b"{}\n")
    assert answered.count() == 8
    assert answered.count() == 8
