from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from genetic_algorithm import Answers, LayerSet, Search, SearchConfig, SearchError, SearchSpace
from genetic_algorithm.config import PRESETS, full, quick, tiny
from genetic_algorithm.ledger import Request
from genetic_algorithm.progress import remaining
from genetic_algorithm.questions import FAST, FINAL, FULL, HOLDOUT
from genetic_algorithm.search import CHECK, Outcome, run
from genetic_algorithm.strategies import STRATEGIES
from tests.genetic_algorithm.simulator import NUM_LAYERS, Counting, Simulator

SPACE = SearchSpace(NUM_LAYERS, 1, 4)
SMALL = SearchConfig(population=10, generations=4, fast_limit=8, full_limit=30, verified=6, kept=5)
ORIGINAL = replace(SMALL, strategy="ga-original", holdout=0)
strategies = pytest.mark.parametrize("strategy", sorted(STRATEGIES))
both = pytest.mark.parametrize("strategy", ["ga", "ga-original"])


def _transcript(search: Search, evaluator) -> list[tuple[tuple[str, ...], tuple[int, ...], str]]:
    lines = []
    while request := search.ask():
        lines.append((tuple(map(str, request.batch)), tuple(request.questions.tolist()), request.label))
        search.tell(dict(evaluator.answers(request.batch, request.questions)))
    return lines


@both
@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_a_set_within_a_point_of_the_best(seed: int, strategy: str) -> None:
    simulator = Simulator(0)
    truth = simulator.exhaustive(SPACE)
    search = Search(replace(tiny(), seed=seed, strategy=strategy, max_passes=None), SPACE, simulator.subjects)
    outcome = run(search, simulator)
    assert max(truth.values()) - truth[outcome.final[0]] <= 0.01
    assert sum(usage.questions for usage in outcome.usage.values()) < 60_000


@both
@pytest.mark.parametrize("landscape", range(1, 4))
def test_it_does_so_on_other_landscapes(landscape: int, strategy: str) -> None:
    simulator = Simulator(landscape)
    truth = simulator.exhaustive(SPACE)
    outcome = run(Search(replace(tiny(), strategy=strategy), SPACE, simulator.subjects), simulator)
    assert max(truth.values()) - truth[outcome.final[0]] <= 0.01


@strategies
@pytest.mark.parametrize("seed", [0, 7])
def test_same_seed_same_proposals_whatever_order_answers_arrive_in(seed: int, strategy: str) -> None:
    config = replace(SMALL, seed=seed, strategy=strategy, max_questions=9_000)
    transcripts, rankings = [], []
    for shuffle in (None, None, 1, 2):
        evaluator = Counting(Simulator(0, per_subject=100), shuffle)
        search = Search(config, SPACE, evaluator.subjects)
        transcripts.append(_transcript(search, evaluator))
        rankings.append(search.outcome.final)
    assert all(transcript == transcripts[0] for transcript in transcripts)
    assert all(ranking == rankings[0] for ranking in rankings)


@both
def test_another_seed_proposes_other_sets(strategy: str) -> None:
    simulator = Simulator(0, per_subject=100)
    config = replace(SMALL, strategy=strategy)
    first, second = (_transcript(Search(replace(config, seed=s), SPACE, simulator.subjects), simulator) for s in (0, 1))
    assert first != second


@strategies
def test_no_question_of_a_set_is_asked_twice(strategy: str) -> None:
    evaluator = Counting(Simulator(0, per_subject=100))
    config = replace(SMALL, final_limit=60, strategy=strategy, max_questions=9_000)
    outcome = run(Search(config, SPACE, evaluator.subjects), evaluator)
    assert max(int(asked.max()) for asked in evaluator.asked.values()) == 1
    total = sum(int(asked.sum()) for asked in evaluator.asked.values())
    assert total == sum(usage.questions for usage in outcome.usage.values()) == outcome.ledger.spent
    assert sum(usage.sets for usage in outcome.usage.values()) == len(evaluator.asked)


def test_a_generation_is_asked_in_one_batch() -> None:
    evaluator = Counting(Simulator(0, per_subject=100))
    run(Search(ORIGINAL, SPACE, evaluator.subjects), evaluator)
    assert [len(batch) for batch, _ in evaluator.batches[:3]] == [13, 10, 8]


