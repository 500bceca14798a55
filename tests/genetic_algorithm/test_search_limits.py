from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from genetic_algorithm import Answers, LayerSet, Search, SearchConfig, SearchError, SearchSpace
from genetic_algorithm.config import tiny
from genetic_algorithm.questions import ALL, FULL, HOLDOUT, divide
from genetic_algorithm.search import CHECK, run
from genetic_algorithm.strategies import STRATEGIES
from tests.genetic_algorithm.simulator import NUM_LAYERS, Counting, Simulator

SPACE = SearchSpace(NUM_LAYERS, 1, 4)
SMALL = SearchConfig(population=10, generations=4, fast_limit=8, full_limit=30, verified=6, kept=5)
strategies = pytest.mark.parametrize("strategy", sorted(STRATEGIES))
both = pytest.mark.parametrize("strategy", ["ga", "ga-original"])


# The hold-out.


def test_the_hold_out_is_the_last_share_of_each_subject_and_no_part_of_any_other() -> None:
    subjects = np.repeat([0, 1], [30, 20])
    parts = divide(SearchConfig(fast_limit=2, full_limit=None, final_limit=None, holdout=0.2), subjects).parts
    assert parts[HOLDOUT].tolist() == [24, 25, 26, 27, 28, 29, 46, 47, 48, 49]
    assert len(parts[FULL]) == 40
    others = [name for name in parts if name not in (HOLDOUT, ALL)]
    assert not set(parts[HOLDOUT]) & {q for name in others for q in parts[name]}
    assert len(divide(SearchConfig(holdout=0), subjects).parts[HOLDOUT]) == 0


@strategies
def test_the_hold_out_is_asked_last_and_of_finalists_alone(strategy: str) -> None:
    simulator = Simulator(0, per_subject=100)
    search = Search(replace(SMALL, strategy=strategy, max_questions=9_000), SPACE, simulator.subjects)
    held, requests = set(search.ledger.parts[HOLDOUT].tolist()), []
    while request := search.ask():
        requests.append(request)
        search.tell(dict(simulator.answers(request.batch, request.questions)))
    stages = [request.stage for request in requests]
    assert stages == sorted(stages, key=lambda stage: stage == CHECK)
    assert all((set(r.questions.tolist()) <= held) == (r.stage == CHECK) for r in requests)
    assert not any(set(r.questions.tolist()) & held for r in requests if r.stage != CHECK)
    asked = {layers for request in requests if request.stage == CHECK for layers in request.batch}
    leader, best = search.outcome.final[0], search.outcome.best_per_size
    smaller = {layers for size, layers in best.items() if size < len(leader)}
    assert asked == {*search.outcome.final[:2], *smaller, LayerSet(())}


@strategies
def test_the_hold_out_has_no_say_in_the_ranking(strategy: str) -> None:
    class Lying(Simulator):
        """Everything is wrong on the hold-out."""

        def answers(self, batch, questions):
            for layers, given in super().answers(batch, questions):
                yield layers, Answers(given.correct & ~np.isin(questions, held))

    config = replace(SMALL, strategy=strategy, max_questions=9_000)
    honest, lying = Simulator(0, per_subject=100), Lying(0, per_subject=100)
    searches = [Search(config, SPACE, honest.subjects) for _ in range(2)]
    held = searches[0].ledger.parts[HOLDOUT]
    run(searches[1], lying)
    for request in iter(searches[0].ask, None):  # without margins, as the lying one
        given = honest.answers(request.batch, request.questions)
        searches[0].tell({layers: Answers(answers.correct) for layers, answers in given})
    assert searches[1].outcome.final == searches[0].outcome.final
    assert searches[1].ledger.score(searches[1].outcome.final[0], HOLDOUT).correct == 0


# The budget.


@strategies
@pytest.mark.parametrize("passes", [2.5, 4, 8, 16])
def test_the_budget_is_kept_hold_out_included(passes: float, strategy: str) -> None:
    evaluator = Counting(Simulator(0, per_subject=400))
    config = replace(tiny(), strategy=strategy, max_passes=passes)
    outcome = run(Search(config, SPACE, evaluator.subjects), evaluator)
    asked = sum(int(asked.sum()) for asked in evaluator.asked.values())
    assert asked == outcome.ledger.spent <= passes * 1600
    assert outcome.ledger.score(outcome.final[0], HOLDOUT) is not None
    assert not outcome.is_cut_short


def test_the_tightest_of_two_budgets_holds() -> None:
    simulator = Simulator(0, per_subject=400)
    config = replace(tiny(), max_passes=8, max_questions=6_000)
    assert run(Search(config, SPACE, simulator.subjects), simulator).ledger.spent <= 6_000


