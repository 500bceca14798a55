from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.errors import EvaluationError
from evaluation.journal import Journal
from evaluation.remembering import Remembering, journal_header
from genetic_algorithm import Answers, LayerSet

A, B, C = LayerSet((0,)), LayerSet((1,)), LayerSet((0, 1))
N = 100


class Inner:
    """Right where the question is even; may fail for some sets, or altogether."""

    num_layers, num_questions, subjects = 4, N, np.arange(N) % 4

    def __init__(self, bad: tuple[LayerSet, ...] = (), error: BaseException | None = None) -> None:
        self.bad, self.error = set(bad), error or RuntimeError("does not fit")
        self.calls: list[tuple[tuple[str, ...], int]] = []

    def answers(self, batch, questions):
        self.calls.append((tuple(map(str, batch)), len(questions)))
        for layers in reversed(batch):
            if layers in self.bad:
                raise self.error
            yield layers, Answers(questions % 2 == 0, (questions / 7).astype(np.float32))


def _over(path: Path, inner: Inner, **options: int) -> Remembering:
    return Remembering(inner, Journal(path / "j", journal_header(inner), N), **options)


def test_known_answers_are_not_asked_again_and_are_the_same(tmp_path: Path) -> None:
    inner = Inner()
    first = dict(_over(tmp_path, inner).answers([A, B, A], np.arange(10)))
    assert inner.calls == [(("0", "1"), 10)]
    again = Inner()
    resumed = _over(tmp_path, again)
    second = dict(resumed.answers([A, B], np.arange(10)))
    assert again.calls == []
    assert resumed.asked == 0
    assert resumed.seconds > 0  # of the sitting that asked
    for layers in (A, B):
        assert np.array_equal(first[layers].correct, second[layers].correct)
        assert np.array_equal(first[layers].margin, second[layers].margin)
        assert first[layers].divergence is None


def test_only_what_is_missing_is_asked_sets_that_lack_the_same_together(tmp_path: Path) -> None:
    inner = Inner()
    remembering = _over(tmp_path, inner)
    dict(remembering.answers([A, B], np.arange(10)))
    inner.calls.clear()
    answers = dict(remembering.answers([C, A, B], np.arange(5, 25)))
    assert inner.calls == [(("0+1",), 20), (("0", "1"), 15)]
    assert all(np.array_equal(a.correct, np.arange(5, 25) % 2 == 0) for a in answers.values())


def test_questions_in_any_order_get_their_own_answers(tmp_path: Path) -> None:
    asked = np.array([9, 2, 2, 5])
    for _ in range(2):
        answers = dict(_over(tmp_path, Inner()).answers([A], asked))
        assert answers[A].correct.tolist() == [False, True, True, False]


def test_long_question_lists_are_asked_in_slices_each_on_disk_before_the_next(tmp_path: Path) -> None:
    inner = Inner()
    iterator = _over(tmp_path, inner, slice_questions=30).answers([A, B], np.arange(N))
    next(iterator)  # three slices of both, and one set of the last
    assert [n for _, n in inner.calls] == [25, 25, 25, 25]
    iterator.close()  # as a kill would
    resumed = Inner()
    answers = dict(_over(tmp_path, resumed, slice_questions=30).answers([A, B], np.arange(N)))
    assert resumed.calls == [(("0",), 25)]
    assert {len(a.correct) for a in answers.values()} == {N}


def test_one_bad_set_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    inner = Inner(bad=(B,))
    remembering = _over(tmp_path, inner)
    assert set(dict(remembering.answers([A, B, C], np.arange(10)))) == {A, C}
    assert remembering.failed == {B: "RuntimeError: does not fit"}
    assert '"status":"failed"' in (tmp_path / "j").read_text()
    inner.calls.clear()
    assert dict(remembering.answers([B], np.arange(10))) == {}
    assert inner.calls == []  # not again in this process
    mended = Inner()
    resumed = _over(tmp_path, mended)
    assert dict(resumed.answers([B], np.arange(5, 15))) == {}  # nor in the next, which would take another path
    assert mended.calls == []
    assert resumed.failed == {B: "RuntimeError: does not fit"}
    retried = _over(tmp_path, mended, retry_failed=True)
    assert set(dict(retried.answers([B], np.arange(10)))) == {B}  # unless told to
    assert set(dict(_over(tmp_path, Inner(bad=(B,))).answers([B], np.arange(10)))) == {B}  # and that is remembered


def test_a_set_that_failed_is_still_known_where_it_was_answered(tmp_path: Path) -> None:
    dict(_over(tmp_path, Inner()).answers([A, B], np.arange(10)))
    dict(_over(tmp_path, Inner(bad=(B,))).answers([A, B], np.arange(20)))
    assert set(dict(_over(tmp_path, Inner()).answers([A, B], np.arange(10)))) == {A, B}
    assert set(dict(_over(tmp_path, Inner()).answers([A, B], np.arange(20)))) == {A}


def test_a_set_that_fails_for_good_does_not_stop_a_resumed_run(tmp_path: Path) -> None:
    dict(_over(tmp_path, Inner(bad=(B, C))).answers([A, B, C], np.arange(10)))
    assert set(dict(_over(tmp_path, Inner(bad=(B, C))).answers([A, B, C], np.arange(10)))) == {A}


