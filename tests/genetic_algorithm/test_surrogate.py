from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from genetic_algorithm import Answers, LayerSet, SearchConfig
from genetic_algorithm.ledger import Ledger
from genetic_algorithm.observations import observe, to_value
from genetic_algorithm.questions import divide
from genetic_algorithm.signals import sharpened
from genetic_algorithm.surrogate import Observations, Surrogate, Variances, evenly

DEPTH = 6
SETS = [LayerSet(chosen) for size in range(4) for chosen in combinations(range(DEPTH), size)]
VARIANCES = Variances(layer=0.3, pair=0.1, triple=0.05, remainder=0.02, constant=2.0)


def _features(layers: LayerSet) -> np.ndarray:
    """Constant, layers, pairs, triples and the set itself, each times the root of its prior variance."""
    row = [np.sqrt(VARIANCES.constant)]
    for order, variance in ((1, VARIANCES.layer), (2, VARIANCES.pair), (3, VARIANCES.triple)):
        row += [np.sqrt(variance) * (set(part) <= set(layers)) for part in combinations(range(DEPTH), order)]
    return np.array(row + [np.sqrt(VARIANCES.remainder) * (layers == other) for other in SETS])


def _observations(count: int, *, block_variance: float = 0.0, seed: int = 0) -> Observations:
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(count), 2)
    return Observations(
        tuple(SETS[i] for i in rng.permutation(len(SETS))[:count]),
        index,
        np.tile([0, 1], count),
        rng.normal(size=2 * count),
        rng.uniform(0.1, 0.5, 2 * count),
        np.array([block_variance, block_variance]),
    )


def test_it_is_bayesian_linear_regression_on_layers_pairs_and_triples() -> None:
    data = _observations(20)
    mean, covariance = Surrogate(DEPTH, data, VARIANCES, refit=False).posterior(SETS)
    rows = np.array([_features(s) for s in SETS])
    seen = np.array([_features(data.sets[i]) for i in data.set_index])
    centre = np.average(data.value, weights=1 / data.variance)
    precision = np.eye(rows.shape[1]) + seen.T @ (seen / data.variance[:, None])
    effects = np.linalg.solve(precision, seen.T @ ((data.value - centre) / data.variance))
    np.testing.assert_allclose(mean, centre + rows @ effects, atol=1e-8)
    np.testing.assert_allclose(covariance, rows @ np.linalg.solve(precision, rows.T), atol=1e-8)


def test_effects_are_those_of_the_linear_regression() -> None:
    data = _observations(20)
    surrogate = Surrogate(DEPTH, data, VARIANCES, refit=False)
    seen = np.array([_features(data.sets[i]) for i in data.set_index])
    centre = np.average(data.value, weights=1 / data.variance)
    inverse = np.linalg.inv(np.eye(seen.shape[1]) + seen.T @ (seen / data.variance[:, None]))
    weights = inverse @ seen.T @ ((data.value - centre) / data.variance)
    first = 1  # after the constant
    for order, variance in ((1, VARIANCES.layer), (2, VARIANCES.pair), (3, VARIANCES.triple)):
        groups = [LayerSet(part) for part in combinations(range(DEPTH), order)]
        at = slice(first, first + len(groups))
        mean, deviation = surrogate.effects(groups)
        np.testing.assert_allclose(mean, np.sqrt(variance) * weights[at], atol=1e-8)
        np.testing.assert_allclose(deviation**2, variance * np.diag(inverse)[at], atol=1e-8)
        first += len(groups)
    without = np.r_[0, np.ones(first - 1), np.zeros(len(SETS))]  # neither the constant nor a set's remainder
    rows = np.array([_features(layers) for layers in SETS]) * without
    mean, deviation = surrogate.gains(SETS)
    np.testing.assert_allclose(mean, rows @ weights, atol=1e-8)
    np.testing.assert_allclose(deviation**2, np.diag(rows @ inverse @ rows.T), atol=1e-8)


def test_of_many_observations_every_second_stands_for_two() -> None:
    data = _observations(20)
    assert evenly(data, 40) is data
    half = evenly(data, 39)
    np.testing.assert_array_equal(half.value, data.value[::2])
    np.testing.assert_array_equal(half.set_index, data.set_index[::2])
    assert half.sets == data.sets