def test_a_budget_below_the_least_useful_one_says_what_is_needed() -> None:
    subjects = Simulator(0, per_subject=400).subjects
    with pytest.raises(SearchError, match=r"a budget of 500 questions is below the least useful one here, [\d,]+ "):
        Search(replace(tiny(), max_passes=None, max_questions=500), SPACE, subjects)


@strategies
def test_a_search_that_is_stopped_still_asks_the_hold_out(strategy: str) -> None:
    simulator = Simulator(0, per_subject=100)
    search = Search(replace(SMALL, strategy=strategy, max_questions=9_000), SPACE, simulator.subjects)
    request = search.ask()
    assert request is not None
    search.tell(dict(simulator.answers(request.batch, request.questions)))
    dropped = search.ask()
    assert dropped is not None
    search.stop()
    rest = []
    while request := search.ask():
        search.stop()  # in the hold-out it is too late
        assert search.ask() is request
        rest.append(request)
        search.tell(dict(simulator.answers(request.batch, request.questions)))
    assert {request.stage for request in rest} == {CHECK}
    assert search.outcome.is_cut_short
    assert search.ledger.score(search.outcome.final[0], HOLDOUT) is not None


# Constraints.


@strategies
@pytest.mark.parametrize(
    ("constraints", "leader"),
    [
        ({"must_include": (2,), "forbid": (9,)}, None),
        ({"window": (3, 9)}, None),
        ({"window": (0, 9), "must_include": (0, 9), "max_layers": 3}, (0, 2, 9)),
        ({"must_include": (0, 1, 2, 9)}, (0, 1, 2, 9)),
        ({"min_layers": 3, "max_layers": 6, "forbid": (2,)}, None),
    ],
)
def test_every_proposal_keeps_to_the_constraints(
    constraints: Mapping[str, object], leader: tuple[int, ...] | None, strategy: str
) -> None:
    evaluator = Counting(Simulator(0, per_subject=100))
    config = replace(SMALL, strategy=strategy, max_questions=9_000, **constraints)
    space = config.space(NUM_LAYERS)
    search = Search(config, space, evaluator.subjects)
    outcome = run(search, evaluator)
    assert all(space.contains(layers) for layers in {*outcome.final, *outcome.best_per_size.values()})
    helped = {LayerSet(()), *(space.of([i]) for i in space.free)}
    smaller = replace(space, min_layers=len(space.must_include))  # on the way to sets of the space
    assert all(smaller.contains(layers) for layers in set(evaluator.asked) - helped)
    if leader is not None:
        assert outcome.final[0] == LayerSet(leader)


@pytest.mark.parametrize(
    ("constraints", "told"),
    [
        ({"must_include": (12,)}, "--must-include 12: the model's layers are 0 to 11"),
        ({"forbid": (-1,)}, "--forbid -1: the model's layers are 0 to 11"),
        ({"must_include": (3,), "forbid": (3,)}, "layer 3 must be included and is forbidden"),
        ({"must_include": (3,), "window": (4, 9)}, "layer 3 must be included and is forbidden (--forbid, or outside"),
        ({"must_include": (1, 2, 3, 4, 5)}, "--must-include names 5 layers, --max-layers allows 4"),
        ({"min_layers": 3, "window": (4, 5)}, "--min-layers 3 cannot be met: --forbid and --window leave 2 layers"),
        ({"window": (4, 12)}, "--window 4:12: the model's layers are 0 to 11"),
        ({"forbid": tuple(range(12))}, "cannot be met"),
    ],
)
def test_constraints_that_cannot_be_met_are_named(constraints: Mapping[str, object], told: str) -> None:
    with pytest.raises(SearchError) as error:
        replace(SMALL, **constraints).space(NUM_LAYERS)
    assert told in str(error.value)


@both
def test_a_cost_per_layer_leads_to_smaller_sets(strategy: str) -> None:
    simulator = Simulator(0, per_subject=400)
    sizes = []
    for cost in (0.0, 0.04, 0.5):
        config = replace(SMALL, strategy=strategy, layer_cost=cost)
        sizes.append(len(run(Search(config, SPACE, simulator.subjects), simulator).final[0]))
    assert sizes[0] > sizes[1] > sizes[2] == 1


@strategies
def test_limits_so_close_that_there_are_fewer_rungs_than_stages_are_enough(strategy: str) -> None:
    config = SearchConfig(strategy=strategy, population=8, generations=3, fast_limit=4, full_limit=8, final_limit=10)
    simulator = Simulator(0, per_subject=10)
    search = Search(replace(config, max_layers=3), SearchSpace(NUM_LAYERS, 1, 3), simulator.subjects)
    run(search, simulator)
    assert search.outcome.final
