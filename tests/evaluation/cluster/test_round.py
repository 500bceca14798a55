from __future__ import annotations

import numpy as np
import pytest

from evaluation.cluster.parts import Part
from evaluation.cluster.round import LOSSES_ALONE, LOSSES_TOGETHER, STRAGGLER, STRAGGLER_S, Round
from evaluation.cluster.worker import Given
from genetic_algorithm import Answers, LayerSet

A, B, C, D = (LayerSet((i,)) for i in range(4))
FIRST, SECOND = np.arange(0, 3), np.arange(3, 5)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def part(*sets: LayerSet, questions: np.ndarray = FIRST, price: float = 10.0) -> Part:
    return Part(sets, questions, price)


def given(*sets: LayerSet, error: str = "", is_last: bool = True) -> Given:
    return Given([(layers, Answers(np.ones(3, np.bool_))) for layers in sets], error, [], is_last)


def reply(
    going: Round, worker: int, *sets: LayerSet, error: str = "", workers: int = 3, is_last: bool = True
) -> list[LayerSet]:
    return [layers for layers, _, _ in going.replied(worker, given(*sets, error=error, is_last=is_last), workers)]


def take(going: Round, worker: int, is_only_one: bool = False) -> tuple[LayerSet, ...]:
    task = going.take(worker, is_only_one)
    return () if task is None else task.part.sets


def test_the_longest_part_goes_first_and_all_are_answered_with_their_questions() -> None:
    going = Round([part(A, B), part(C, questions=SECOND, price=5.0)])
    assert not going.is_done
    assert (take(going, 1), take(going, 2), take(going, 3)) == ((A, B), (C,), ())
    pieces = list(going.replied(2, given(C), 3))
    assert [(layers, questions) for layers, questions, _ in pieces] == [(C, SECOND)]
    assert not going.is_done
    assert reply(going, 1, B, A) == [B, A]
    assert going.is_done
    assert going.failures == {}


def test_workers_spread_over_the_slices_and_keep_to_those_they_have_met() -> None:
    met: dict[int, set[int]] = {}
    parts = [part(A), part(B, price=9.0), part(C, questions=SECOND, price=8.5), part(D, questions=SECOND, price=8.0)]
    going = Round(parts, met=met)
    assert (take(going, 1), take(going, 2)) == ((A,), (C,))
    assert reply(going, 2, C) == [C]
    assert take(going, 2) == (D,)  # though B is longer
    assert (reply(going, 2, D), reply(going, 1, A)) == ([D], [A])
    assert take(going, 2) == (B,)  # rather than nothing
    assert reply(going, 2, B) == [B]
    again = Round(parts, met=met)
    assert (take(again, 1), take(again, 2)) == ((A,), (C,))  # worker 2 has met both, where there is most to do is next


def test_a_part_that_is_much_longer_does_not_come_last_for_its_slice() -> None:
    parts = [part(A, price=5.0), part(B, questions=SECOND, price=2.0), part(C, questions=SECOND, price=2.0)]
    going = Round(parts, met={1: {part(B, questions=SECOND).slice}})
    assert take(going, 1) == (A,)


def test_sets_that_were_not_asked_are_left_out() -> None:
    going = Round([part(A)])
    take(going, 1)
    assert reply(going, 1, D, A) == [A]
    assert going.is_done


def test_what_an_error_left_over_goes_alone_to_other_workers_and_then_has_failed() -> None:
    going = Round([part(A, B, C)])
    take(going, 1)
    assert reply(going, 1, A, error="out of memory") == [A]
    alone = [take(going, 1), take(going, 2)]
    assert sorted(alone) == [(B,), (C,)]
    fails, works = (1, 2) if alone[0] == (B,) else (2, 1)
    assert reply(going, works, C) == [C]
    assert reply(going, fails, error="B is bad") == []
    assert not going.is_done
    assert take(going, fails) == ()  # it has raised there
    assert take(going, works) == (B,)
    assert reply(going, works, error="B is bad here, too") == []
    assert going.is_done
    assert going.failures == {B: "B is bad here, too"}


