"""Batches spread over cores: the same answers, errors at once, and threads as they were."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation import scoring
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.questions import QuestionSet, build_questions
from evaluation.reference import LmEval, disagreements
from evaluation.tasks import TaskSource, load_tasks
from evaluation.walk import count_layer_calls
from genetic_algorithm import LayerSet, SearchSpace
from genetic_algorithm.wiring import make_evaluator
from tests.evaluation.conftest import letter_docs, make_pair, make_tokenizer, phrase_docs, write_tasks

SETS = [LayerSet(()), LayerSet((1,)), LayerSet((1, 3))]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TaskSource:
    docs = {"toy_short": letter_docs(23), "toy_phrases": phrase_docs(19)}
    options = {"toy_phrases": {"doc_to_choice": "choices"}}
    return TaskSource(("toy",), write_tasks(tmp_path_factory.mktemp("tasks"), docs, options=options))


@pytest.fixture(scope="module")
def questions(source: TaskSource) -> QuestionSet:
    return build_questions(load_tasks(source), make_tokenizer(), max_length=512, order="dataset")


@pytest.fixture(scope="module")
def pair() -> Any:
    return make_pair()


@pytest.fixture
def three_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def answers(pair: Any, questions: QuestionSet) -> dict[LayerSet, Any]:
    engine = Engine(pair, questions, batch_tokens=60)
    return dict(engine.answers(SETS, np.arange(engine.num_questions)))


def test_several_cores_answer_as_one_does(pair: Any, questions: QuestionSet, three_cores: None) -> None:
    on_three = answers(pair, questions)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    for layers, found in answers(pair, questions).items():
        np.testing.assert_array_equal(on_three[layers].correct, found.correct)
        np.testing.assert_allclose(on_three[layers].margin, found.margin, atol=2e-4)


def test_a_batch_on_its_own_has_the_bits_that_it_has_among_others(three_cores: None) -> None:
    """The bundled pair: its products are long enough for torch to share them out, which the toy's are not."""
    engine = make_evaluator(EvalConfig(pair="tiny", device="cpu", dtype="float32"), None)
    chunk = engine.least_questions // 3
    asked = np.arange(3072 - 5 * chunk, 3078)
    among_others = margins(engine, asked)[5 * chunk :]
    for threads in (3, 2, 1):
        torch.set_num_threads(threads)
        np.testing.assert_array_equal(margins(engine, asked[5 * chunk :]), among_others)


def margins(engine: Engine, asked: NDArray[np.int64]) -> NDArray[np.float32]:
    ((_, answers),) = engine.answers([LayerSet((0, 4, 8))], asked)
    assert answers.margin is not None
    return answers.margin


def test_answers_of_one_batch_come_one_by_one(pair: Any, questions: QuestionSet) -> None:
    engine, sets = Engine(pair, questions, batch_tokens=10**6, with_divergence=False), list(SearchSpace(4, 1, 2))
    coming = engine.answers(sets, np.flatnonzero(questions.one_token_Q))
    next(coming)
    coming.close()  # the cores stop, too
    assert 0 < engine.layer_calls < count_layer_calls(4, sets)


def test_an_error_on_one_core_stops_the_others(
    pair: Any, questions: QuestionSet, three_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, run = [], scoring._run

    def fails_at_first(*arguments: Any) -> Iterator[int]:
        ran.append(arguments)
        if len(ran) == 1:
            raise MemoryError("no room")
        time.sleep(0.2)
        return run(*arguments)

    engine = Engine(pair, questions, batch_tokens=30)
    monkeypatch.setattr(scoring, "_run", fails_at_first)
    with pytest.raises(MemoryError, match="no room"):
        engine.log_probs(SETS[1], np.arange(engine.num_questions))
    assert 1 <= len(ran) <= 4  # of many more batches
    assert torch.get_num_threads() == 3


def test_a_decision_that_is_not_lm_evals_is_named(pair: Any, questions: QuestionSet, source: TaskSource) -> None:
    tasks = LmEval(make_tokenizer(), source).with_batch_size(4)
    engine, layers = Engine(pair, questions), SETS[1]
    expected = tasks.answers(pair.assemble(layers.indices))
    assert disagreements(engine, layers, expected) == []
    others = tasks.answers(pair.assemble((0, 2)))
    lines = disagreements(engine, layers, others)
    assert lines
    assert all(line.startswith("toy_") and "lm-eval" in line for line in lines)


def test_without_a_common_question_nothing_is_compared(pair: Any, questions: QuestionSet, tmp_path: Path) -> None:
    elsewhere = write_tasks(tmp_path / "tasks", {"others": letter_docs(3)}, group="more")
    tasks = LmEval(make_tokenizer(), TaskSource(("others",), elsewhere))
    with pytest.raises(ValueError, match="lm-eval answered none of the engine's questions"):
        disagreements(Engine(pair, questions), SETS[0], tasks.answers(pair.assemble(())))
