from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from genetic_algorithm import LayerSet, SearchError, SearchSpace
from genetic_algorithm.questions import FULL
from genetic_algorithm.strategies.racing import advantage, corrected
from genetic_algorithm.strategies.scan import layer_calls, shared_passes
from tests.genetic_algorithm.simulator import NUM_LAYERS, Simulator
from tests.genetic_algorithm.strategies.driving import CONFIG, SPACE, drive, start

WINDOW = SearchSpace(32, 1, 4, forbidden=tuple(i for i in range(32) if not 8 <= i <= 23))


def test_the_window_of_the_8b_pair_is_923_passes() -> None:
    assert WINDOW.size == 2516
    assert round(shared_passes(WINDOW)) == 923
    assert layer_calls(WINDOW) == 8 + 9399 + 2516 * 8
    assert round(shared_passes(SearchSpace(32, 1, 4))) == 8883


@pytest.mark.parametrize(
    "space",
    [
        SearchSpace(9, 1, 3),
        SearchSpace(9, 0, 9),
        SearchSpace(9, 3, 3),
        SearchSpace(9, 8, 9),
        SearchSpace(9, 2, 4, must_include=(1, 5), forbidden=(0, 8)),
        SearchSpace(9, 5, 6, must_include=(3,), forbidden=(4, 6)),
        SearchSpace(9, 2, 2, must_include=(1, 5)),
        SearchSpace(9, 0, 0),
    ],
)
def test_layer_calls_are_the_distinct_ones(space: SearchSpace) -> None:
    calls = {(layer, tuple(i for i in s if i <= layer)) for s in space for layer in range(space.num_layers)}
    assert layer_calls(space) == len(calls)


def test_the_forecast_tells_both_currencies() -> None:
    simulator = Simulator(0, 30)
    simulator.num_layers = 32
    strategy, ledger = start("scan", simulator, WINDOW, config=replace(CONFIG, holdout=0.0))
    (stage,) = strategy.forecast()
    assert stage.questions == 2516 * 120 == 2516 * ledger.num_questions
    assert stage.shared_passes == pytest.approx(923, abs=0.1)
    held_out, _ = start("scan", simulator, WINDOW, config=CONFIG)
    assert held_out.forecast()[0].shared_passes < 0.8 * 923


def test_a_scan_is_brute_force_at_a_part_of_its_cost() -> None:
    for seed in range(4):
        simulator = Simulator(seed, 200)
        strategy, ledger = start("scan", simulator)
        requests = drive(strategy, ledger, simulator)
        assert len(requests) == len(ledger.questions.rungs)  # one for each rung: layers can be shared
        assert set(requests[0].batch) == set(SPACE)
        right = {s: int(simulator.all_answers(s).correct[ledger.parts[FULL]].sum()) for s in SPACE}
        assert right[strategy.ranking()[0]] == max(right.values())
        assert ledger.spent < 0.3 * SPACE.size * len(ledger.parts[FULL])


def test_a_scan_on_all_questions_at_once_is_brute_force() -> None:
    simulator = Simulator(0, 40)
    config = replace(CONFIG, fast_limit=None, holdout=0.0)
    strategy, ledger = start("scan", simulator, config=config)
    (request,) = drive(strategy, ledger, simulator)
    assert request.size == SPACE.size * 160
    truth = simulator.exhaustive(SPACE)
    assert truth[strategy.ranking()[0]] == max(truth.values())
    assert [truth[s] for s in strategy.ranking()] == sorted(truth.values(), reverse=True)
    assert strategy.details()["scan"]["largest_advantage_of_a_dropped_set"] is None


@pytest.mark.parametrize("budget", [None, 60_000, 25_000])
def test_the_stated_error_holds(budget: int | None) -> None:
    space, wrong = SearchSpace(NUM_LAYERS, 1, 3), 0
    for seed in range(20):
        simulator = Simulator(seed, 150)
        strategy, ledger = start("scan", simulator, space, budget=budget)
        drive(strategy, ledger, simulator)
        told = strategy.details()["scan"]
        truth = simulator.landscape.accuracy
        leader = truth(strategy.ranking()[0])
        dropped = {**strategy.race.worse, **strategy.race.cut}
        top = [s for s in space if ledger.score(s, FULL)]
        assert sorted([*dropped, *strategy.race.unseen, *top]) == sorted(space)  # each is accounted for, once
        wrong += max(truth(s) for s in dropped) - leader > told["largest_advantage_of_a_dropped_set"]
        assert str(strategy.ranking()[0]) in told["statement"]
        assert f"{told['largest_advantage_of_a_dropped_set']:.4f}" in told["statement"]
        wrong += max(map(truth, top)) - leader > (told["largest_advantage_of_a_rival"] or 0.0)
    assert wrong <= 1


def test_more_questions_state_a_smaller_error() -> None:
    stated = []
    for per_subject in (30, 1000):
        simulator = Simulator(0, per_subject)
        strategy, ledger = start("scan", simulator, SearchSpace(NUM_LAYERS, 1, 3))
        drive(strategy, ledger, simulator)
        stated.append(strategy.details()["scan"]["largest_advantage_of_a_rival"])
    assert stated[1] < stated[0] / 2


def test_what_the_budget_leaves_out_is_told() -> None:
    simulator = Simulator(0, 100)
    strategy, ledger = start("scan", simulator, budget=5000)
    drive(strategy, ledger, simulator)
    told = strategy.details()["scan"]
    looked_at = sum(ledger.level(s) > 0 for s in ledger.known if SPACE.contains(s))
    assert told["not_looked_at"] == SPACE.size - looked_at > 0
    assert f"did not pay for {told['not_looked_at']:,}" in told["statement"]
    assert 2 in strategy.ranking()[0]  # those with good single layers came first


def test_a_space_that_memory_does_not_hold_is_one_line() -> None:
    with pytest.raises(SearchError) as error:
        start("scan", Simulator(0, 100), SearchSpace(80, 1, 12))
    told = str(error.value)
    assert "\n" not in told
    assert f"{SearchSpace(80, 1, 12).size:,} sets" in told
    assert "--window" in told


def test_an_advantage_is_never_certain_and_counts_the_cost_of_layers() -> None:
    simulator = Simulator(0, 40)
    _, ledger = start("scan", simulator, config=replace(CONFIG, layer_cost=0.01))
    one, other = LayerSet((2,)), LayerSet((0, 2, 9))
    questions = np.arange(simulator.num_questions)
    for layers in (one, other):
        ledger.record(layers, questions, simulator.all_answers(layers))
    difference, error = advantage(ledger, other, one, FULL)
    assert difference == pytest.approx(ledger.compare(other, one, FULL).difference - 0.02)
    assert advantage(ledger, one, one, FULL)[1] > 0
    assert error > ledger.compare(other, one, FULL).standard_error
    assert corrected(0.05, 1) == pytest.approx(1.645, abs=1e-3)
    assert corrected(0.05, 2516 * 5) > 4.4