def test_a_set_that_raises_on_one_broken_worker_is_answered_by_another() -> None:
    going = Round([part(A)])
    take(going, 1)
    reply(going, 1, error="this GPU is broken")
    assert take(going, 2) == (A,)
    assert reply(going, 2, A) == [A]
    assert going.is_done
    assert going.failures == {}


def test_the_only_worker_there_is_decides_alone() -> None:
    going = Round([part(A)])
    take(going, 1)
    reply(going, 1, error="bad", workers=2)
    assert take(going, 1) == ()
    assert take(going, 1, is_only_one=True) == (A,)
    reply(going, 1, error="still bad", workers=1)
    assert going.failures == {A: "still bad"}
    assert going.is_done


def test_no_answer_without_an_error_is_a_failure_too() -> None:
    going = Round([part(A)])
    take(going, 1)
    reply(going, 1, workers=1)
    assert going.failures == {A: "the evaluator gave no answer for it"}


def test_what_a_lost_worker_had_goes_to_another_and_later_alone() -> None:
    going = Round([part(A, B)])
    for worker in range(LOSSES_TOGETHER):
        assert take(going, worker) == (A, B)
        going.lost(worker, "killed")
    assert sorted([take(going, 10), take(going, 11)]) == [(A,), (B,)]


def test_of_a_part_that_was_answered_in_part_only_the_rest_is_lost_with_its_worker() -> None:
    going = Round([part(A, B, C)])
    take(going, 1)
    assert reply(going, 1, B, is_last=False) == [B]
    assert not going.is_done
    going.lost(1, "killed")
    assert take(going, 2) == (A, C)
    assert (reply(going, 2, A, is_last=False), reply(going, 2, C)) == ([A], [C])
    assert going.is_done


def test_an_error_after_some_answers_leaves_only_the_others_over() -> None:
    going = Round([part(A, B, C)])
    take(going, 1)
    reply(going, 1, A, is_last=False)
    assert reply(going, 1, B, error="out of memory") == [B]
    assert (take(going, 2), take(going, 3)) == ((C,), ())


def test_of_two_that_answer_in_part_each_answer_counts_once() -> None:
    clock = Clock()
    going = Round([part(C, questions=SECOND, price=20.0), part(A, B)], clock)
    take(going, 1)
    clock.now = 1.0
    reply(going, 1, C)
    take(going, 2)
    clock.now = 2 * STRAGGLER_S
    assert take(going, 1) == (A, B)
    assert reply(going, 1, A, is_last=False) == [A]
    assert reply(going, 2, A, B) == [B]
    assert going.is_done
    assert reply(going, 1, B) == []


def test_a_set_over_which_workers_always_die_fails_and_the_others_go_on() -> None:
    going = Round([part(A, B)])
    worker, answered = 0, []
    while not going.is_done:
        worker += 1
        sets = take(going, worker)
        if A in sets:
            going.lost(worker, "SIGKILL")
        else:
            answered += reply(going, worker, *sets)
    assert answered == [B]
    assert going.failures == {A: f"{LOSSES_ALONE} workers died over it; the last: SIGKILL"}
    assert worker == LOSSES_TOGETHER + LOSSES_ALONE + 1


def test_a_free_worker_that_is_lost_changes_nothing() -> None:
    going = Round([part(A)])
    take(going, 1)
    going.lost(2, "gone")
    assert reply(going, 1, A) == [A]
    assert going.is_done


def test_a_set_that_failed_is_left_out_of_what_waits_and_of_what_runs() -> None:
    going = Round([part(A), part(A, B, questions=SECOND), part(C, A, price=4.0), part(A, price=1.0)])
    assert take(going, 1) == (A,)
    assert take(going, 2) == (A, B)
    reply(going, 1, error="bad", workers=1)
    assert going.failures == {A: "bad"}
    left = going.take(1, False)
    assert left is not None
    assert (left.part.sets, left.part.price) == ((C,), 2.0)
    assert reply(going, 1, C) == [C]
    assert reply(going, 2, B, error="bad") == [B]  # A has failed already: nobody is asked again
    assert going.is_done