def test_when_everything_fails_the_first_cause_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no layer set can be evaluated.*does not fit"):
        dict(_over(tmp_path, Inner(bad=(A, B, C))).answers([A, B, C], np.arange(10)))
    assert '"failed"' not in (tmp_path / "j").read_text()
    dict(_over(tmp_path, Inner()).answers([A], np.arange(10)))
    with pytest.raises(EvaluationError, match="no layer set can be evaluated"):  # A worked once, and now fails
        dict(_over(tmp_path, Inner(bad=(A, B, C))).answers([B], np.arange(10)))
    assert set(dict(_over(tmp_path, Inner()).answers([B], np.arange(10)))) == {B}  # the machine failed, not the set


def test_a_machine_that_fails_within_a_batch_is_no_failure_of_its_sets(tmp_path: Path) -> None:
    class Dying(Inner):
        def answers(self, batch, questions):
            if self.calls:
                raise RuntimeError("CUDA error: unspecified launch failure")
            yield from super().answers(batch, questions)

    with pytest.raises(EvaluationError, match=r"no layer set can be evaluated.*launch failure"):
        dict(_over(tmp_path, Dying(bad=(A,))).answers([A, B, C], np.arange(10)))  # C and B are answered before
    assert '"failed"' not in (tmp_path / "j").read_text()
    assert set(dict(_over(tmp_path, Inner()).answers([A, B, C], np.arange(10)))) == {A, B, C}


def test_a_set_left_out_by_the_evaluator_is_recorded_as_failed(tmp_path: Path) -> None:
    class Silent(Inner):
        def answers(self, batch, questions):
            return (pair for pair in super().answers(batch, questions) if pair[0] != B)

    remembering = _over(tmp_path, Silent())
    assert set(dict(remembering.answers([A, B], np.arange(10)))) == {A}
    assert "gave no answer" in remembering.failed[B]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), SystemExit(3)])
def test_an_interrupt_or_a_full_disk_is_no_failure_of_a_set(tmp_path: Path, stop: BaseException) -> None:
    remembering = _over(tmp_path, Inner(bad=(A,), error=stop))
    with pytest.raises(type(stop)):
        dict(remembering.answers([A, B], np.arange(10)))
    assert remembering.failed == {}
    assert '"failed"' not in (tmp_path / "j").read_text()


class Odd(Inner):
    """Answers for B with something else; `answers_of` says what, given the number of questions."""

    def __init__(self, answers_of: Callable[[int], Answers]) -> None:
        super().__init__()
        self.answers_of = answers_of

    def answers(self, batch, questions):
        for layers, given in super().answers(batch, questions):
            yield layers, self.answers_of(len(questions)) if layers == B else given


@pytest.mark.parametrize(
    ("answers_of", "told"),
    [
        (lambda n: Answers(np.ones(3, bool)), "correct of shape (3,) for 10 questions"),
        (lambda n: Answers(np.ones((n, 1), bool)), "correct of shape (10, 1) for 10 questions"),
        (lambda n: Answers(np.ones(n, bool), np.zeros(n + 1, np.float32)), "margin of shape (11,) for 10 questions"),
        (lambda n: Answers(np.ones(n, bool), np.full(n, np.nan, np.float32)), "gave NaN as margin"),
        (lambda n: Answers(np.ones(n, bool), None, np.full(n, np.nan)), "gave NaN as divergence"),
        (lambda n: Answers(np.full(n, 0.5)), "neither right nor wrong"),
        (lambda n: Answers(None), "correct of shape () for 10 questions"),
    ],
)
def test_answers_that_cannot_be_are_a_failure_of_their_set_alone(
    tmp_path: Path, answers_of: Callable[[int], Answers], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    inner = Odd(answers_of)
    remembering = _over(tmp_path, inner)
    assert set(dict(remembering.answers([A, B, C], np.arange(10)))) == {A, C}
    assert told in remembering.failed[B]
    assert [f"1 could not be evaluated ({remembering.failed[B]}): it is left out"] == caplog.messages
    assert len(inner.calls) == 2  # it is not asked again; that a known good set still works is
    assert dict(_over(tmp_path, Inner()).answers([B], np.arange(10))) == {}


def test_of_a_set_that_is_answered_twice_the_first_answer_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Repeating(Inner):
        def answers(self, batch, questions):
            for layers, given in super().answers(batch, questions):
                yield layers, given
                yield layers, Answers(~given.correct)

    remembering = _over(tmp_path, Repeating())
    for low in (0, 10):
        found = dict(remembering.answers([A, B], np.arange(low, low + 10)))
        assert found[A].correct.tolist() == [True, False] * 5
    assert len(caplog.messages) == 1
    assert "answered twice for 1: the first answer counts" in caplog.text


def test_a_set_that_was_not_asked_is_refused(tmp_path: Path) -> None:
    class Stray(Inner):
        def answers(self, batch, questions):
            yield C, Answers(np.ones(len(questions), bool))

    with pytest.raises(EvaluationError, match=r"answered for 0\+1, which it was not asked"):
        dict(_over(tmp_path, Stray()).answers([A], np.arange(10)))


def test_an_evaluator_that_yields_nothing_is_told_so(tmp_path: Path) -> None:
    class Mute(Inner):
        def answers(self, batch, questions):
            return iter(())

    with pytest.raises(EvaluationError, match="the evaluator gave no answer for it"):
        dict(_over(tmp_path, Mute()).answers([A, B], np.arange(10)))


def test_questions_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="there are 100 questions"):
        dict(_over(tmp_path, Inner()).answers([A], np.array([3, 100])))


def test_an_evaluator_with_other_questions_does_not_get_old_answers(tmp_path: Path) -> None:
    dict(_over(tmp_path, Inner()).answers([A], np.arange(10)))
    other = Inner()
    other.subjects = np.arange(N) % 5
    with pytest.raises(EvaluationError, match="subjects_sha256"):
        _over(tmp_path, other)
