from __future__ import annotations

import json
import random
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from benchmarks import landscape, landscapes, outsiders
from genetic_algorithm import Answers, LayerSet, SearchSpace
from genetic_algorithm.errors import SearchError
from tests.genetic_algorithm.simulator import Counting, Simulator

ROOT = Path(__file__).resolve().parents[2]
GOOD = LayerSet.parse("11+13+14+17")


@pytest.fixture(scope="module")
def replay():
    return landscapes.ReplayedPair(0)


def correct(evaluator, layers, questions):
    ((named, answers),) = evaluator.answers([layers], questions)
    assert named == layers
    return answers.correct


class TestReplayedPair:
    def test_has_the_questions_of_mmlu(self, replay):
        assert (replay.num_layers, replay.num_questions, len(replay.subject_names)) == (32, 14042, 57)
        sizes = dict(zip(replay.subject_names, np.bincount(replay.subjects).tolist(), strict=True))
        assert (sizes["abstract_algebra"], sizes["professional_law"]) == (100, 1534)

    def test_answers_depend_on_set_question_and_seed_alone(self, replay):
        every = np.arange(replay.num_questions)
        some = np.array([13000, 5, 77])
        sets = [GOOD, LayerSet((0,)), LayerSet(())]
        whole = dict(replay.answers(sets, every))
        other = landscapes.ReplayedPair(0)
        for layers, answers in other.answers([*reversed(sets), GOOD], some):
            np.testing.assert_array_equal(answers.correct, whole[layers].correct[some])
            assert answers.margin is None
            assert answers.divergence is None
        assert [layers for layers, _ in other.answers([GOOD, GOOD], some)] == [GOOD]
        assert (correct(landscapes.ReplayedPair(1), GOOD, every) != whole[GOOD].correct).mean() > 0.3

    def test_each_set_has_its_own_noise(self, replay):
        # Without effects of their own two sets still differ on questions: no two share a generator.
        rows = [replay.correct(LayerSet(layers)) for layers in ((), (0,), (1,), (0, 1))]
        assert min((a != b).mean() for a, b in combinations(rows, 2)) > 0.1

    @pytest.mark.parametrize("text", ["none", "17", "4+29", "11+13+17", "11+13+14+17", "0+5+9+30"])
    def test_truth_is_the_sum_of_effects_and_the_mean_of_many_draws(self, replay, text):
        layers, effects = LayerSet.parse(text), replay.effects
        total = landscapes.to_scale(0.33) + sum(effects.single[i] for i in layers)
        total += sum(effects.pair[low, high] for low, high in combinations(layers, 2))
        assert replay.truth(layers) == pytest.approx(0.22 + 0.43 / (1 + np.exp(-total)), abs=1e-5)
        draws = [landscapes.ReplayedPair(seed).correct(layers).mean() for seed in range(8)]
        assert np.mean(draws) == pytest.approx(replay.truth(layers), abs=4 * 0.0042 / 8**0.5)

    def test_truth_is_the_same_for_every_seed(self, replay):
        assert landscapes.ReplayedPair(3).truth(GOOD) == pytest.approx(replay.truth(GOOD), abs=1e-12)

    def test_new_questions_have_the_truth_of_their_subjects(self, replay):
        """Drawn instead of dealt: truths differ by seed, around that of the landscape, and answers go by them."""
        drawn = [landscapes.ReplayedPair(seed, is_drawn=True) for seed in range(12)]
        truths = np.array([pair.truth(GOOD) for pair in drawn])
        assert 0.005 < truths.std() < 0.05
        assert truths.mean() == pytest.approx(replay.truth(GOOD), abs=4 * truths.std() / 12**0.5)
        off = np.array([pair.correct(GOOD).mean() for pair in drawn]) - truths
        assert abs(off).max() < 4 * 0.0042
        assert drawn[0].top(3) == replay.top(3)

    def test_the_best_set_is_best(self, replay):
        best, truth = replay.best()
        assert (str(best), len(replay.top(5))) == ("11+13+14+17", 5)
        assert truth == replay.truth(best) == pytest.approx(0.602, abs=0.001)
        near = SearchSpace(32, 1, 4).neighbours(best)
        assert truth > max(map(replay.truth, near))
        assert replay.truth(replay.top(2)[1]) == pytest.approx(max(map(replay.truth, near)))

    def test_two_good_sets_differ_on_about_a_fifth_of_the_questions(self, replay):
        good = [layers for layers in replay.top(400) if abs(replay.truth(layers) - 0.58) < 0.004][:8]
        differing = [np.mean(replay.correct(a) != replay.correct(b)) for a, b in combinations(good, 2)]
        assert np.mean(differing) == pytest.approx(0.2, abs=0.01)

    def test_questions_share_difficulty_within_subjects(self, replay):
        row = replay.correct(GOOD)
        by_subject = [row[replay.subjects == subject].mean() for subject in range(57)]
        assert 0.08 < np.std(by_subject) < 0.2  # chance alone: 0.04

    def test_noise_leaves_the_regret_that_was_measured(self):
        assert 0.0005 < landscapes.noise_floor(range(8), count=60).mean() < 0.0035


