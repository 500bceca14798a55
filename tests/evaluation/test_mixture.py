"""Weighted mixtures of tasks, from the command line to the score of a layer set."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation import tasks
from evaluation.build import build_evaluator, task_source
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.errors import EvaluationError
from evaluation.journal import Journal
from evaluation.mixture import parse_tasks, question_weights
from evaluation.remembering import Remembering, journal_header
from evaluation.two_precisions import TwoPrecisions
from genetic_algorithm import LayerSet, wiring
from genetic_algorithm.config import SearchConfig
from genetic_algorithm.errors import SearchError
from genetic_algorithm.evaluator import Evaluator, Score
from genetic_algorithm.ledger import Ledger
from genetic_algorithm.questions import ALL, divide
from models.pairs import TINY_DIR
from models.tokenizer import load_tokenizer

SET = LayerSet((2,))
LIMIT = 12


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def mixture(cache_dir: Path, spelled: str) -> EvalConfig:
    names, weights = parse_tasks([spelled])
    # In the dataset's order the first questions are those of `lm_eval --limit`.
    return EvalConfig(tasks=names, task_weights=weights, question_order="dataset", cache_dir=cache_dir)


def scored(evaluator: Evaluator) -> Score:
    """What a search gives SET on all questions."""
    weights = getattr(evaluator, "weights", None)
    ledger = Ledger(divide(SearchConfig(), evaluator.subjects, weights=weights))
    asked = ledger.parts[ALL]
    ((_, answers),) = evaluator.answers([SET], asked)
    ledger.record(SET, asked, answers)
    score = ledger.score(SET, ALL)
    assert score is not None
    return score


# --- from words to weights


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mmlu:1,arc_challenge:0.5"], (("mmlu", "arc_challenge"), (1.0, 0.5))),
        (["mmlu:1", "arc_challenge:.5"], (("mmlu", "arc_challenge"), (1.0, 0.5))),
        (["mmlu, arc_challenge:0.5", ""], (("mmlu", "arc_challenge"), (1.0, 0.5))),
        (["mmlu,arc_challenge", "tiny"], (("mmlu", "arc_challenge", "tiny"), ())),
        (["tiny:3"], (("tiny",), (3.0,))),
        ([","], ((), ())),
    ],
)
def test_words_become_names_and_weights(words: list[str], expected: tuple[Any, Any]) -> None:
    assert parse_tasks(words) == expected


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("tiny:0,tiny_recall:0.0", "the weight of tiny,tiny_recall is 0; give one task at least a weight above 0"),
        ("tiny:1,tiny_recall:-0.5", "weight -0.5 of task tiny_recall is no weight; give 0 or more"),
        ("tiny:nan", "weight nan of task tiny is no weight"),
        ("tiny:1e999", "weight inf of task tiny is no weight"),
        ("tiny:half", "weight 'half' of task tiny is not a number; give one, such as tiny:0.5"),
        ("tiny:,tiny_recall", "weight '' of task tiny is not a number"),
        ("tiny:1,tiny_recall:2,tiny:3", "task 'tiny' is named twice in 'tiny,tiny_recall,tiny'"),
        (":1", "a task's name is empty"),
    ],
)
def test_weights_that_cannot_be_are_one_line(spelled: str, message: str, cache_dir: Path) -> None:
    with pytest.raises(EvaluationError, match=message) as caught:
        mixture(cache_dir, spelled)
    assert "\n" not in str(caught.value)


def test_weights_without_tasks_of_their_own_are_refused() -> None:
    with pytest.raises(EvaluationError, match="2 weights for 1 tasks; give each task one"):
        EvalConfig(tasks=("tiny",), task_weights=(1.0, 2.0))


def test_an_unknown_task_of_a_mixture_is_named(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_full_manager", tasks._manager)  # or it reads thousands of files
    with pytest.raises(EvaluationError, match="unknown task or subject 'tiny_recal'; did you mean tiny_recall"):
        build_evaluator(mixture(cache_dir, "tiny:1,tiny_recal:0.5"), max_limit=1)


def given(words: list[str] | None) -> argparse.Namespace:
    unset = ("mmlu_dir", "layers_dir", "question_order", "num_fewshot", "batch_tokens", "fast_dtype", "memory", "dtype")
    unset += ("gpus", "cpu_workers", "ray_address", "task_dir")
    return argparse.Namespace(tasks=words, gpu="cpu", **dict.fromkeys(unset))


def test_the_command_line_s_weights_are_part_of_the_run_s_configuration() -> None:
    config = wiring.eval_config(given(["tiny:1", "tiny_recall:0.5"]), "tiny")
    assert (config.tasks, config.task_weights) == (("tiny", "tiny_recall"), (1.0, 0.5))
    assert dataclasses.asdict(config)["task_weights"] == (1.0, 0.5)
    assert wiring.eval_config(given(None), "tiny").task_weights == ()
    with pytest.raises(SearchError, match="--tasks names no task"):
        wiring.eval_config(given([","]), "tiny")


# --- from weights to scores


def test_each_task_weighs_what_it_is_given_whatever_its_size() -> None:
    subjects = np.repeat([0, 1, 2], [10, 2, 4])
    weights = question_weights({"g": 1, "c": 0.5}, subjects, ("a", "b", "c"), {"g": ("a", "b")})
    assert weights.mean() == pytest.approx(1)
    assert weights[:12].sum() == pytest.approx(2 * weights[12:].sum())
    assert np.ptp(weights[:12]) == np.ptp(weights[12:]) == 0


def test_a_question_of_two_tasks_weighs_in_both() -> None:
    subjects = np.repeat([0, 1], [3, 1])
    weights = question_weights({"g": 1, "b": 1}, subjects, ("a", "b"), {"g": ("a", "b")})
    np.testing.assert_allclose(weights, np.array([0.25, 0.25, 0.25, 1.25]) * 4 / 2)


def test_a_task_of_weight_0_counts_for_nothing() -> None:
    weights = question_weights({"a": 0, "b": 2}, np.array([0, 0, 1]), ("a", "b"), {})
    assert weights.tolist() == [0, 0, 3]


@pytest.mark.parametrize(
    ("spelled", "weights"),
    [
        ("tiny_knowledge:1,tiny_two_hop:0.25", {"tiny_knowledge": 1, "tiny_two_hop": 0.25}),
        ("tiny:1,tiny_recall:2", {"tiny": 1, "tiny_recall": 2}),  # the group holds the task
    ],
)
def test_a_score_is_the_weighted_mean_of_lm_eval_s_accuracies(
    spelled: str, weights: dict[str, float], cache_dir: Path
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    config = mixture(cache_dir, spelled)
    engine = build_evaluator(config, max_limit=LIMIT)
    tokenizer = load_tokenizer(TINY_DIR / "base", TINY_DIR / "donor")
    lm = HFLM(pretrained=engine.pair.assemble(SET.indices), tokenizer=tokenizer, batch_size=8)
    manager = tasks.load_tasks(task_source(config)).manager
    accuracy = {}
    for name in weights:
        found = simple_evaluate(model=lm, tasks=[name], limit=LIMIT, bootstrap_iters=0, task_manager=manager)
        accuracy[name] = found["results"][name]["acc,none"]
    assert len(set(accuracy.values())) == 2
    by_hand = sum(weight * accuracy[name] for name, weight in weights.items()) / sum(weights.values())
    assert scored(engine).value == pytest.approx(by_hand, abs=1e-12)


def test_without_weights_all_questions_count_alike(cache_dir: Path) -> None:
    engine = build_evaluator(mixture(cache_dir, "tiny,tiny_recall"), max_limit=LIMIT)
    assert engine.weights is None
    assert engine.num_questions == 4 * LIMIT  # those of recall once
    score = scored(engine)
    assert score.value == score.accuracy


# --- weights and the journal


def test_a_journal_serves_other_weights(cache_dir: Path, tmp_path: Path) -> None:
    asked = np.arange(2 * LIMIT)
    scores = []
    for spelled, new in (("tiny_knowledge:1,tiny_two_hop:1", 2 * LIMIT), ("tiny_knowledge:0.1,tiny_two_hop:3", 0)):
        engine = build_evaluator(mixture(cache_dir, spelled), max_limit=LIMIT)
        journal = Journal(tmp_path / "journal.jsonl", journal_header(engine), engine.num_questions)
        remembering = Remembering(engine, journal)
        assert [layers for layers, _ in remembering.answers([SET], asked)] == [SET]
        assert remembering.asked == new
        scores.append(scored(remembering).value)
    assert scores[0] != scores[1]


def test_wrappers_pass_weights_through(cache_dir: Path, tmp_path: Path) -> None:
    engines: dict[str, Engine] = {}
    for name, spelled in (("with", "tiny_knowledge:1,tiny_recall:0.5"), ("without", "tiny_knowledge,tiny_recall")):
        engines[name] = build_evaluator(mixture(cache_dir, spelled), max_limit=2)
    weights = engines["with"].weights
    assert weights is not None
    assert weights.tolist() == pytest.approx([4 / 3, 4 / 3, 2 / 3, 2 / 3])
    twice = TwoPrecisions(engines["with"], engines["with"])
    journal = Journal(tmp_path / "journal.jsonl", journal_header(twice), twice.num_questions)
    for wrapper in (twice, Remembering(twice, journal)):
        assert wrapper.weights is not None
        assert wrapper.weights.tolist() == [*weights, *weights]
    divided = divide(SearchConfig(), twice.subjects, twice.coarse_from, twice.weights)
    assert divided.weights.tolist() == pytest.approx([*weights, *weights])
    assert TwoPrecisions(engines["without"], engines["without"]).weights is None
    assert engines["with"].fingerprint == engines["without"].fingerprint
