from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from genetic_algorithm.intervals import Z95
from genetic_algorithm.report.effects import MOST_OBSERVATIONS, expected, fitted
from genetic_algorithm.report.plot_layers import is_clear, pairs, singles, strongest
from genetic_algorithm.strategies import STRATEGIES
from tests.genetic_algorithm.report.runs import CONFIG, Deep, Page, Told
from tests.genetic_algorithm.simulator import Simulator


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_report_at_any_moment_leaves_every_strategy_as_it_is(strategy: str) -> None:
    config = replace(CONFIG, strategy=strategy, max_passes=8)
    undisturbed, watched = Told(config).finish(), Told(config)
    at = 0
    while watched.step():
        at += 1
        if at in (1, 3):
            Page(watched.page(is_over=False))
        elif at < 8 or at % 9 == 0:
            watched.documents(is_over=False)
    assert watched.requests == undisturbed.requests
    assert watched.document() == undisturbed.document()
    ours, theirs = (told.documents(is_over=True).data for told in (watched, undisturbed))
    assert ours == theirs


def test_the_track_tells_who_led_when() -> None:
    told = Told()
    points: list[tuple[int, str]] = []
    while told.step():
        found = told.track.as_json()["points"]
        points.append((told.done, "+".join(map(str, found[-1]["layers"]))))
    track = told.track.as_json()
    shown = [(point["question_evaluations"], "+".join(map(str, point["layers"]))) for point in track["points"]]
    assert set(shown) <= set(points)
    for done, leader in points:  # between two points nothing changed
        assert [name for at, name in shown if at <= done][-1] == leader
    starts = [stage["question_evaluations"] for stage in track["stages"]]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert track["stages"][-1]["stage"] == "hold-out"
    usage = told.search.outcome.usage
    spans = np.diff([*starts, told.done])
    names = [stage["stage"] for stage in track["stages"]]
    assert {name: int(span) for name, span in zip(names, spans, strict=True)} == {
        stage: of.questions for stage, of in usage.items() if of.questions
    }


def test_frequencies_and_noise_are_counted() -> None:
    told = Told().finish()
    data = told.documents(is_over=True).data
    assert data is not None
    ranking = told.search.strategy.ranking()
    best = ranking[: data["frequency"]["best"]]
    counted = Counter(i for layers in best for i in layers)
    assert data["frequency"]["in_best"] == [counted[i] for i in range(12)]
    assert 1 <= len(best) <= 20
    assert data["frequency"]["asked"] == data["asked_sets"] == len(told.search.ledger.known)
    assert data["patterns"]
    for pattern in data["patterns"]:  # of the same sets, and of more than a few of them
        held = sum(set(pattern["layers"]) <= set(layers) for layers in best)
        assert held >= data["patterns_least"] >= 3
        assert pattern["frequency"] == pytest.approx(held / len(best), abs=1e-5)
    weights = [pattern["frequency"] * pattern["gain"] for pattern in data["patterns"]]
    assert weights == sorted(weights, reverse=True)
    noise, ledger = data["noise"], told.search.ledger
    assert (tuple(noise["layers"]), tuple(noise["against"])) == (ranking[0].indices, ranking[1].indices)
    both = [p for p in ledger.questions.rungs if ledger.score(ranking[0], p) and ledger.score(ranking[1], p)]
    assert noise["questions"] == len(ledger.parts[both[-1]])
    first, second = (ledger.correct(layers, ledger.parts[both[-1]]) for layers in ranking[:2])
    assert first is not None
    assert second is not None
    difference = first.astype(float) - second
    error = difference.std() / np.sqrt(len(difference))
    assert noise["bound"] == pytest.approx(1.96 * error, rel=1e-3, abs=1e-5)


def test_effects_find_the_layers_and_pairs_that_matter() -> None:
    config = replace(CONFIG, strategy="scan", max_layers=2, fast_limit=200, full_limit=600, max_passes=None)
    told = Told(config, Simulator(0, per_subject=800)).finish()
    data = told.documents(is_over=True).data
    assert data is not None
    landscape = told.evaluator.landscape
    single, pair = (np.array([(mean, deviation) for _, mean, deviation in of(data)]).T for of in (singles, pairs))
    assert int(np.argmax(single[0])) == int(np.argmax(landscape.single)) == 2
    assert np.corrcoef(single[0], landscape.single)[0, 1] > 0.95
    true = np.array([landscape.pair[layers] for layers, _, _ in pairs(data)])
    assert np.corrcoef(pair[0], true)[0, 1] > 0.8
    assert np.mean(np.abs(pair[0] - true) < Z95 * pair[1]) > 0.85  # 95 % of many is what the intervals promise
    assert (2, 9) in [effect[0] for effect in pairs(data) if is_clear(effect)]


def test_what_no_set_held_has_no_effect_told() -> None:
    told = Told(replace(CONFIG, forbid=(3,), max_layers=2)).finish()
    data = told.documents(is_over=True).data
    assert data is not None
    assert data["effects"]["singles"]["mean"][3] is None
    asked = {pair for layers in told.search.ledger.known for pair in combinations(layers.indices, 2)}
    assert {pair for pair, _, _ in pairs(data)} == asked
    assert strongest(data) > 0


def test_what_leaders_are_expected_to_have_is_on_the_scale_of_scores() -> None:
    told = Told(replace(CONFIG, layer_cost=0.05)).finish()
    ledger, leader = told.search.ledger, told.search.outcome.final[0]
    model = fitted(ledger, 12)
    assert model is not None
    value, low, high = expected(model, ledger, [leader])[str(leader)]
    score = ledger.best_score(leader, "full")
    assert score is not None
    assert low < score.value < high  # the cost of layers is no part of it
    assert low < value < high


def test_it_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genetic_algorithm.report.effects.MOST_OBSERVATIONS", 200)  # as of a search that is far longer
    config = replace(CONFIG, strategy="random", max_passes=None, max_questions=40_000, population=1000, generations=1)
    told = Told(config, Deep(80)).finish()
    assert len(told.search.ledger.known) > 500
    assert MOST_OBSERVATIONS == 1200
    documents = told.documents(is_over=True)
    assert len(json.dumps(documents.data)) < 300_000
