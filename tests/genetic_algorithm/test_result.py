"""What a search says of itself when it is over: scores, comparisons, and the conclusion in words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from genetic_algorithm import Answers, LayerSet, Search, SearchConfig, SearchSpace, comparisons, result
from genetic_algorithm.comparisons import Finding
from genetic_algorithm.conclusion import conclude, spell_p
from genetic_algorithm.intervals import holm
from genetic_algorithm.paired_test import Paired, compare
from genetic_algorithm.questions import HOLDOUT
from genetic_algorithm.search import Outcome, run
from tests.genetic_algorithm.simulator import NUM_LAYERS, Simulator

SPACE = SearchSpace(NUM_LAYERS, 1, 4)
BASE = LayerSet(())
CONFIG = SearchConfig(
    strategy="ga-original", population=10, generations=4, fast_limit=8, full_limit=60, verified=6, kept=5
)


def searched(config: SearchConfig = CONFIG, evaluator: Any = None) -> tuple[Outcome, Any]:
    """A search that is over, and the evaluator that it asked."""
    evaluator = Simulator(0, per_subject=200) if evaluator is None else evaluator
    return run(Search(config, SPACE, evaluator.subjects), evaluator), evaluator


def document(outcome: Outcome, evaluator: Any, names: tuple[str, ...] = ()) -> dict[str, Any]:
    made = result.document(outcome, run={}, seconds={}, subjects=evaluator.subjects, subject_names=names)
    assert json.loads(json.dumps(made, allow_nan=False)) == made  # nothing that JSON would change
    return made


def test_each_part_is_scored_by_itself_and_all_of_them_where_all_were_asked() -> None:
    outcome, simulator = searched(replace(CONFIG, full_limit=None))
    made = document(outcome, simulator)
    best = made["final_results"][0]
    layers = LayerSet(tuple(best["layers"]))
    right = simulator.all_answers(layers).correct
    held = outcome.ledger.parts[HOLDOUT]
    assert best["full_accuracy"] == pytest.approx(right.mean(), abs=1e-6)  # as the plain benchmark would count
    assert best["full_questions"] == 800
    assert best["holdout_accuracy"] == pytest.approx(right[held].mean(), abs=1e-6)
    assert best["accuracy"] == pytest.approx(np.delete(right, held).mean(), abs=1e-6)
    assert (best["questions"], best["holdout_questions"]) == (600, 200)
    for name in ("", "holdout_", "full_"):
        low, high = best[f"{name}interval"]
        assert low < best[f"{name}accuracy"] < high
    assert made["final_results"][-1]["full_accuracy"] is None  # it was not asked the hold-out
    assert made["final_results"][-1]["holdout_interval"] is None


def test_the_leader_is_compared_on_the_hold_out_and_p_values_are_corrected_together() -> None:
    outcome, simulator = searched()
    made = document(outcome, simulator)["comparisons"]
    leader, held = outcome.final[0], outcome.ledger.parts[HOLDOUT]
    rivals = [LayerSet(tuple(line["against"])) for line in made]
    smaller = [outcome.best_per_size[size] for size in range(len(leader) - 1, 0, -1)]
    assert rivals == list(dict.fromkeys([outcome.final[1], *smaller, BASE]))
    first = simulator.all_answers(leader).correct[held]
    expected = [compare(first, simulator.all_answers(rival).correct[held]) for rival in rivals]
    assert [line["p_value"] for line in made] == pytest.approx([e.p_value for e in expected], rel=1e-3)
    assert [line["p_value_corrected"] for line in made] == pytest.approx(holm([e.p_value for e in expected]), rel=1e-3)
    for line, found in zip(made, expected, strict=True):
        assert line["difference"] == pytest.approx(found.difference, abs=1e-6)
        assert line["interval"] == pytest.approx(found.interval, abs=1e-6)
        assert line["established"] == (line["p_value_corrected"] < 0.05 and line["difference"] > 0)
        assert not line["questions_also_chose"]
    assert "base" in made[-1]["roles"]
    assert "runner-up" in made[0]["roles"]


def test_without_a_hold_out_it_is_said_that_the_questions_chose_as_well() -> None:
    outcome, simulator = searched(replace(CONFIG, holdout=0))
    made = document(outcome, simulator)
    assert made["final_results"][0]["holdout_accuracy"] is None
    assert all(line["questions_also_chose"] for line in made["comparisons"])
    assert all(entry["questions_also_chose"] for entry in made["final_results"])
    assert made["per_subject"]["questions_also_chose"]
    assert "by which it was chosen, so they may flatter it" in made["conclusion"]
    common = 240 if outcome.ledger.score(BASE, "full") else 32
    assert made["comparisons"][-1]["questions"] == common


def test_a_rival_that_failed_on_the_hold_out_is_compared_on_what_both_answered() -> None:
    class Breaking(Simulator):
        """The base fails on the hold-out."""

        def answers(self, batch, questions):
            held = questions.max() % 200 >= 150
            return ((s, a) for s, a in super().answers(batch, questions) if not (held and s == BASE))

    outcome, simulator = searched(evaluator=Breaking(0, per_subject=200))
    made = document(outcome, simulator)
    assert made["failed"] == [[]]
    *others, base = made["comparisons"]
    assert base["questions_also_chose"]
    assert not any(line["questions_also_chose"] for line in others)
    assert "no part in the choice" in made["conclusion"]


def test_subjects_are_told_of_the_leader_and_the_base() -> None:
    outcome, simulator = searched()
    made = document(outcome, simulator, ("law", "physics", "art", "logic"))["per_subject"]
    assert made["layers"] == list(outcome.final[0].indices)
    assert [row["subject"] for row in made["subjects"]] == ["law", "physics", "art", "logic"]
    held = outcome.ledger.parts[HOLDOUT]
    for name, layers in (("accuracy", outcome.final[0]), ("base_accuracy", BASE)):
        total = sum(row[name] * row["questions"] for row in made["subjects"])
        assert total == pytest.approx(simulator.all_answers(layers).correct[held].sum(), abs=1e-3)
    unnamed = document(outcome, simulator)["per_subject"]["subjects"]
    assert [row["subject"] for row in unnamed] == [0, 1, 2, 3]


def test_every_count_says_whether_its_last_layer_is_worth_it() -> None:
    outcome, simulator = searched()
    made = document(outcome, simulator)["best_per_layer_count"]
    assert list(made) == ["1", "2", "3", "4"]
    steps = [entry["more_layers"] for entry in made.values()]
    assert [step["against"] for step in steps] == [[], *(entry["layers"] for entry in list(made.values())[:-1])]
    assert steps[0]["established"]  # one layer is better than none
    assert [step["p_value_corrected"] for step in steps] == pytest.approx(holm([s["p_value"] for s in steps]), rel=1e-3)
    scores = [entry["accuracy"] for entry in made.values()]
    on_front = [entry["on_pareto_front"] for entry in made.values()]
    assert on_front == [score > max(scores[:i], default=0) for i, score in enumerate(scores)]
    assert all(entry["holdout_accuracy"] is not None for entry in list(made.values())[: len(outcome.final[0])])


def test_what_the_ranking_goes_by_is_said() -> None:
    outcome, simulator = searched()
    assert document(outcome, simulator)["ranked_by"] == "rank: by the score on the questions that chose."
    outcome, simulator = searched(replace(CONFIG, strategy="ga"))
    made = document(outcome, simulator)
    assert "by the estimate" in made["ranked_by"]
    assert "slightly lower accuracy may rank higher" in made["ranked_by"]
    estimates = [entry["estimate"] for entry in made["final_results"]]
    assert estimates == sorted(estimates, reverse=True)
    lines = result.table(made)
    assert lines[-2:] == [made["ranked_by"], made["conclusion"]]
    assert "estimate" in lines[0]
    assert ("all" in lines[0].split()) == any(entry["full_accuracy"] for entry in made["final_results"])
    assert len(lines) == len(made["final_results"]) + 4


def test_what_a_scan_knows_of_the_rest_is_part_of_the_conclusion() -> None:
    outcome, simulator = searched(replace(CONFIG, strategy="scan"))
    conclusion = document(outcome, simulator)["conclusion"]
    assert "no part in the choice" in conclusion
    assert "793 of the 793 sets were asked." in conclusion


def test_intervals_of_the_chosen_set_cover_the_truth_as_often_as_they_say() -> None:
    covered, wrong = [], []
    for seed in range(60):
        simulator = Simulator(seed, per_subject=200)
        outcome, _ = searched(replace(CONFIG, seed=seed), simulator)
        leader = outcome.final[0]
        truth = simulator.landscape.accuracy(leader)
        score = outcome.ledger.score(leader, HOLDOUT)
        low, high = score.interval
        covered.append(low <= truth <= high)
        better = [finding.against for finding in comparisons.of_leader(outcome) if finding.is_better]
        wrong.append(any(simulator.landscape.accuracy(rival) >= truth for rival in better))
    assert np.mean(covered) >= 0.88  # 95 %, less 2.5 standard errors of 60 runs
    assert np.mean(wrong) <= 0.06


# In words.


def finding(against: tuple[int, ...], p_value: float, *roles: str, gain: int = 10) -> Finding:
    """With a corrected p-value that is given, whatever the counts say."""
    return Finding(LayerSet((1, 2, 3, 4)), LayerSet(against), roles, Paired(10 + gain, 10, 300), 300, False, p_value)


class Known:
    """A ledger that knows one score."""

    def __init__(self, accuracy: float, asked: int) -> None:
        questions = np.arange(asked)
        search = Search(replace(CONFIG, holdout=0.5), SPACE, np.zeros(2 * asked, np.int64))
        self.ledger = search.ledger
        self.ledger.record(LayerSet((1, 2, 3, 4)), asked + questions, Answers(questions < accuracy * asked))


def said(*findings: Finding) -> str:
    return conclude(Known(0.603, 1000).ledger, LayerSet((1, 2, 3, 4)), findings)


START = "1+2+3+4 has 0.603 +- 0.015 on 1,000 questions that took no part in the choice."


def test_the_conclusion_says_what_is_established_and_what_is_not() -> None:
    base, three = finding((), 1e-9, "base"), finding((1, 2, 3), 0.004, "best of 3")
    runner_up = finding((2, 3, 4, 5), 0.41, "runner-up")
    assert said(base, three, runner_up) == (
        f"{START} It is better than the base (p < 0.001) and than the best set of 3 layers (p = 0.004); "
        "that it is better than the runner-up 2+3+4+5 (p = 0.41) is not established."
    )
    assert said(runner_up) == f"{START} That it is better than the runner-up 2+3+4+5 (p = 0.41) is not established."
    assert said() == START


def test_the_conclusion_joins_counts_and_names_a_runner_up_that_is_one_of_them() -> None:
    counts = [finding((1,), 1e-5, "best of 1"), finding((1, 2), 2e-4, "best of 2")]
    runner_up = finding((1, 2, 3), 0.02, "runner-up", "best of 3")
    assert said(runner_up, *counts) == (
        f"{START} It is better than the best sets of 1 and 2 layers (p < 0.001 each) "
        "and than the runner-up 1+2+3, the best set of 3 layers (p = 0.02)."
    )
    assert "the best set of 1 layer (p = 0.3)" in said(finding((1,), 0.3, "best of 1"))
    assert "the runner-up, the base (p = 0.3)" in said(finding((), 0.3, "runner-up", "base"))


def test_the_conclusion_does_not_hide_a_rival_that_did_better() -> None:
    rival = finding((2, 3), 0.01, "runner-up", gain=-8)
    assert said(rival) == f"{START} It is worse than the runner-up 2+3 (p = 0.01)."


@pytest.mark.parametrize(
    ("p_value", "told"),
    [(0.0, "p < 0.001"), (0.00099, "p < 0.001"), (0.0042, "p = 0.0042"), (0.049, "p = 0.049"), (0.412, "p = 0.41")],
)
def test_p_values_are_told_with_two_digits(p_value: float, told: str) -> None:
    assert spell_p(p_value) == told
    assert spell_p(1.0) == spell_p(0.999) == "p = 1"


def test_another_goal_is_named() -> None:
    class Diverging(Simulator):
        def answers(self, batch, questions):
            for layers, given in super().answers(batch, questions):
                mean = 0.2 + 0.3 * len({5, 7} ^ set(layers))
                yield layers, Answers(given.correct, given.margin, np.full(len(questions), mean, np.float32))

    outcome, evaluator = searched(replace(CONFIG, goal="kl"), Diverging(0, per_subject=200))
    made = document(outcome, evaluator)
    assert "5+7 has a mean divergence of 0.200 +- 0.000 nats from the donor's answers on 200" in made["conclusion"]
    assert made["final_results"][0]["value"] == pytest.approx(-0.2, abs=1e-3)
    weights = np.where(np.arange(800) < 400, 1.0, 0.2)
    simulator = Simulator(0, per_subject=200)
    weighted = run(Search(CONFIG, SPACE, simulator.subjects, weights=weights), simulator)
    made = document(weighted, simulator)
    assert "has a weighted accuracy of" in made["conclusion"]
    assert made["final_results"][0]["holdout_value"] != made["final_results"][0]["holdout_accuracy"]