class TestEffects:
    def test_reproduce_the_measurements_within_their_noise(self, replay):
        sets, measured = landscapes.measurements()
        assert [sum(len(s) == size for s in sets) for size in (1, 2, 3)] == [32, 145, 140]
        errors = np.array([replay.truth(layers) for layers in sets]) - measured
        assert np.sqrt((errors**2).mean()) < 0.009
        assert abs(errors.mean()) < 0.001

    def test_predict_a_measurement_left_out_as_well_as_a_fit_without_it(self, replay):
        sets, measured = landscapes.measurements()
        at = next(i for i, layers in enumerate(sets) if str(layers) == "11+13+17")
        others = [layers for i, layers in enumerate(sets) if i != at]
        without = landscapes.Effects(others, np.delete(measured, at))
        expected = without.accuracies(np.array([[11, 13, 17]]))[0] - measured[at]
        assert replay.effects.left_out_errors()[at] == pytest.approx(expected, abs=1e-9)

    def test_drawn_ones_spread_around_the_fit_where_nothing_was_measured(self, replay):
        drawn = [landscapes.drawn_pair(seed).effects for seed in range(20)]
        assert landscapes.drawn_pair(3).effects.single.tolist() == drawn[3].single.tolist()
        singles = np.array([one.single for one in drawn])
        assert np.abs(singles.mean(0) - replay.effects.single).max() < 6 * singles.std(0).max() / 20**0.5
        sets, measured = landscapes.measurements()
        assert np.std([effects.pair[30, 31] for effects in drawn]) > 0.05
        errors = [
            landscapes.ReplayedPair(0, effects=effects).truth(layers) - accuracy
            for effects in drawn[:5]
            for layers, accuracy in zip(sets[::20], measured[::20], strict=True)
        ]
        assert np.sqrt(np.mean(np.square(errors))) < 0.02

    def test_predict_better_with_pairs_than_without(self, replay):
        with_pairs = np.sqrt((replay.effects.left_out_errors() ** 2).mean())
        alone = landscapes.Effects(*landscapes.measurements(), pair_penalty=1e6).left_out_errors()
        assert with_pairs < 0.013
        assert np.sqrt((alone**2).mean()) > 1.3 * with_pairs


class Engine:
    """Three layers and five questions, answered by arithmetic."""

    num_layers, num_questions, subject_names = 3, 5, ("a", "b")
    subjects = np.array([0, 0, 1, 1, 1])
    fingerprint = {"pair": "toy"}  # noqa: RUF012

    def answers(self, batch, questions):
        for layers in batch:
            margin = sum(2.0**i for i in layers) - questions.astype(np.float32)
            yield layers, Answers(margin > 0, margin.astype(np.float32), questions / np.float32(8))