@pytest.mark.parametrize(
    "space",
    [
        SearchSpace(12, 1, 1),
        SearchSpace(12, 4, 4),
        SearchSpace(12, 12, 12),
        SearchSpace(12, 0, 0),
        SearchSpace(12, 11, 12),
        SearchSpace(3, 1, 3),
        SearchSpace(1, 0, 1),
    ],
)
@strategies
def test_a_small_space_comes_to_an_end(space: SearchSpace, strategy: str) -> None:
    evaluator = Counting(Simulator(0, per_subject=40))
    evaluator.num_layers = space.num_layers
    config = replace(SMALL, no_improve=9, strategy=strategy)
    outcome = run(Search(config, space, evaluator.subjects), evaluator)
    assert outcome.final
    assert all(space.contains(layers) for layers in outcome.final)
    assert all(len(layers) <= space.max_layers for layers in evaluator.asked if len(layers) > 1)


def test_a_long_search_sees_the_whole_small_space_and_stops() -> None:
    evaluator, space = Counting(Simulator(0, per_subject=20)), SearchSpace(NUM_LAYERS, 1, 3)
    config = replace(ORIGINAL, max_layers=3, generations=500, no_improve=500, fast_limit=5, full_limit=20)
    run(Search(config, space, evaluator.subjects), evaluator)
    assert len(evaluator.asked) == space.size + 1


def test_scores_are_only_compared_on_the_same_questions() -> None:
    simulator = Simulator(0, per_subject=200)
    config = replace(ORIGINAL, final_limit=100, holdout=0.25)
    search = Search(config, SPACE, simulator.subjects)
    outcome = run(search, simulator)
    parts = search.ledger.parts
    assert [len(parts[name]) for name in (FAST, FULL, FINAL, HOLDOUT)] == [32, 120, 400, 200]
    assert set(parts[FAST]) < set(parts[FULL]) < set(parts[FINAL])
    assert not set(parts[FINAL]) & set(parts[HOLDOUT])
    final_scores = [s.accuracy for layers in outcome.final if (s := search.ledger.score(layers, FINAL))]
    assert len(final_scores) > 1
    assert final_scores == sorted(final_scores, reverse=True)
    below = [layers for layers in outcome.final if search.ledger.score(layers, FINAL) is None]
    full_scores = [search.ledger.score(layers, FULL).accuracy for layers in below]
    assert full_scores == sorted(full_scores, reverse=True)


def test_every_climb_ends_where_no_verified_neighbour_is_better() -> None:
    simulator = Simulator(3)
    config = replace(tiny(), strategy="ga-original", max_passes=None, generations=1)
    search = Search(config, SPACE, simulator.subjects)
    climbs = run(search, simulator).details["stage 3"]
    assert climbs["local_optimum"]
    assert len(climbs["climbs"]) == 3
    for climb in climbs["climbs"]:
        path = [LayerSet(tuple(layers)) for layers in climb]
        top = search.ledger.score(path[-1], FULL)
        known = [search.ledger.score(near, FULL) for near in SPACE.neighbours(path[-1])]
        assert all(near.correct <= top.correct for near in known if near is not None)
        rising = [search.ledger.score(layers, FULL).correct for layers in path]
        assert rising == sorted(set(rising))


def test_given_single_scores_are_not_measured_and_elites_come_first() -> None:
    evaluator = Counting(Simulator(0, per_subject=100))
    singles = dict.fromkeys(range(NUM_LAYERS), 0.3) | {2: 0.75, 0: 0.5}
    elite = [LayerSet((0, 1, 2, 9)), LayerSet((2, 9)), LayerSet((0, 2))]
    search = Search(ORIGINAL, SPACE, evaluator.subjects, single_scores=singles, elite=elite)
    run(search, evaluator)
    assert evaluator.batches[0][0][:3] == tuple(elite)
    assert len(evaluator.batches[0][0]) == SMALL.population


def test_the_default_does_not_measure_given_single_scores_either() -> None:
    evaluator = Counting(Simulator(0, per_subject=100))
    singles = dict.fromkeys(range(NUM_LAYERS), 0.3) | {2: 0.75, 0: 0.5}
    elite = [LayerSet((2, 9))]
    search = Search(replace(SMALL, strategy="ga"), SPACE, evaluator.subjects, single_scores=singles, elite=elite)
    run(search, evaluator)
    first = evaluator.batches[0][0]
    assert elite[0] in first
    assert sum(len(layers) == 1 for layers in first) < 6  # not one for each of the twelve layers
    held = [i for layers in first for i in layers]
    assert held.count(2) == max(held.count(i) for i in range(NUM_LAYERS))  # the best single is drawn most


