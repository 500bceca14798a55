from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from evaluation.cluster.driver import FAILED_STARTS, ClusterEvaluator
from evaluation.cluster.round import LOSSES_ALONE
from evaluation.errors import EvaluationError
from genetic_algorithm import Answers, LayerSet
from tests.evaluation.cluster.stubs import ALL, BAD, Slow, population, raising, same
from tests.evaluation.cluster.threads import Died, ThreadPool, cluster, wait_for
from tests.genetic_algorithm.simulator import Simulator


@pytest.mark.parametrize("workers", [1, 2, 5, 16])
def test_answers_are_those_of_the_evaluator_alone_and_none_is_asked_twice(workers: int) -> None:
    made: list[Slow] = []

    def make(worker: int) -> Slow:
        made.append(Slow(0.001))
        return made[-1]

    sets = population(30)
    with cluster(make, workers) as (evaluator, pool):
        assert same(dict(evaluator.answers([*sets, sets[0]], ALL)), sets)
        assert same(dict(evaluator.answers(sets[:2], ALL[:5])), sets[:2], ALL[:5])
        assert list(evaluator.answers([], ALL)) == []
        own = Simulator(per_subject=10)
        assert (evaluator.num_layers, evaluator.num_questions) == (own.num_layers, own.num_questions)
        assert np.array_equal(evaluator.subjects, own.subjects)
        assert evaluator.fingerprint == own.fingerprint
        assert evaluator.describe() == {**own.describe(), "workers": workers}
        assert evaluator.seconds_per_question == pytest.approx(0.0015 / workers)
        assert evaluator.failures == {}
    assert Counter(call for inner in made for call in inner.calls) == Counter(
        [(s, 40) for s in sets] + [(s, 5) for s in sets[:2]]
    )
    assert pool.is_closed
    assert pool.alive == {}


def test_several_jobs_at_once_come_with_their_questions() -> None:
    sets = population(10)
    jobs = [(sets, ALL[:20]), (sets[3:], ALL[20:])]
    with cluster(lambda worker: Slow(), 3) as (evaluator, _):
        pieces = list(evaluator.pieces(jobs))
    for asked, questions in jobs:
        assert same({s: answers for s, q, answers in pieces if q[0] == questions[0]}, asked, questions)
    assert len(pieces) == 17


def test_all_workers_take_part() -> None:
    with cluster(lambda worker: Slow(0.01), 5) as (evaluator, pool):
        wait_for(lambda: len(pool.up) == 5)
        list(evaluator.answers(population(30), ALL))
        assert {worker for worker, _, _ in pool.submitted} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("seed", range(4))
def test_killed_workers_are_replaced_and_no_answer_is_lost_or_given_twice(seed: int) -> None:
    rng, sets = np.random.default_rng(seed), population(30)
    with cluster(lambda worker: Slow(0.003), 4) as (evaluator, pool):
        found: list[tuple[LayerSet, Answers]] = []
        for piece in evaluator.answers(sets, ALL):
            found.append(piece)
            if len(found) % 5 == 1 and pool.alive:
                pool.kill(int(rng.choice(list(pool.alive))))
        assert len(found) == 30
        assert same(dict(found), sets)
        for worker in list(pool.alive)[:1]:  # between two requests
            pool.kill(worker)
        assert same(dict(evaluator.answers(sets, ALL)), sets)
        assert evaluator.failures == {}
        assert len(pool.spawned) > 4


def test_answers_come_before_their_part_is_over_and_are_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.cluster.worker.REPLY_S", 0.0)
    made: list[Slow] = []

    def make(worker: int) -> Slow:
        made.append(Slow(0.01))
        return made[-1]

    sets = population(20)
    with cluster(make, 1) as (evaluator, pool):
        coming = evaluator.answers(sets, ALL)
        found = dict(next(coming) for _ in range(5))
        assert len(pool.submitted) == 1
        assert len(made[0].calls) < 20
        pool.kill(1)
        known = len(made[0].calls)
        assert same(found | dict(coming), sets)
        assert 20 <= known + len(made[1].calls) < 25


def test_what_a_worker_is_at_ends_when_nobody_wants_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.cluster.worker.REPLY_S", 0.0)
    evaluators: list[Slow] = [Slow(0.02)]
    with cluster(lambda worker: evaluators[0], 1) as (evaluator, _):
        next(coming := evaluator.answers(population(20), ALL))
        coming.close()
        assert same(dict(evaluator.answers([BAD], ALL[:7])), [BAD], ALL[:7])
        assert len(evaluators[0].calls) < 20


