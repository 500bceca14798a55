from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from genetic_algorithm import Answers, LayerSet, Search, SearchConfig, SearchError, SearchSpace
from genetic_algorithm.questions import HOLDOUT
from genetic_algorithm.search import run
from tests.genetic_algorithm.simulator import NUM_LAYERS, Simulator

SPACE = SearchSpace(NUM_LAYERS, 1, 4)
SMALL = SearchConfig(population=10, generations=4, fast_limit=8, full_limit=30, verified=6, kept=5)
both = pytest.mark.parametrize("strategy", ["ga", "ga-original"])


class _Diverging(Simulator):
    """Answers with a divergence from the donor that is least for 5+7, whatever is right."""

    def answers(self, batch, questions):
        for layers, given in super().answers(batch, questions):
            mean = 0.2 + 0.3 * len({5, 7} ^ set(layers))
            yield layers, Answers(given.correct, given.margin, np.full(len(questions), mean, np.float32))


@both
def test_the_goal_kl_looks_for_the_least_divergence(strategy: str) -> None:
    evaluator = _Diverging(0, per_subject=100)
    search = Search(replace(SMALL, strategy=strategy, goal="kl"), SPACE, evaluator.subjects)
    leader = run(search, evaluator).final[0]
    assert leader == LayerSet((5, 7))
    assert search.ledger.score(leader, HOLDOUT).value == pytest.approx(-0.2, abs=1e-3)


def test_the_goal_kl_needs_divergences() -> None:
    simulator = Simulator(0, per_subject=100)
    with pytest.raises(SearchError, match="--goal kl needs an evaluator that gives divergences"):
        run(Search(replace(SMALL, goal="kl"), SPACE, simulator.subjects), simulator)


class _Split(Simulator):
    """Subjects 0 and 1 ask for 3+5, subjects 2 and 3 for 4+6."""

    def all_answers(self, layers):
        easy = np.where(self.subjects < 2, len({3, 5} & set(layers)), len({4, 6} & set(layers)))
        return Answers(self.difficulty < easy - 1.0, None, None)


@both
def test_weights_say_which_questions_count(strategy: str) -> None:
    evaluator = _Split(0, per_subject=100)
    config = replace(SMALL, strategy=strategy, max_layers=2)
    for wanted, weighty in (((3, 5), (0, 1)), ((4, 6), (2, 3))):
        weights = np.where(np.isin(evaluator.subjects, weighty), 1.0, 0.1)
        search = Search(config, config.space(NUM_LAYERS), evaluator.subjects, weights=weights)
        leader = run(search, evaluator).final[0]
        assert leader == LayerSet(wanted)
        score = search.ledger.score(leader, HOLDOUT)
        held = search.ledger.parts[HOLDOUT]
        right = evaluator.all_answers(leader).correct[held]
        assert score.value == pytest.approx(np.average(right, weights=weights[held]))
        assert score.accuracy == pytest.approx(right.mean())


def test_weights_that_cannot_be_are_refused() -> None:
    subjects = Simulator(0, per_subject=10).subjects
    for weights in (np.ones(3), np.zeros(40), np.full(40, np.nan), -np.ones(40)):
        with pytest.raises(SearchError, match="weights must be 40 numbers"):
            Search(SMALL, SPACE, subjects, weights=weights)
