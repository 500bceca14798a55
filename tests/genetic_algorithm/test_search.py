from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from genetic_algorithm import Answers, LayerSet, Search, SearchConfig, SearchError, SearchSpace
from genetic_algorithm.config import PRESETS, full, quick, tiny
from genetic_algorithm.ledger import FAST, FINAL, FULL, HOLDOUT, Request, question_parts
from genetic_algorithm.plan import make_plan, remaining
from genetic_algorithm.search import Outcome, run
from tests.genetic_algorithm.simulator import NUM_LAYERS, Counting, Simulator

SPACE = SearchSpace(NUM_LAYERS, 1, 4)
SMALL = SearchConfig(population=10, generations=4, fast_limit=8, full_limit=30, verified=6, kept=5)


def _transcript(search: Search, evaluator) -> list[tuple[tuple[str, ...], tuple[int, ...], str]]:
    lines = []
    while request := search.ask():
        lines.append((tuple(map(str, request.batch)), tuple(request.questions.tolist()), request.label))
        search.tell(dict(evaluator.answers(request.batch, request.questions)))
    return lines


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_a_set_within_a_point_of_the_best(seed: int) -> None:
    simulator = Simulator(0)
    truth = simulator.exhaustive(SPACE)
    search = Search(replace(tiny(), seed=seed), SPACE, simulator.subjects)
    outcome = run(search, simulator)
    assert max(truth.values()) - truth[outcome.final[0]] <= 0.01
    assert sum(usage.questions for usage in outcome.usage.values()) < 60_000


@pytest.mark.parametrize("landscape", range(1, 6))
def test_it_does_so_on_other_landscapes(landscape: int) -> None:
    simulator = Simulator(landscape)
    truth = simulator.exhaustive(SPACE)
    outcome = run(Search(tiny(), SPACE, simulator.subjects), simulator)
    assert max(truth.values()) - truth[outcome.final[0]] <= 0.01


@pytest.mark.parametrize("seed", [0, 7])
def test_same_seed_same_proposals_whatever_order_answers_arrive_in(seed: int) -> None:
    config = replace(SMALL, seed=seed)
    transcripts = [
        _transcript(Search(config, SPACE, (e := Counting(Simulator(0), shuffle)).subjects), e)
        for shuffle in (None, None, 1, 2)
    ]
    assert all(transcript == transcripts[0] for transcript in transcripts)


def test_another_seed_proposes_other_sets() -> None:
    simulator = Simulator(0)
    first, second = (_transcript(Search(replace(SMALL, seed=s), SPACE, simulator.subjects), simulator) for s in (0, 1))
    assert first != second


def test_no_question_of_a_set_is_asked_twice() -> None:
    evaluator = Counting(Simulator(0, per_subject=100))
    config = replace(SMALL, holdout_limit=20, final_limit=60)
    outcome = run(Search(config, SPACE, evaluator.subjects), evaluator)
    assert max(int(asked.max()) for asked in evaluator.asked.values()) == 1
    total = sum(int(asked.sum()) for asked in evaluator.asked.values())
    assert total == sum(usage.questions for usage in outcome.usage.values())
    assert sum(usage.sets for usage in outcome.usage.values()) == len(evaluator.asked)


def test_a_generation_is_asked_in_one_batch() -> None:
    evaluator = Counting(Simulator(0, per_subject=100))
    run(Search(SMALL, SPACE, evaluator.subjects), evaluator)
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
def test_a_small_space_comes_to_an_end(space: SearchSpace) -> None:
    evaluator = Counting(Simulator(0, per_subject=40))
    evaluator.num_layers = space.num_layers
    outcome = run(Search(replace(SMALL, no_improve=9), space, evaluator.subjects), evaluator)
    assert outcome.final
    assert all(space.contains(layers) for layers in outcome.final)
    helped = {LayerSet(()), *(LayerSet((i,)) for i in range(space.num_layers))}
    assert all(space.contains(layers) for layers in set(evaluator.asked) - helped)


def test_a_long_search_sees_the_whole_small_space_and_stops() -> None:
    evaluator, space = Counting(Simulator(0, per_subject=20)), SearchSpace(NUM_LAYERS, 1, 3)
    config = SearchConfig(max_layers=3, generations=500, no_improve=500, fast_limit=5, full_limit=20)
    run(Search(config, space, evaluator.subjects), evaluator)
    assert len(evaluator.asked) == space.size + 1


def test_scores_are_only_compared_on_the_same_questions() -> None:
    simulator = Simulator(0, per_subject=200)
    search = Search(replace(SMALL, final_limit=100, holdout_limit=40), SPACE, simulator.subjects)
    outcome = run(search, simulator)
    parts = search.ledger.parts
    assert [len(parts[name]) for name in (FAST, FULL, FINAL, HOLDOUT)] == [32, 120, 400, 160]
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
    search = Search(replace(tiny(), generations=1), SPACE, simulator.subjects)
    outcome = run(search, simulator)
    assert outcome.is_local_optimum
    assert len(outcome.paths) == 3
    for path in outcome.paths:
        top = search.ledger.score(path[-1], FULL)
        known = [search.ledger.score(near, FULL) for near in SPACE.neighbours(path[-1])]
        assert all(near.correct <= top.correct for near in known if near is not None)
        rising = [search.ledger.score(layers, FULL).correct for layers in path]
        assert rising == sorted(set(rising))