def test_all_workers_killed_at_once_are_replaced() -> None:
    sets = population(20)
    with cluster(lambda worker: Slow(0.01), 3) as (evaluator, pool):
        answers = evaluator.answers(sets, ALL)
        found = [next(answers)]
        for worker in list(pool.alive):
            pool.kill(worker)
        assert same(dict([*found, *answers]), sets)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_set_over_which_workers_die_fails_by_name_and_the_rest_go_on(workers: int) -> None:
    def before(layers: LayerSet) -> None:
        if layers == BAD:
            raise Died("SIGKILL")

    sets = population(12)
    with cluster(lambda worker: Slow(before=before), workers) as (evaluator, pool):
        assert same(dict(evaluator.answers(sets, ALL)), [s for s in sets if s != BAD])
        assert evaluator.failures == {BAD: f"{LOSSES_ALONE} workers died over it; the last: Died: SIGKILL"}
        assert len(pool.spawned) <= workers + LOSSES_ALONE + 2


def test_workers_that_die_over_everything_end_it_with_the_reason() -> None:
    def before(layers: LayerSet) -> None:
        raise Died("out of memory")

    with (
        cluster(lambda worker: Slow(before=before), 2) as (evaluator, pool),
        pytest.raises(EvaluationError, match=r"workers in a row died over what they were asked; the last: .*memory"),
    ):
        list(evaluator.answers(population(12), ALL))
    assert len(pool.spawned) < 40


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_set_that_raises_on_every_worker_fails_and_the_rest_go_on(workers: int) -> None:
    sets = population(20)
    with cluster(lambda worker: Slow(before=raising(BAD)), workers) as (evaluator, pool):
        assert same(dict(evaluator.answers(sets, ALL)), [s for s in sets if s != BAD])
        assert evaluator.failures == {BAD: "RuntimeError: 2+9 does not fit"}
        assert same(dict(evaluator.answers(sets[1:], ALL)), sets[1:])
        assert pool.spawned == list(range(1, workers + 1))


def test_what_raises_on_one_broken_worker_only_is_answered_by_others() -> None:
    def make(worker: int) -> Slow:
        def before(layers: LayerSet) -> None:
            if worker == 2:
                raise RuntimeError("this GPU is broken")

        return Slow(0.002, before)

    sets = population(20)
    with cluster(make, 3) as (evaluator, pool):
        wait_for(lambda: len(pool.up) == 3)
        assert same(dict(evaluator.answers(sets, ALL)), sets)
        assert evaluator.failures == {}
        assert 2 in {worker for worker, _, _ in pool.submitted}


def test_workers_that_would_answer_otherwise_are_refused_by_the_field(caplog: pytest.LogCaptureFixture) -> None:
    first = threading.Event()

    def make(worker: int) -> Simulator:
        if worker > 1:
            first.wait(10)
        return Simulator(seed=int(worker > 1), per_subject=10)

    sets = population(10)
    with cluster(make, 2) as (evaluator, pool), caplog.at_level(logging.WARNING):
        first.set()
        wait_for(lambda: len(pool.up) == 2)
        for _ in range(6):
            assert same(dict(evaluator.answers(sets, ALL)), sets)
            time.sleep(0.01)
        assert {worker for worker, _, _ in pool.submitted} == {1}
        assert set(pool.alive) == {1}
        assert len(pool.spawned) == 1 + FAILED_STARTS  # not for ever
    refusals = [record.getMessage() for record in caplog.records]
    assert len(refusals) == FAILED_STARTS
    assert all("is refused, it would answer otherwise: seed" in line for line in refusals)


def test_when_only_workers_are_left_that_would_answer_otherwise_that_is_said() -> None:
    def make(worker: int) -> Simulator:
        return Simulator(seed=int(worker > 1), per_subject=10)

    with cluster(make, 1) as (evaluator, pool):
        list(evaluator.answers([BAD], ALL))
        pool.kill(1)
        with pytest.raises(
            EvaluationError, match=r"no worker comes up: .* is refused, it would answer otherwise: seed"
        ):
            list(evaluator.answers([BAD], ALL))


def test_where_no_worker_comes_up_the_first_reason_is_told() -> None:
    def make(worker: int) -> Simulator:
        raise Died(f"reason {worker}")

    pool = ThreadPool(make, 1)
    with pytest.raises(EvaluationError, match=r"no worker comes up: Died: reason 1$"):
        ClusterEvaluator(pool)
    assert len(pool.spawned) == FAILED_STARTS
    assert pool.is_closed


def test_code_that_raises_while_it_loads_is_not_tried_again() -> None:
    def make(worker: int) -> Simulator:
        raise ValueError("no such folder")

    pool = ThreadPool(make, 1)
    with pytest.raises(EvaluationError, match="no worker comes up: ValueError: no such folder"):
        ClusterEvaluator(pool)
    assert pool.spawned == [1]


