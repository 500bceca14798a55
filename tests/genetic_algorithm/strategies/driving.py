"""Runs a strategy over a simulator, with nothing of a search around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genetic_algorithm import LayerSet, SearchConfig, SearchSpace
from genetic_algorithm.ledger import Ledger, Request
from genetic_algorithm.questions import divide
from genetic_algorithm.strategies import Setting, Strategy, make_strategy
from tests.genetic_algorithm.simulator import NUM_LAYERS, Simulator

SPACE = SearchSpace(NUM_LAYERS, 1, 4)
CONFIG = SearchConfig(population=10, generations=6, fast_limit=10, full_limit=None, kept=5)


class Failing(Simulator):
    """Never answers for some sets."""

    def __init__(self, bad: set[LayerSet], per_subject: int = 100) -> None:
        super().__init__(0, per_subject=per_subject)
        self.bad = bad

    def answers(self, batch, questions):
        return ((s, a) for s, a in super().answers(batch, questions) if s not in self.bad)


def start(
    name: str,
    evaluator,
    space: SearchSpace = SPACE,
    *,
    config: SearchConfig = CONFIG,
    budget: int | None = None,
    elite: Sequence[LayerSet] = (),
    single_scores: Mapping[int, float] | None = None,
    coarse_from: int | None = None,
) -> tuple[Strategy, Ledger]:
    """A strategy that has not begun, and where its answers go."""
    ledger = Ledger(
        divide(config, evaluator.subjects, coarse_from), goal=config.goal, budget=budget, layer_cost=config.layer_cost
    )
    rng = np.random.default_rng(config.seed)
    return make_strategy(name, Setting(config, space, ledger, rng, single_scores, elite)), ledger


def drive(strategy: Strategy, ledger: Ledger, evaluator) -> list[Request]:
    """Answer every request; a set without answers has failed."""
    requests = []
    for request in strategy.run():
        requests.append(request)
        assert len(requests) < 3000, "it does not end"
        assert request.stage in strategy.stages
        answers = dict(evaluator.answers(request.batch, request.questions))
        for layers in request.batch:
            if layers in answers:
                ledger.record(layers, request.questions, answers[layers])
            else:
                ledger.fail(layers)
    return requests
