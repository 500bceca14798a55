from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.cluster.parts import MOST_SETS, Job, Part, cut
from evaluation.walk import count_layer_calls, walk
from genetic_algorithm import LayerSet, SearchSpace

DEPTH, QUESTIONS = 8, 40
TOKENS = np.random.default_rng(0).integers(20, 200, QUESTIONS).astype(np.float64)


class Counting:
    """Layers that only count how often they are run."""

    depth = DEPTH

    def __init__(self) -> None:
        self.calls = 0

    def base(self, i: int, x: None) -> None:
        self.calls += 1

    donor = base

    def fork(self, x: None) -> tuple[None, None]:
        return None, None

    def back(self, ticket: None) -> None:
        return None


def run(part: Part) -> float:
    """What a walk runs for a part: layers times tokens."""
    model = Counting()
    list(walk(model, None, part.sets))
    return model.calls * float(TOKENS[part.questions].sum())


def ends(parts: Sequence[Part], workers: int) -> float:
    """A free worker takes the next."""
    free = [0.0] * workers
    for part in parts:
        heapq.heapreplace(free, free[0] + part.price)
    return max(free)


layer_sets = st.sets(st.integers(0, DEPTH - 1), max_size=4).map(lambda s: LayerSet(tuple(sorted(s))))
question_lists = st.sets(st.integers(0, QUESTIONS - 1), min_size=1).map(lambda q: np.array(sorted(q), dtype=np.int64))
all_jobs = st.lists(st.tuples(st.lists(layer_sets, unique=True, max_size=40), question_lists), max_size=4)


@settings(deadline=None)
@given(jobs=all_jobs, workers=st.integers(1, 70))
def test_each_set_of_each_job_is_in_one_part_and_prices_are_what_a_walk_runs(jobs: list[Job], workers: int) -> None:
    parts = cut(jobs, workers, DEPTH, TOKENS)
    for _, questions in jobs:
        found = sorted(s for part in parts if part.questions is questions for s in part.sets)
        assert found == sorted(s for sets, other in jobs if other is questions for s in sets)
    assert sum(len(part.sets) for part in parts) == sum(len(sets) for sets, _ in jobs)
    assert all(part.sets for part in parts)
    assert [part.price for part in parts] == pytest.approx([run(part) for part in parts])
    prices = [part.price for part in parts]
    assert prices == sorted(prices, reverse=True)
    if workers == 1:
        assert len(parts) == sum(bool(sets) for sets, _ in jobs)


@settings(deadline=None)
@given(jobs=all_jobs, workers=st.integers(2, 70))
def test_more_parts_are_made_only_where_all_ends_sooner(jobs: list[Job], workers: int) -> None:
    one, many = cut(jobs, 1, DEPTH, TOKENS), cut(jobs, workers, DEPTH, TOKENS)
    # Each added part, and a long last one, are counted a little against a cut.
    allowed = ends(one, workers) * (1 + 0.002 * len(one) / workers) + 0.1 * max((p.price for p in one), default=0)
    assert ends(many, workers) <= allowed + 1e-6
    # However many workers there are, a cut repeats less than the layers of one set for each part that it adds.
    least = sum(run(part) for part in one)
    added = DEPTH * float(TOKENS.sum()) * (len(many) - len(one))
    assert sum(run(part) for part in many) <= least + added + 1e-6


def population(size: int, seed: int = 0, depth: int = 32) -> list[LayerSet]:
    space, rng = SearchSpace(depth, 2, 4), np.random.default_rng(seed)
    found: dict[LayerSet, None] = {}
    while len(found) < size:
        found[space.random(rng)] = None
    return list(found)


@pytest.mark.parametrize(("workers", "sooner"), [(2, 1.8), (4, 3.2), (8, 5.5)])
def test_workers_share_a_population_and_keep_most_of_what_its_sets_share(workers: int, sooner: float) -> None:
    sets, questions = population(40), np.arange(QUESTIONS)
    (alone,), parts = (cut([(sets, questions)], n, 32, TOKENS) for n in (1, workers))
    assert alone.price == count_layer_calls(32, sets) * TOKENS.sum()
    assert alone.price / ends(parts, workers) > sooner
    assert sum(part.price for part in parts) < 1.25 * alone.price


def test_the_end_never_comes_later_with_more_workers() -> None:
    sets = SearchSpace(32, 1, 4).neighbours(LayerSet((11, 13, 17, 21)))
    jobs = [(sets, np.arange(20)), (sets[:50], np.arange(20, 40))]
    found = [ends(cut(jobs, workers, 32, TOKENS), workers) for workers in (1, 2, 4, 8, 16, 64, 256)]
    assert found == sorted(found, reverse=True)
    assert found[0] / found[3] > 7


def test_thousands_of_sets_keep_hundreds_of_workers_busy() -> None:
    jobs = [(list(SearchSpace(32, 2, 3)), np.arange(low, low + 20)) for low in (0, 20)]
    alone = ends(cut(jobs, 1, 32, TOKENS), 1)
    assert alone / ends(cut(jobs, 256, 32, TOKENS), 256) > 0.85 * 256


def test_no_part_is_so_large_that_its_answers_come_late() -> None:
    sets = list(SearchSpace(32, 2, 3))
    for workers in (1, 2, 8):
        parts = cut([(sets, np.arange(20))], workers, 32, TOKENS)
        assert max(len(part.sets) for part in parts) <= MOST_SETS
    least = count_layer_calls(32, sets) * TOKENS[:20].sum()
    assert sum(part.price for part in cut([(sets, np.arange(20))], 1, 32, TOKENS)) < 1.05 * least


def test_work_of_several_slices_goes_to_several_workers_though_there_is_one_set() -> None:
    jobs = [([LayerSet((1,))], np.arange(low, low + 10)) for low in range(0, QUESTIONS, 10)]
    assert len(cut(jobs, 4, DEPTH, TOKENS)) == 4


def test_nothing_asked_makes_no_parts() -> None:
    assert cut([], 3, DEPTH, TOKENS) == []
    assert cut([([], np.arange(3))], 3, DEPTH, TOKENS) == []