def test_a_worker_that_does_not_come_up_stops_no_other() -> None:
    def make(worker: int) -> Slow:
        if worker in (1, 3):
            raise ValueError("broken GPU")
        return Slow(0.002)

    sets = population(10)
    with cluster(make, 3) as (evaluator, _):
        assert same(dict(evaluator.answers(sets, ALL)), sets)


def test_a_cluster_without_room_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no room for a worker"):
        ClusterEvaluator(ThreadPool(lambda worker: Slow(), 0))


def test_room_that_grows_is_used_and_room_that_shrinks_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.cluster.driver.SLOTS_S", 0.02)
    sets = population(60)
    with cluster(lambda worker: Slow(0.01), 1) as (evaluator, pool):
        answers = evaluator.answers(sets, ALL)
        found = [next(answers)]  # all sets of one worker are one part: nothing is left to give away
        pool.room = 4
        found += answers
        assert same(dict(found), sets)
        answers = evaluator.answers(sets, ALL)
        found = [next(answers) for _ in range(3)]
        assert set(pool.alive) == {1, 2, 3, 4}
        pool.room = 2
        pool.kill(1)
        pool.kill(2)
        found += answers
        assert same(dict(found), sets)
        assert set(pool.alive) == {3, 4}
        assert len(pool.spawned) == 4


def test_room_that_grows_starts_workers_again_after_some_never_came_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.cluster.driver.SLOTS_S", 0.02)
    is_broken = True

    def make(worker: int) -> Slow:
        if is_broken and worker > 1:
            raise Died("no memory")
        return Slow(0.003)

    sets = population(30)
    with cluster(make, 2) as (evaluator, pool):
        assert same(dict(evaluator.answers(sets, ALL)), sets)
        wait_for(lambda: len(pool.spawned) >= 2)
        is_broken, pool.room = False, 3
        for _ in range(3):
            assert same(dict(evaluator.answers(sets, ALL)), sets)
        assert len(pool.alive) == 3


def test_replies_to_a_request_that_was_given_up_are_not_heard() -> None:
    sets = population(20)
    with cluster(lambda worker: Slow(0.005), 3) as (evaluator, pool):
        for _ in range(3):
            given_up = evaluator.answers(sets, ALL[:7])
            next(given_up)
            given_up.close()
            assert same(dict(evaluator.answers(sets[5:], ALL)), sets[5:])
        pool.kill(next(iter(pool.alive)))
        assert same(dict(evaluator.answers(sets, ALL[:7])), sets, ALL[:7])


def test_a_free_worker_has_its_next_part_before_answers_are_given_on() -> None:
    jobs = [([s], ALL) for s in population(6)]
    with cluster(lambda worker: Slow(), 1) as (evaluator, pool):
        pieces = evaluator.pieces(jobs)
        next(pieces)
        assert len(pool.submitted) >= 2
        assert len(list(pieces)) == 5


def test_answers_that_are_there_are_given_before_the_last_worker_is_missed() -> None:
    sets, seen = population(6), list[LayerSet]()

    def make(worker: int) -> Slow:
        def before(layers: LayerSet) -> None:
            if len(seen) == 3:
                raise Died("SIGKILL")
            seen.append(layers)

        if worker > 1:
            raise ValueError("the GPU has fallen off the bus")
        return Slow(before=before)

    found = []
    with cluster(make, 1) as (evaluator, _):
        pieces = evaluator.pieces([([s], ALL) for s in sets])
        with pytest.raises(EvaluationError, match=r"no worker comes up: ValueError: the GPU has fallen off the bus"):
            found.extend(pieces)
    assert [layers for layers, _, _ in found] == seen


def test_a_request_that_is_only_let_go_later_disturbs_no_new_one() -> None:
    sets = population(20)
    with cluster(lambda worker: Slow(0.005), 3) as (evaluator, _):
        old = evaluator.answers(sets, ALL[:7])
        next(old)
        new = evaluator.answers(sets, ALL)
        found = [next(new)]
        with pytest.raises(EvaluationError, match="after the next one has begun"):
            list(old)
        assert same(dict([*found, *new]), sets)


def test_the_state_of_the_workers_is_kept_in_a_file(tmp_path: Path) -> None:
    with cluster(lambda worker: Slow(), 2) as (evaluator, pool):
        wait_for(lambda: len(pool.up) == 2)
        list(evaluator.answers(population(5), ALL))
        evaluator.report_to(tmp_path / "workers.json", tmp_path / "cluster.json")
        state = json.loads((tmp_path / "workers.json").read_text())
        assert [worker["state"] for worker in state["workers"]] == ["ready", "ready"]
        assert sum(worker["questions"] for worker in state["workers"]) == 200
        assert state["lost"] == 0
        evaluator.report_to(
            tmp_path / "none" / "workers.json", tmp_path / "cluster.json"
        )  # only tells of the work: no reason to end it
        assert len(list(evaluator.answers(population(5), ALL))) == 5