def test_a_set_that_failed_is_left_out_of_what_a_lost_worker_had() -> None:
    going = Round([part(A, price=30.0), part(A, B, questions=SECOND), part(A, questions=SECOND)])
    take(going, 1), take(going, 2), take(going, 3)
    reply(going, 1, error="bad", workers=1)
    going.lost(2, "killed")
    going.lost(3, "killed")
    assert take(going, 4) == (B,)
    assert reply(going, 4, B) == [B]
    assert going.is_done


class TestStragglers:
    def started(self) -> tuple[Round, Clock]:
        """B takes 10 s; A, of the same price, is at it still."""
        clock = Clock()
        going = Round([part(A), part(B)], clock)
        assert (take(going, 1), take(going, 2)) == ((A,), (B,))
        clock.now = 10.0
        assert reply(going, 2, B) == [B]
        return going, clock

    def test_a_part_goes_to_one_more_worker_once_it_is_overdue(self) -> None:
        going, clock = self.started()
        due = max(STRAGGLER * 10, STRAGGLER_S)
        clock.now = due
        assert take(going, 2) == ()
        clock.now = due + 2
        assert take(going, 2) == (A,)
        assert take(going, 3) == ()
        assert reply(going, 2, A) == [A]
        assert going.is_done  # whoever was slow is waited for no more
        assert reply(going, 1, A) == []

    @pytest.mark.parametrize(("loser", "winner"), [(1, 2), (2, 1)])
    def test_when_one_of_two_dies_the_other_goes_on(self, loser: int, winner: int) -> None:
        going, clock = self.started()
        clock.now = 100.0
        assert take(going, 2) == (A,)
        going.lost(loser, "killed")
        assert take(going, 3) == (A,) or not going.is_done
        assert reply(going, winner, A) == [A]
        assert going.is_done

    def test_when_one_of_two_raises_the_other_goes_on(self) -> None:
        going, clock = self.started()
        clock.now = 100.0
        assert take(going, 2) == (A,)
        assert reply(going, 1, error="bad") == []
        clock.now = 200.0
        assert take(going, 1) == ()  # it has raised there
        assert reply(going, 2, A) == [A]
        assert going.is_done
        assert going.failures == {}

    def test_when_both_raise_the_set_has_failed(self) -> None:
        going, clock = self.started()
        clock.now = 100.0
        assert take(going, 2) == (A,)
        reply(going, 1, error="bad")
        reply(going, 2, error="bad")
        assert going.is_done
        assert going.failures == {A: "bad"}

    def test_nothing_is_overdue_before_a_pace_is_known(self) -> None:
        clock = Clock()
        going = Round([part(A)], clock)
        take(going, 1)
        clock.now = 1e6
        assert take(going, 2) == ()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_set_is_answered_once_or_has_failed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sets, clock = [LayerSet((i,)) for i in range(12)], Clock()
    deadly, bad = sets[3], sets[7]
    parts = [part(*sets[low : low + 4], questions=q) for q in (FIRST, SECOND) for low in (0, 4, 8)]
    going, busy, fresh, answered = Round(parts, clock), dict[int, tuple[LayerSet, ...]](), 4, []
    free = [0, 1, 2, 3]
    for _ in range(10_000):
        if going.is_done:
            break
        clock.now += float(rng.exponential(20))
        for worker in list(free):
            if task := going.take(worker, is_only_one=False):
                free.remove(worker)
                busy[worker] = task.part.sets
        worker = int(rng.choice(list(busy)))
        asked = busy.pop(worker)
        if deadly in asked or rng.random() < 0.05:
            going.lost(worker, "killed")
            free.append(fresh)
            fresh += 1
            continue
        free.append(worker)
        done = asked[: asked.index(bad)] if bad in asked else asked
        error = "bad" if bad in asked else ""
        answered += [(s, len(q)) for s, q, _ in going.replied(worker, given(*done, error=error), 4)]
    assert going.is_done
    assert {deadly, bad} <= set(going.failures)
    expected = {(s, n) for s in sets for n in (3, 2) if s not in going.failures}
    assert expected <= set(answered)
    assert len(answered) == len(set(answered))