def test_its_ways_of_asking_agree() -> None:
    surrogate = Surrogate(DEPTH, _observations(20), VARIANCES, refit=False)
    mean, covariance = surrogate.posterior(SETS)
    np.testing.assert_allclose(surrogate.mean(SETS), mean)
    again, deviation = surrogate.mean_and_deviation(SETS)
    np.testing.assert_allclose(again, mean)
    np.testing.assert_allclose(deviation**2, np.diag(covariance), atol=1e-9)
    draws = surrogate.draw(SETS, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(draws.mean(1), mean, atol=0.06)
    np.testing.assert_allclose(np.cov(draws), covariance, atol=0.06)


def test_a_hard_block_of_questions_does_not_count_against_its_sets() -> None:
    """Two sets equally good; one was asked an easy block alone, the other a hard one as well, as was a third."""
    sets = (SETS[1], SETS[2], SETS[3])
    index, block = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 1])
    values = np.array([0.5, 0.5, -1.5, 0.5, -1.5])
    arguments = (index, block, values, np.full(5, 0.01))
    knows = Surrogate(DEPTH, Observations(sets, *arguments, np.array([4.0, 4.0])), VARIANCES, refit=False).mean(sets)
    ignores = Surrogate(DEPTH, Observations(sets, *arguments, np.zeros(2)), VARIANCES, refit=False).mean(sets)
    assert abs(knows[0] - knows[1]) < 0.1 * abs(ignores[0] - ignores[1])


def test_variances_are_found_again() -> None:
    rng = np.random.default_rng(1)
    sets = [
        LayerSet(tuple(sorted(rng.choice(24, size=rng.integers(1, 5), replace=False).tolist()))) for _ in range(300)
    ]
    sets = list(dict.fromkeys(sets))
    single, pair = rng.normal(0, 0.6, 24), rng.normal(0, 0.1, (24, 24))
    truth = [single[list(s)].sum() + sum(pair[p] for p in combinations(s, 2)) for s in sets]
    count = len(sets)
    values = np.array(truth) + rng.normal(0, 0.05, count)
    data = Observations(
        tuple(sets), np.arange(count), np.zeros(count, np.int64), values, np.full(count, 0.0025), np.array([1e-4])
    )
    found = Surrogate(24, data).variances
    assert 0.36 / 3 < found.layer < 0.36 * 3
    assert 0.01 / 4 < found.pair < 0.01 * 4
    assert found.triple < 0.003


def _levelling_off(count: int) -> Observations:
    """Sets whose layers add up to a value that levels off: among the best sets, effects are small."""
    rng = np.random.default_rng(7)
    drawn = [rng.choice(12, size=rng.integers(1, 5), replace=False).tolist() for _ in range(count)]
    sets = tuple(dict.fromkeys(LayerSet.from_indices(layers) for layers in drawn))
    effects = np.linspace(1.5, -0.5, 12)
    values = np.tanh(0.6 * np.array([effects[list(s)].sum() for s in sets])) + rng.normal(0, 0.05, len(sets))
    index, block = np.arange(len(sets)), np.zeros(len(sets), np.int64)
    return Observations(sets, index, block, values, np.full(len(sets), 0.0025), np.array([1e-4]))


def test_variances_around_a_set_are_those_of_its_neighbourhood() -> None:
    data, best = _levelling_off(400), LayerSet((0, 1, 2, 3))
    everywhere, around = Surrogate(12, data).variances, Surrogate(12, data, around=best).variances
    assert around.layer < 0.5 * everywhere.layer
    near = np.array([len({*s.indices} ^ {*best.indices}) <= 4 for s in data.sets])
    assert 24 <= near.sum() < len(near)


def test_too_few_sets_around_one_leave_the_variances_as_they_are() -> None:
    data, far = _levelling_off(60), LayerSet((8, 9, 10, 11))
    assert sum(len({*s.indices} ^ {*far.indices}) <= 4 for s in data.sets) < 24
    assert Surrogate(12, data, around=far).variances == Surrogate(12, data).variances


