from __future__ import annotations

import numpy as np
import pytest

from benchmarks import kl_goal
from genetic_algorithm import Answers, LayerSet

TRUTH = np.linspace(0.9, 0.1, 100)


def test_the_truth_ranks_perfectly_and_its_opposite_worst() -> None:
    rng = np.random.default_rng(0)
    right, wrong = kl_goal.judge(TRUTH, TRUTH, rng), kl_goal.judge(-TRUTH, TRUTH, rng)
    assert (right.over_all, right.over_best, right.regret, right.short_list) == pytest.approx((1, 1, 0, 0))
    assert (wrong.over_all, wrong.over_best, wrong.regret) == pytest.approx((-1, -1, 80))
    assert wrong.short_list == pytest.approx(80 - 100 * 9 * 0.8 / 99)


def test_sets_of_equal_score_are_ranked_by_chance() -> None:
    drawn = [kl_goal.judge(np.zeros(100), TRUTH, np.random.default_rng(seed)) for seed in range(200)]
    assert all(ranking.over_all == ranking.over_best == 0 for ranking in drawn)
    assert np.mean([ranking.regret for ranking in drawn]) == pytest.approx(40, abs=6)


def test_as_many_questions_of_each_subject_are_drawn() -> None:
    subjects = np.repeat([0, 1, 3], [30, 50, 20])
    picked = kl_goal.draw(subjects, 30, np.random.default_rng(1))
    assert np.bincount(subjects[picked]).tolist() == [10, 10, 0, 10]
    assert len(set(picked.tolist())) == 30


class Pair:
    num_layers, num_questions, subjects = 2, 4, np.zeros(4, dtype=np.int64)

    def answers(self, batch, questions):
        some = np.ones(len(questions), dtype=np.float32)
        for layers in batch:
            yield layers, Answers(some > 0, some, 2 * some)


@pytest.mark.parametrize("names", [(), ("margin",), ("margin", "divergence")])
def test_what_is_not_named_is_hidden(names: tuple[str, ...]) -> None:
    shown = kl_goal.Shown(Pair(), names)
    ((_, answers),) = shown.answers([LayerSet((0,))], np.arange(3))
    assert answers.correct.all()
    assert tuple(name for name in ("margin", "divergence") if getattr(answers, name) is not None) == names
