"""Ranks, their correlation and their ties: what the comparison of precisions rests on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation.entry import run_tool
from genetic_algorithm import LayerSet


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "fp8_ranking.py"
    spec = importlib.util.spec_from_file_location("fp8_ranking", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fp8_ranking"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fp8_ranking"]


def scored(tool, right, margins, questions=100):
    """Sets 0, 1, ... that answer the first `right` questions."""
    correct_SQ = np.arange(questions) < np.array(right)[:, None]
    return tool.Scored([LayerSet((i,)) for i in range(len(right))], correct_SQ, np.array(margins, float), 1.0)


def test_equal_values_share_the_mean_of_their_ranks(tool):
    assert tool.ranks(np.array([3.0, 1.0, 3.0, 3.0, 0.0])).tolist() == [4, 2, 4, 4, 1]


def test_spearman(tool):
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert tool.spearman(a, 10**a) == pytest.approx(1)
    assert tool.spearman(a, -a) == pytest.approx(-1)
    assert tool.spearman(a, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    # By hand: ranks 1, 2.5, 2.5, 4 beside 1, 2, 3, 4 correlate by 4.5 / sqrt(4.5 * 5).
    assert tool.spearman(np.array([1.0, 2.0, 2.0, 3.0]), a) == pytest.approx(4.5 / np.sqrt(22.5))
    assert tool.spearman(np.ones(4), a) is None


def test_margins_break_ties_of_accuracy_and_sets_that_tie_in_both_share_a_place(tool):
    assert scored(tool, [50, 60, 60, 60, 40], [9, 1, 2, 1, 9]).place_S.tolist() == [4, 2.5, 1, 2.5, 5]


def test_flips_are_counted_both_ways(tool):
    a, b = scored(tool, [50, 60], [0, 0]), scored(tool, [53, 58], [0, 0])
    found = tool.compare(a, b)
    assert found["flips_per_thousand"] == pytest.approx(1000 * 5 / 200)
    assert found["accuracy_difference_mean"] == pytest.approx(-0.005)
    assert found["accuracy_difference_mean_absolute"] == pytest.approx(0.025)
    assert found["accuracy_difference_largest"] == pytest.approx(0.03)


def test_the_best_are_looked_up_in_the_other_ranking(tool):
    right = list(range(99, 69, -1))
    other = right.copy()
    other[0] = right[17]  # the best falls behind: 18th or 17th place, as its margin is the smaller one
    stand = tool.top(scored(tool, right, [0] * 30), scored(tool, other, [-1] + [0] * 29))
    assert len(stand) == tool.TOP
    assert stand[0] == {"layers": "0", "reference": 0.99, "other": 0.82, "place": 18, "places": [17, 18]}
    assert [entry["place"] for entry in stand[1:3]] == [1, 2]


def test_float32_and_bfloat16_on_a_few_questions(tool, capsys):
    given = ["--pair", "tiny", "--limit", "2", "--random", "3", "--precisions", "float32", "bfloat16"]
    assert tool.main(given) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert found["questions"] == 8
    assert found["sets"] >= 3
    assert found["beside"]["bfloat16 / float32"]["flips_per_thousand"] < 200
    assert "| Spearman of accuracies |" in printed


@pytest.mark.parametrize("given", [["--precisions", "fp8", "float32"], ["--limit", "0"]])
def test_refuses_what_compares_nothing(tool, given, capsys):
    assert run_tool("fp8_ranking.py", tool.main, given) == 2
    assert given[0] in capsys.readouterr().err