def _ledger(quality: np.ndarray, *, signal: str, per_subject: int = 200) -> tuple[Ledger, list[LayerSet]]:
    """Sets of given true accuracy that answered the first look, with signals that are good, random or none."""
    rng = np.random.default_rng(3)
    subjects = np.repeat(np.arange(4), per_subject)
    ledger = Ledger(divide(SearchConfig(fast_limit=16, full_limit=None, holdout=0.0), subjects))
    asked = ledger.questions.blocks[0]
    sets = [LayerSet(chosen) for chosen in combinations(range(10), 2)][: len(quality)]
    for layers, level in zip(sets, quality, strict=True):
        latent = np.log(level / (1 - level)) + rng.logistic(size=len(asked))
        sure = latent if signal == "good" else rng.normal(size=len(asked))
        margin = None if signal == "none" else np.asarray(0.3 * sure + 3 * np.log(level / (1 - level)), np.float32)
        if signal == "noise":
            margin = np.asarray(sure, np.float32)
        ledger.record(layers, asked, Answers(latent > 0, margin))
    return ledger, sets


def test_signals_help_as_far_as_they_predict() -> None:
    quality = np.random.default_rng(4).uniform(0.4, 0.7, 45)
    ledger, sets = _ledger(quality, signal="good")
    found = sharpened(ledger, tuple(sets))
    assert 22 <= len(found) < 45  # the better half
    truth = dict(zip(sets, quality, strict=True))
    plain = {s: float(ledger.score(s, "fast").accuracy) for s in found}
    error = np.mean([(found[s][0] - truth[s]) ** 2 for s in found])
    assert error < 0.5 * np.mean([(plain[s] - truth[s]) ** 2 for s in found])
    stated = np.mean([variance for _, variance in found.values()])
    assert stated < np.mean([p * (1 - p) / 64 for p in plain.values()])


@pytest.mark.parametrize("signal", ["noise", "none"])
def test_signals_that_say_nothing_change_next_to_nothing(signal: str) -> None:
    quality = np.random.default_rng(5).uniform(0.3, 0.8, 45)
    ledger, sets = _ledger(quality, signal=signal)
    found = sharpened(ledger, tuple(sets))
    if signal == "none":
        assert not found
    for layers, (value, _) in found.items():
        assert value == pytest.approx(ledger.score(layers, "fast").accuracy, abs=0.03)


def test_few_sets_have_no_signals() -> None:
    ledger, sets = _ledger(np.full(10, 0.6), signal="good")
    assert not sharpened(ledger, tuple(sets))


def test_observations_tell_shared_difficulty_from_a_sets_own_noise() -> None:
    rng = np.random.default_rng(0)
    subjects = np.zeros(400, np.int64)
    ledger = Ledger(divide(SearchConfig(fast_limit=200, full_limit=None, holdout=0.0), subjects))
    asked = ledger.questions.blocks[0]
    easy = rng.random(len(asked)) < 0.5
    for layers in SETS[1:13]:  # every set knows the easy half, and a tenth of either half turns out otherwise
        ledger.record(layers, asked, Answers(easy ^ (rng.random(len(asked)) < 0.1)))
    data = observe(ledger, with_signals=True)
    assert data.sets == tuple(SETS[1:13])
    own = data.variance * (0.25**2) * len(asked)
    assert own == pytest.approx(np.full(12, 0.09), rel=0.25)  # 0.1 x 0.9
    assert data.block_variance[0] * (0.25**2) * len(asked) == pytest.approx(0.16, rel=0.3)  # 0.25 - 0.09


def test_utilities_are_accuracies_less_the_cost_of_layers() -> None:
    questions = divide(SearchConfig(), np.zeros(100, np.int64))
    sets = [LayerSet(()), LayerSet((1, 2))]
    assert to_value(Ledger(questions, layer_cost=0.1), sets, np.zeros(2)) == pytest.approx([0.5, 0.3])
    draws = to_value(Ledger(questions, goal="kl", layer_cost=0.1), sets, np.full((2, 3), -1.0))
    assert draws == pytest.approx(np.array([[-1.0] * 3, [-1.2] * 3]))