def test_the_first_population_holds_elites_scored_draws_and_random_sets() -> None:
    simulator = Simulator(0)
    singles = dict.fromkeys(range(NUM_LAYERS), 0.3) | {4: 0.9}
    config = replace(full(), strategy="ga-original", max_passes=None, seed=1)
    search = Search(config, SPACE, simulator.subjects, single_scores=singles)
    request = search.ask()
    assert request is not None
    batch = request.batch
    assert len(batch) == len(set(batch)) == 40
    assert all(4 in layers for layers in batch[:4])  # a tenth: groups of the best single layers
    assert sum(4 in layers for layers in batch[4:20]) > 12  # two fifths: drawn by score
    assert sum(4 in layers for layers in batch[20:]) < 12  # the rest: random


class _Failing(Simulator):
    """Does not yield some sets, as a wrapper does that has recorded their failure."""

    def __init__(self, bad: set[LayerSet]) -> None:
        super().__init__(0, per_subject=100)
        self.bad = bad

    def answers(self, batch, questions):
        return ((s, a) for s, a in super().answers(batch, questions) if s not in self.bad)


@strategies
def test_a_failed_set_is_left_out_and_the_search_goes_on(strategy: str) -> None:
    bad = {LayerSet((0, 1, 2, 9)), LayerSet((2,)), LayerSet(())}
    config = replace(SMALL, strategy=strategy, max_questions=9_000)
    search = Search(config, SPACE, Simulator(0, 100).subjects)
    outcome = run(search, _Failing(bad))
    assert set(search.ledger.failed) <= bad
    assert search.ledger.failed
    assert not set(outcome.final) & bad
    assert search.ledger.score(LayerSet((2,)), FAST) is None  # failed is not 0.0


@both
def test_too_many_failures_end_the_search_and_say_what_was_allowed(strategy: str) -> None:
    search = Search(replace(SMALL, max_failed=0.2, strategy=strategy), SPACE, Simulator(0, 100).subjects)
    with pytest.raises(SearchError, match=r"4 of 13 layer sets could not be evaluated, more than --max-failed 0\.2"):
        run(search, _Failing({LayerSet((i,)) for i in range(4)}))
    bad = {LayerSet((i,)) for i in range(6)}
    allowed = replace(SMALL, max_failed=1.0, strategy=strategy)
    assert not set(run(Search(allowed, SPACE, Simulator(0, 100).subjects), _Failing(bad)).final) & bad


def test_a_search_in_which_everything_fails_says_so() -> None:
    search = Search(replace(ORIGINAL, max_failed=1.0), SPACE, Simulator(0, 100).subjects)
    with pytest.raises(SearchError, match="no layer set could be evaluated"):
        run(search, _Failing(set(SearchSpace(NUM_LAYERS, 0, 4))))


def test_ask_repeats_itself_until_told_and_tell_needs_a_question() -> None:
    simulator = Simulator(0, 100)
    search = Search(SMALL, SPACE, simulator.subjects)
    request = search.ask()
    assert request is not None
    assert search.ask() is request
    search.tell(dict(simulator.answers(request.batch, request.questions)))
    with pytest.raises(SearchError, match="nothing was asked"):
        search.tell({})
    second = search.ask()
    assert second is not request
    with pytest.raises(SearchError, match="one per question"):
        search.tell(dict.fromkeys(second.batch, Answers(np.ones(3, bool))))


def test_all_questions_everywhere_is_allowed() -> None:
    simulator = Simulator(0, per_subject=12)
    config = replace(ORIGINAL, fast_limit=None, full_limit=None)
    outcome = run(Search(config, SPACE, simulator.subjects), simulator)
    assert outcome.ledger.score(outcome.final[0], FULL).asked == 48
    assert outcome.usage["stage 2"].questions == 0  # fast answers were all


def test_the_forecast_bounds_what_a_search_asks() -> None:
    for seed in range(3):
        simulator = Simulator(seed)
        config = replace(tiny(), seed=seed, strategy="ga-original", max_passes=None)
        search = Search(config, SPACE, simulator.subjects)
        forecast = search.forecast()
        bound = sum(stage.questions for stage in forecast)
        expected = (sum(stage.typical for stage in forecast), bound)
        assert remaining(forecast, {}, "stage 1", float("inf")) == expected
        outcome = run(search, simulator)
        used = {stage: usage.questions for stage, usage in outcome.usage.items()}
        assert sum(used.values()) <= bound
        assert used["stage 1"] <= forecast[0].questions
        assert used["stage 2"] <= forecast[1].questions
        assert remaining(forecast, used, CHECK, float("inf")) == (0, 0)
        assert sum(stage.typical for stage in forecast) <= bound