def test_given_single_scores_are_not_measured_and_elites_come_first() -> None:
    evaluator = Counting(Simulator(0, per_subject=100))
    singles = dict.fromkeys(range(NUM_LAYERS), 0.3) | {2: 0.75, 0: 0.5}
    elite = [LayerSet((0, 1, 2, 9)), LayerSet((2, 9)), LayerSet((0, 2))]
    search = Search(SMALL, SPACE, evaluator.subjects, single_scores=singles, elite=elite)
    run(search, evaluator)
    assert evaluator.batches[0][0][:3] == tuple(elite)
    assert len(evaluator.batches[0][0]) == SMALL.population


def test_the_first_population_holds_elites_scored_draws_and_random_sets() -> None:
    simulator = Simulator(0)
    singles = dict.fromkeys(range(NUM_LAYERS), 0.3) | {4: 0.9}
    search = Search(replace(full(), seed=1), SPACE, simulator.subjects, single_scores=singles)
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


def test_a_failed_set_is_left_out_and_the_search_goes_on() -> None:
    bad = {LayerSet((0, 1, 2, 9)), LayerSet((2,)), LayerSet(())}
    search = Search(SMALL, SPACE, Simulator(0, 100).subjects)
    outcome = run(search, _Failing(bad))
    assert set(search.ledger.failed) <= bad
    assert LayerSet((2,)) in search.ledger.failed
    assert not set(outcome.final) & bad
    assert search.ledger.score(LayerSet((2,)), FAST) is None  # failed is not 0.0


def test_a_search_in_which_everything_fails_says_so() -> None:
    search = Search(SMALL, SPACE, Simulator(0, 100).subjects)
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
    config = replace(SMALL, fast_limit=None, full_limit=None)
    outcome = run(Search(config, SPACE, simulator.subjects), simulator)
    assert outcome.ledger.score(outcome.final[0], FULL).asked == 48
    assert outcome.usage["stage 2"].questions == 0  # fast answers were all


def test_the_plan_bounds_what_a_search_asks() -> None:
    for seed in range(3):
        simulator = Simulator(seed)
        search = Search(replace(tiny(), seed=seed), SPACE, simulator.subjects)
        plan = make_plan(search.config, SPACE, search.ledger.parts, measure_singles=True)
        bound = sum(stage.questions for stage in plan)
        assert remaining(plan, {}, "stage 1") == (sum(stage.typical for stage in plan), bound)
        outcome = run(search, simulator)
        used = {stage: usage.questions for stage, usage in outcome.usage.items()}
        assert sum(used.values()) <= bound
        assert used["stage 1"] <= plan[0].questions
        assert used["stage 2"] <= plan[1].questions
        assert remaining(plan, used, "hold-out") == (0, 0)
        assert sum(stage.typical for stage in plan) <= bound


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
    with pytest.raises(SearchError, match="out of range"):
        Search(SMALL, SPACE, subjects, elite=[LayerSet((12,))])
    with pytest.raises(SearchError, match="lack layer 1"):
        Search(SMALL, SPACE, subjects, single_scores={0: 0.5})
    with pytest.raises(SearchError, match="no questions"):
        Search(SMALL, SPACE, np.zeros(0, np.int64))


def test_requests_and_outcomes_are_usable_objects() -> None:
    simulator = Simulator(0, 50)
    search = Search(SMALL, SPACE, simulator.subjects)
    request = search.ask()
    assert isinstance(request, Request)
    assert request.size == len(request.batch) * len(request.questions)
    outcome = run(search, simulator)
    assert isinstance(outcome, Outcome)
    assert outcome is search.outcome
    assert sorted(outcome.best_per_size) == [1, 2, 3, 4]
    assert outcome.patterns


def test_hold_out_questions_are_kept_back_from_all_others() -> None:
    subjects = np.repeat([0, 1], [30, 20])
    limited = question_parts(SearchConfig(fast_limit=2, full_limit=5, holdout_limit=4), subjects)
    assert limited[HOLDOUT].tolist() == [5, 6, 7, 8, 35, 36, 37, 38]
    unlimited = question_parts(SearchConfig(fast_limit=2, full_limit=None, holdout_limit=4), subjects)
    assert unlimited[HOLDOUT].tolist() == [26, 27, 28, 29, 46, 47, 48, 49]
    assert len(unlimited[FULL]) == 42
    for parts in (limited, unlimited):
        assert not set(parts[HOLDOUT]) & {q for name in (FAST, FULL, FINAL) for q in parts[name]}
    with pytest.raises(SearchError, match=r"--holdout-limit 20 leaves nothing .* a subject has 20 questions"):
        question_parts(SearchConfig(full_limit=None, holdout_limit=20), subjects)


def test_elites_of_large_spaces_are_quick() -> None:
    space = SearchSpace(32, 1, 24)
    search = Search(
        SearchConfig(max_layers=24), space, np.zeros(100, dtype=np.int64), single_scores=dict.fromkeys(range(32), 0.3)
    )
    request = search.ask()
    assert request is not None
    assert len(request.batch) == search.config.population
