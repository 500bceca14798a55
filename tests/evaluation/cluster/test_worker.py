from __future__ import annotations

import logging

import numpy as np
import pytest

from evaluation.cluster import worker as worker_module
from evaluation.cluster.worker import Worker
from genetic_algorithm import LayerSet
from tests.genetic_algorithm.simulator import Simulator

A, B = LayerSet((2,)), LayerSet((9,))


class Troubled(Simulator):
    """Warns, answers, then raises over B."""

    def answers(self, batch, questions):
        logging.getLogger("evaluation.engine").warning("%s is slow", batch[0])
        for layers in batch:
            if layers == B:
                raise RuntimeError("does\nnot fit")
            yield from super().answers([layers], questions)


def test_what_came_before_an_error_counts_and_warnings_are_told() -> None:
    worker = Worker(lambda: Troubled(per_subject=5), "cpu")
    worker.facts()
    given = worker.answers([A, B], np.arange(4))
    assert [layers for layers, _ in given.answers] == [A]
    assert given.error == "RuntimeError: does not fit"
    assert given.warnings == ["2 is slow"]
    assert worker.answers([A], np.arange(4)).error == ""
    assert worker.describe() == ({"device": "none", "memory": "0.1 GB"}, 0.0015)


def test_answers_that_take_long_are_told_in_several_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "REPLY_S", 0.0)
    worker = Worker(lambda: Troubled(per_subject=5), "cpu")
    worker.facts()
    replies = [worker.answers([A, B], np.arange(4)), worker.more()]
    assert [([layers for layers, _ in each.answers], each.error, each.is_last) for each in replies] == [
        ([A], "", False),
        ([], "RuntimeError: does not fit", True),
    ]


@pytest.mark.parametrize(
    ("other", "named"),
    [(Simulator(1, 5), "seed"), (Simulator(0, 6), "num_questions"), (Simulator(0, 5), "")],
)
def test_facts_differ_by_what_shapes_an_answer(other: Simulator, named: str) -> None:
    facts = Worker(lambda: Simulator(0, 5), "cpu").facts()
    difference = Worker(lambda: other, "cuda:0").facts().difference(facts)
    assert named in difference
    assert bool(difference) == bool(named)