@strategies
def test_with_a_budget_the_forecast_is_the_budget_at_most(strategy: str) -> None:
    search = Search(replace(tiny(), strategy=strategy, max_passes=8), SPACE, Simulator(0).subjects)
    forecast = search.forecast()
    assert [stage.stage for stage in forecast] == list(search.stages)
    assert sum(stage.typical for stage in forecast) <= 32_000
    left = remaining(forecast, {}, forecast[0].stage, search.ledger.left)
    assert left[0] <= left[1] <= 32_000
    assert remaining(forecast, {}, forecast[0].stage, 100) == (100 + search.hold_out_cost,) * 2


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"population": 0}, "--population must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"fast_limit": 0}, "--fast-limit must be at least 1, got 0"),
        ({"fast_limit": 60, "full_limit": 50}, "--fast-limit 60 is more than --full-limit 50"),
        ({"fast_limit": None, "full_limit": 50}, "--fast-limit none is more than --full-limit 50"),
        ({"final_limit": 20, "full_limit": 50}, "--final-limit 20 is less than --full-limit 50"),
        ({"elite_fraction": 0.8, "scored_fraction": 0.4}, "their sum is at most 1"),
        ({"guidance": 1.5}, "guidance must be between 0 and 1, got 1.5"),
        ({"min_layers": 3, "max_layers": 2}, "--min-layers 3 is above --max-layers 2"),
        ({"holdout": 1.0}, "--holdout must be at least 0 and below 1, got 1.0"),
        ({"holdout": float("nan")}, "--holdout must be at least 0 and below 1, got nan"),
        ({"growth": 1.0}, "--growth must be between 1.2 and 100, got 1.0"),
        ({"goal": "loss"}, "--goal loss is none of accuracy, kl"),
        ({"layer_cost": -0.1}, "--layer-cost must be at least 0"),
        ({"max_questions": 0}, "--max-questions must be above 0, got 0"),
        ({"max_passes": float("inf")}, "--max-passes must be above 0, got inf"),
        ({"max_hours": float("nan")}, "--max-hours must be above 0, got nan"),
        ({"max_failed": 2}, "--max-failed must be between 0 and 1, got 2"),
        ({"window": (5, 4)}, "--window 5:4 holds no layer"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(values: Mapping[str, object], told: str) -> None:
    with pytest.raises(SearchError) as error:
        SearchConfig(**values)
    assert told in str(error.value)


def test_presets_are_those_of_the_scripts() -> None:
    assert set(PRESETS) == {"tiny", "quick", "full"}
    quick_, full_ = quick(), full()
    assert (quick_.population, quick_.generations, quick_.fast_limit, quick_.full_limit) == (20, 15, 10, 50)
    assert (full_.population, full_.generations, full_.fast_limit, full_.full_limit) == (40, 20, 20, None)


def test_elites_and_scores_that_do_not_fit_are_refused() -> None:
    subjects = Simulator(0, 10).subjects
    with pytest.raises(SearchError, match="layer 12 does not exist; the model has layers 0 to 11"):
        Search(SMALL, SPACE, subjects, elite=[LayerSet((12,))])
    with pytest.raises(SearchError, match="lack layer 1"):
        Search(SMALL, SPACE, subjects, single_scores={0: 0.5})
    with pytest.raises(SearchError, match="no questions"):
        Search(SMALL, SPACE, np.zeros(0, np.int64))


@both
def test_requests_and_outcomes_are_usable_objects(strategy: str) -> None:
    simulator = Simulator(0, 50)
    search = Search(replace(SMALL, strategy=strategy), SPACE, simulator.subjects)
    request = search.ask()
    assert isinstance(request, Request)
    assert request.size == len(request.batch) * len(request.questions)
    outcome = run(search, simulator)
    assert isinstance(outcome, Outcome)
    assert outcome is search.outcome
    assert set(outcome.best_per_size) <= {1, 2, 3, 4}
    assert all(len(layers) == size for size, layers in outcome.best_per_size.items())
    assert outcome.details["patterns"]


def test_elites_of_large_spaces_are_quick() -> None:
    space = SearchSpace(32, 1, 24)
    config = SearchConfig(max_layers=24, strategy="ga-original")
    subjects = np.zeros(100, dtype=np.int64)
    search = Search(config, space, subjects, single_scores=dict.fromkeys(range(32), 0.3))
    request = search.ask()
    assert request is not None
    assert len(request.batch) == search.config.population