@pytest.fixture
def recording(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(landscape, "build_evaluator", lambda *_, **__: Engine())
    path = tmp_path / "new folder" / "answers.npz"
    assert landscape.main(["--answers", str(path), "--slice", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["best"] == "0+2"
    assert list(path.parent.iterdir()) == [path]
    return path


class TestRecordedPair:
    def test_gives_the_answers_that_were_recorded(self, recording):
        pair = landscapes.RecordedPair(4, path=recording)
        assert (pair.num_layers, pair.num_questions, pair.subject_names) == (3, 5, ("a", "b"))
        np.testing.assert_array_equal(pair.subjects, Engine.subjects)
        sets = [LayerSet((0, 1)), LayerSet((1,))]
        every = np.arange(5)
        for layers, answers in pair.answers(sets, every):
            ((_, told),) = Engine().answers([layers], every)
            for subject in (0, 1):  # the same answers within each subject, in another order
                inside = Engine.subjects == subject
                assert sorted(answers.margin[inside]) == sorted(told.margin[inside])
            np.testing.assert_array_equal(answers.correct, answers.margin > 0)
            np.testing.assert_array_equal(answers.margin + 8 * answers.divergence, sum(2 ** np.array(layers.indices)))
            assert {answers.margin.dtype, answers.divergence.dtype} == {np.dtype(np.float32)}

    def test_the_seed_orders_the_questions_of_a_subject_for_all_sets_alike(self, recording):
        asked = np.array([2, 3, 4])
        orders = set()
        for seed in range(20):
            answers = dict(landscapes.RecordedPair(seed, recording).answers([LayerSet((0,)), LayerSet((2,))], asked))
            one, other = answers.values()
            np.testing.assert_array_equal(one.divergence, other.divergence)
            orders.add(tuple(one.divergence * 8))
        assert len(orders) > 3
        assert {tuple(sorted(order)) for order in orders} == {(2.0, 3.0, 4.0)}

    def test_truth_and_best_count_all_questions(self, recording):
        pair = landscapes.RecordedPair(0, path=recording)
        assert [pair.truth(LayerSet.parse(text)) for text in ("none", "0", "0+1", "2")] == [0, 0.2, 0.6, 0.8]
        assert pair.best() == (LayerSet((0, 2)), 1.0)
        assert LayerSet(()) not in pair.top(100)

    def test_says_how_to_make_a_missing_recording(self, tmp_path):
        with pytest.raises(SearchError, match=r"absent\.npz is missing; make it.*landscape\.py --answers"):
            landscapes.RecordedPair(0, path=tmp_path / "absent.npz")

    def test_refuses_what_was_not_recorded(self, recording):
        pair = landscapes.RecordedPair(0, path=recording)
        with pytest.raises(SearchError, match=r"0\+7 was not recorded"):
            list(pair.answers([LayerSet((0, 7))], np.arange(2)))

    def test_the_recording_agrees_with_the_landscape_of_the_pair(self):
        if not landscapes.RECORDING.is_file():
            pytest.skip("no recording of the tiny pair; benchmarks/landscape.py --answers makes it")
        pair = landscapes.RecordedPair(0)
        right = json.loads((ROOT / "models" / "tiny_pair" / "landscape.json").read_text())["sets"]
        off = [abs(right[str(layers)] - 4096 * pair.truth(layers)) for layers in pair.top(800)]
        assert len(off) == 793
        assert max(off) <= 8  # another device rounds otherwise


@pytest.fixture(params=["tpe", "deap_ga", "random_search"])
def search(request):
    library = {"tpe": "optuna", "deap_ga": "deap"}.get(request.param)
    if library:
        pytest.importorskip(library, reason=f"{library} comes with the extra `benchmarks`")
    return getattr(outsiders, request.param)


class TestOutsiders:
    @pytest.mark.parametrize("budget", [1200, 6000])
    def test_keep_the_budget_and_tell_what_they_spent(self, search, budget):
        counting = Counting(Simulator(per_subject=200))
        trail = search(counting, SearchSpace(12, 1, 4), budget, 0, per_subject=10)
        asked = sum(counting.asked.values())
        spent = [questions for questions, _ in trail]
        assert spent[-1] == asked.sum() <= budget
        assert budget - spent[-1] < 800 + 40  # less than another verification and another look
        assert spent == sorted(set(spent))
        assert max(times.max() for times in counting.asked.values()) == 1  # nothing is paid twice
        verified = [layers for layers, times in counting.asked.items() if times.all()]
        assert trail[-1][1] in (verified or counting.asked)

    def test_propose_from_the_space_alone(self, search):
        counting, space = Counting(Simulator(per_subject=50)), SearchSpace(12, 2, 3)
        search(counting, space, 3000, 1, per_subject=10)
        assert {len(layers) for layers in counting.asked} == {2, 3}

    def test_end_when_the_space_is_used_up(self, search, monkeypatch):
        monkeypatch.setattr(outsiders, "PATIENCE", 80)
        counting = Counting(Simulator(per_subject=20))
        trail = search(counting, SearchSpace(12, 1, 1), 100_000, 0, per_subject=5)
        assert sum(map(np.sum, counting.asked.values())) == trail[-1][0] <= 12 * 80
        assert trail[-1][1] == max(counting.asked, key=counting.inner.accuracy)

    def test_the_same_seed_searches_the_same_way_and_leaves_other_chance_alone(self, search):
        def run(seed):
            return search(Simulator(per_subject=50), SearchSpace(12, 1, 4), 3000, seed, per_subject=10)

        random.seed(5)
        expected = random.random()
        random.seed(5)
        first = run(0)
        assert random.random() == expected
        assert run(0) == first
        assert run(1) != first

    def test_choose_by_all_questions_once_they_verify(self, search):
        simulator = Simulator(per_subject=200)
        counting = Counting(simulator)
        trail = search(counting, SearchSpace(12, 1, 4), 8000, 0, per_subject=10)
        verified = [layers for layers, times in counting.asked.items() if times.all()]
        assert len(verified) > 1
        assert simulator.accuracy(trail[-1][1]) == max(map(simulator.accuracy, verified))

    def test_find_good_sets(self, search):
        simulator = Simulator(per_subject=200)
        space = SearchSpace(12, 1, 4)
        trail = search(simulator, space, 16_000, 0, per_subject=20)
        truths = sorted(simulator.exhaustive(space).values(), reverse=True)
        assert simulator.accuracy(trail[-1][1]) > truths[40]

    @pytest.mark.parametrize(("subjects", "look"), [(4, 80), (57, 570)])
    def test_look_at_ten_questions_of_a_subject_or_at_eighty_in_all(self, search, subjects, look):
        simulator = Simulator(per_subject=200)
        simulator.subjects = np.arange(simulator.num_questions) % subjects
        assert search(simulator, SearchSpace(12, 1, 4), 600, 0)[0][0] == look

    def test_refuse_a_budget_below_one_look(self, search):
        with pytest.raises(SearchError, match="39 questions does not pay for one look at 40"):
            search(Simulator(), SearchSpace(12, 1, 4), 39, 0, per_subject=10)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SearchError, match=r"optuna is not installed; pip install -e '\.\[benchmarks\]'"):
        outsiders.tpe(Simulator(), SearchSpace(12, 1, 4), 1000, 0)
