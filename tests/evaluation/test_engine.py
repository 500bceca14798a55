from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.accuracy import accuracy_report, evaluate_sets
from evaluation.engine import Engine
from evaluation.errors import EvaluationError
from evaluation.judge import judge
from evaluation.questions import QuestionSet, build_questions, resolve_max_length
from evaluation.reference import ReferenceAnswers, lm_eval_answers
from evaluation.tasks import TaskSource, load_tasks
from evaluation.walk import count_layer_calls, one_at_a_time
from genetic_algorithm import Answers, LayerSet, SearchSpace
from tests.evaluation.conftest import letter_docs, make_pair, make_tokenizer, phrase_docs, write_tasks

# Float32 sums taken in another order: batches of another shape, chunks of the scan, padding.
TOLERANCE_NATS = 2e-4


@pytest.fixture(scope="module")
def pair() -> Any:
    return make_pair()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TaskSource:
    folder = write_tasks(
        tmp_path_factory.mktemp("tasks"),
        {"toy_short": letter_docs(23), "toy_long": letter_docs(17, seed=1), "toy_phrases": phrase_docs(19)},
        options={"toy_phrases": {"doc_to_choice": "choices"}},
    )
    return TaskSource(("toy",), folder)


def questions_of(source: TaskSource, order: Any = "shuffled", max_length: int = 512) -> QuestionSet:
    return build_questions(load_tasks(source), make_tokenizer(), max_length=max_length, order=order)


@pytest.fixture(scope="module")
def questions(source: TaskSource) -> QuestionSet:
    return questions_of(source)


def every_question(engine: Engine) -> np.ndarray:
    return np.arange(engine.num_questions)


def all_answers(engine: Engine, sets: list[LayerSet]) -> dict[LayerSet, Answers]:
    return dict(engine.answers(sets, every_question(engine)))


def assert_same(found: Answers, expected: Answers) -> None:
    np.testing.assert_array_equal(found.correct, expected.correct)
    assert found.margin is not None
    assert found.divergence is not None
    np.testing.assert_allclose(found.margin, expected.margin, atol=TOLERANCE_NATS)
    np.testing.assert_allclose(found.divergence, expected.divergence, atol=TOLERANCE_NATS)


def plain_log_probs(pair: Any, questions: QuestionSet, layers: LayerSet, q: int) -> list[float]:
    """Summed log-probabilities of the choices of one question: row by row, layer by layer, nothing shared."""
    totals = [0.0] * int(questions.num_choices_Q[q])
    for r in range(questions.first_row_Q1[q], questions.first_row_Q1[q + 1]):
        with torch.inference_mode():
            x = pair.embed(torch.from_numpy(questions.row(r).astype(np.int64))[None])
            log_probs = pair.logits(one_at_a_time(pair, x, layers)[0]).log_softmax(-1)
        for m in range(questions.first_target_R1[r], questions.first_target_R1[r + 1]):
            totals[questions.choice_M[m]] += float(log_probs[questions.position_M[m], questions.token_M[m]])
    return totals


def plain_answers(pair: Any, questions: QuestionSet, layers: LayerSet) -> Answers:
    donor = LayerSet(tuple(range(pair.depth)))
    rows = []
    for q in range(len(questions)):
        scores, of_donor = (np.array(plain_log_probs(pair, questions, s, q)) for s in (layers, donor))
        gold = np.flatnonzero(questions.gold_QC[q]).tolist()
        best_right = max(scores[i] for i in gold)
        best_other = max(score for i, score in enumerate(scores) if i not in gold)
        p, q_ = (np.exp(s - s.max()) / np.exp(s - s.max()).sum() for s in (of_donor, scores))
        rows.append((scores.argmax() in gold, best_right - best_other, float((p * np.log(p / q_)).sum())))
    correct, margin, divergence = map(np.array, zip(*rows, strict=True))
    return Answers(correct, margin, divergence)


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_engine_agrees_with_one_set_and_one_row_at_a_time(pair: Any, questions: QuestionSet, batch_tokens: int) -> None:
    """Every set of four layers, whatever the batches, letters and phrases mixed."""
    sets = list(SearchSpace(4, 0, 4))
    found = all_answers(Engine(pair, questions, batch_tokens=batch_tokens), sets)
    assert set(found) == set(sets)
    for layers in sets if batch_tokens == 64 else sets[::5]:
        assert_same(found[layers], plain_answers(pair, questions, layers))


def test_layers_matter_to_the_random_pair(pair: Any, questions: QuestionSet) -> None:
    """Or agreement would show nothing."""
    engine = Engine(pair, questions)
    picked = {tuple(a.correct.tolist()) for a in all_answers(engine, list(SearchSpace(4, 0, 4))).values()}
    assert len(picked) == 16


def test_the_donor_diverges_from_itself_by_nothing(pair: Any, questions: QuestionSet) -> None:
    donor = LayerSet((0, 1, 2, 3))
    answers = all_answers(Engine(pair, questions), [donor, LayerSet(())])
    assert answers[donor].divergence is not None
    assert answers[LayerSet(())].divergence is not None
    assert answers[donor].divergence.max() < TOLERANCE_NATS
    assert answers[LayerSet(())].divergence.mean() > 0.1


def test_answers_do_not_depend_on_what_else_is_asked(pair: Any, questions: QuestionSet) -> None:
    sets = [LayerSet((1,)), LayerSet((0, 3))]
    whole = all_answers(Engine(pair, questions), list(SearchSpace(4, 0, 2)))
    engine = Engine(pair, questions, batch_tokens=100)
    asked = np.array([58, 3, 3, 40, 0])
    for layers, answers in engine.answers(sets, asked):
        assert_same(answers, Answers(*(part[asked] for part in whole[layers] if part is not None)))


def test_a_repeated_set_is_answered_once_and_nothing_asked_is_nothing(pair: Any, questions: QuestionSet) -> None:
    engine = Engine(pair, questions)
    asked = np.array([0, 1])
    assert [s for s, _ in engine.answers([LayerSet((1,)), LayerSet((1,))], asked)] == [LayerSet((1,))]
    [(_, nothing)] = engine.answers([LayerSet((1,))], np.array([], dtype=np.int64))
    assert len(nothing.correct) == 0
    assert list(engine.answers([], asked)) == []


def test_layer_calls_are_those_of_the_tree_for_each_batch(pair: Any, questions: QuestionSet) -> None:
    engine = Engine(pair, questions, batch_tokens=10**6)
    letters = np.flatnonzero(questions.one_token_Q)
    sets = list(SearchSpace(4, 1, 2))
    list(engine.answers(sets, letters))
    assert engine.layer_calls == count_layer_calls(4, sets)
    list(engine.answers(sets, letters))
    assert engine.layer_calls == 2 * count_layer_calls(4, sets)


def test_the_donor_is_asked_once_for_each_list_of_questions(
    pair: Any, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, seen = Engine(pair, questions, batch_tokens=10**6), []
    run = engine._scores

    def spy(sets: Any, asked: Any) -> Any:
        if sets == [LayerSet((0, 1, 2, 3))]:
            seen.append(len(asked))
        return run(sets, asked)

    monkeypatch.setattr(engine, "_scores", spy)
    for asked in ([0, 1, 2], [3, 7], [0, 1, 2]):
        list(engine.answers([LayerSet((1,))], np.array(asked)))
    assert seen == [3, 2]


def test_logits_are_taken_in_parts_where_there_are_many(
    pair: Any, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = all_answers(Engine(pair, questions), [LayerSet((2,))])
    monkeypatch.setattr("evaluation.plan.MAX_LOGITS", 7 * 50)
    assert_same(all_answers(Engine(pair, questions), [LayerSet((2,))])[LayerSet((2,))], expected[LayerSet((2,))])


def test_layers_and_questions_out_of_range_are_refused(pair: Any, questions: QuestionSet) -> None:
    engine = Engine(pair, questions)
    with pytest.raises(EvaluationError, match=r"layer 4 of 1\+4 does not exist; the model has layers 0 to 3"):
        list(engine.answers([LayerSet((1, 4))], np.array([0])))
    with pytest.raises(EvaluationError, match="questions 0 to 59 are asked; there are 0 to 58"):
        list(engine.answers([LayerSet((1,))], np.array([0, 59])))


def test_a_set_that_gives_no_numbers_fails_after_the_others_are_told(questions: QuestionSet) -> None:
    broken = make_pair()
    broken.donor(1, broken.embed(torch.zeros(1, 2, dtype=torch.long)))  # it works before
    for parameter in broken.donor_layers[1].parameters():
        parameter.data.fill_(torch.nan)
    # The donor itself is broken, too, which is not what is tested here.
    engine, told = Engine(broken, questions, with_divergence=False), []
    with pytest.raises(EvaluationError, match=r"layers 1, 0\+1 give scores that are not numbers"):
        told.extend(s for s, _ in engine.answers([LayerSet((1,)), LayerSet((2,)), LayerSet((0, 1))], np.array([0])))
    asked = engine.answers([LayerSet((1,)), LayerSet((2,))], np.array([0]))
    assert next(asked)[0] == LayerSet((2,))
    with pytest.raises(EvaluationError, match="the donor gives scores that are not numbers"):
        list(Engine(broken, questions).answers([LayerSet((2,))], np.array([0])))


def test_too_little_memory_is_met_by_smaller_batches(
    pair: Any, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = all_answers(Engine(pair, questions, batch_tokens=300), [LayerSet((1,))])
    monkeypatch.setattr("evaluation.engine.LEAST_TOKENS", 100)
    engine = Engine(pair, questions, batch_tokens=1200)
    embed = engine.layers.embed

    def small(tokens: torch.Tensor) -> Any:
        if len(tokens) > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(tokens)

    monkeypatch.setattr(engine.layers, "embed", small)
    with caplog.at_level("WARNING"):
        found = all_answers(engine, [LayerSet((1,))])
    assert_same(found[LayerSet((1,))], expected[LayerSet((1,))])
    assert 150 < engine.batch_tokens <= 300
    assert f"going on with {engine.batch_tokens} tokens at a time" in caplog.text


def test_too_little_memory_for_anything_says_what_to_do(
    pair: Any, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = Engine(pair, questions, batch_tokens=512)
    monkeypatch.setattr(engine.layers, "embed", full)
    with pytest.raises(EvaluationError, match=r"out of memory on cpu even with \d+ tokens at a time; stop what"):
        list(engine.answers([LayerSet((1,))], np.arange(59)))


def test_a_text_longer_than_the_fewest_tokens_does_not_try_forever(
    pair: Any, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("evaluation.engine.LEAST_TOKENS", 2)
    engine = Engine(pair, questions, batch_tokens=512)
    monkeypatch.setattr(engine.layers, "embed", full)
    with pytest.raises(EvaluationError, match="out of memory on cpu even with"):
        list(engine.answers([LayerSet((1,))], np.array([0])))


def test_gradients_and_inference_mode_stay_as_they_were(pair: Any, questions: QuestionSet) -> None:
    for _ in Engine(pair, questions).answers([LayerSet((1,)), LayerSet(())], np.array([0])):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_fingerprint_is_json_and_follows_the_questions(pair: Any, source: TaskSource, questions: QuestionSet) -> None:
    told = Engine(pair, questions, about={"pair": "toy"}).fingerprint
    assert json.loads(json.dumps(told)) == told
    assert told["pair"] == "toy"
    assert told["subjects"] == ["toy_short", "toy_long", "toy_phrases"]
    assert (told["dtype"], told["device"], told["num_questions"]) == ("float32", "cpu", 59)
    assert set(told["versions"]) == {"torch", "transformers", "tokenizers", "lm_eval"}
    other = Engine(pair, questions_of(source, order="dataset"), about={"pair": "toy"}).fingerprint
    assert {name for name in told if told[name] != other[name]} == {"question_order", "questions"}
    assert Engine(pair, questions, batch_tokens=7, about={"pair": "toy"}).fingerprint == told


def test_time_and_place_are_told(pair: Any, questions: QuestionSet) -> None:
    engine = Engine(pair, questions)
    assert 0 < engine.seconds_per_question < 1
    assert engine.seconds_per_question == engine.seconds_per_question
    assert engine.layer_calls == 0
    told = engine.describe()
    assert (told["device"], told["layers"], told["questions"], told["subjects"]) == ("cpu", 4, 59, 3)
    assert told["peak_memory_gib"] > 0


# --- against lm-eval itself


def predictions(engine: Engine, layers: LayerSet) -> dict[str, dict[int, tuple[int, list[float], bool]]]:
    """Per subject and document: the engine's choice, its log-probabilities, right or wrong."""
    asked = every_question(engine)
    log_probs = engine.log_probs(layers, asked)
    [(_, answers)] = engine.answers([layers], asked)
    found: dict[str, dict[int, tuple[int, list[float], bool]]] = {name: {} for name in engine.subject_names}
    for q in asked.tolist():
        name = engine.subject_names[engine.subjects[q]]
        scores = log_probs[q, : engine.questions.num_choices_Q[q]]
        document = int(engine.questions.documents_Q[q])
        found[name][document] = (int(scores.argmax()), scores.tolist(), bool(answers.correct[q]))
    return found


def assert_agrees(found: dict[int, tuple[int, list[float], bool]], expected: ReferenceAnswers) -> None:
    assert sorted(found) == expected.documents.tolist()
    for i, document in enumerate(expected.documents.tolist()):
        choice, log_probs, correct = found[document]
        assert choice == expected.predicted[i]
        assert correct == expected.correct[i]
        np.testing.assert_allclose(log_probs, expected.log_probs[i], atol=TOLERANCE_NATS)


@pytest.mark.parametrize("layers", [LayerSet(()), LayerSet((1, 3))], ids=str)
@pytest.mark.parametrize("shots", [0, 2])
def test_every_decision_is_that_of_lm_eval(pair: Any, source: TaskSource, layers: LayerSet, shots: int) -> None:
    """Letters and phrases of unlike length, without and with examples, in another order than lm-eval's."""
    source = replace(source, num_fewshot=shots)
    found = predictions(Engine(pair, questions_of(source)), layers)
    expected = lm_eval_answers(pair.assemble(layers.indices), make_tokenizer(), source, batch_size=4)
    assert list(found) == list(expected)
    for name in found:
        assert_agrees(found[name], expected[name])


def test_rows_longer_than_the_model_are_cut_as_lm_eval_cuts_them(pair: Any, source: TaskSource) -> None:
    tokenizer = make_tokenizer()
    model = pair.assemble((2,))
    model.config.max_position_embeddings = 5
    try:
        length = resolve_max_length(model.config, tokenizer)
        expected = lm_eval_answers(model, tokenizer, source)
    finally:
        model.config.max_position_embeddings = 512
    found = predictions(Engine(pair, questions_of(source, max_length=length)), LayerSet((2,)))
    assert length == 5
    for name in found:
        assert_agrees(found[name], expected[name])


def test_a_limit_in_the_dataset_s_order_asks_what_lm_eval_asks(pair: Any, source: TaskSource) -> None:
    engine = Engine(pair, questions_of(source, order="dataset"))
    expected = lm_eval_answers(pair.assemble(()), make_tokenizer(), source, limit=6)
    accuracy = evaluate_sets(engine, [LayerSet(())], 6)[LayerSet(())]
    for name, answers in expected.items():
        assert accuracy.subjects[name].asked == 6
        assert accuracy.subjects[name].correct == answers.correct.sum()


def test_an_assembled_model_has_the_longest_row_of_its_base(pair: Any) -> None:
    tokenizer = make_tokenizer()
    expected = resolve_max_length(pair.model.config, tokenizer)
    assert resolve_max_length(pair.assemble((1,)).config, tokenizer) == expected == 512


# --- accuracy


def test_accuracy_is_weighed_by_size(pair: Any, questions: QuestionSet) -> None:
    engine, sets = Engine(pair, questions), [LayerSet(()), LayerSet((1,))]
    answers = all_answers(engine, sets)
    for layers, accuracy in evaluate_sets(engine, sets, None).items():
        assert accuracy.total.asked == 59
        assert accuracy.total.correct == answers[layers].correct.sum()
        assert accuracy.groups == {"toy": accuracy.total}
        assert [score.asked for score in accuracy.subjects.values()] == [23, 17, 19]
        assert sum(score.correct for score in accuracy.subjects.values()) == accuracy.total.correct


def test_accuracy_of_lm_eval_is_the_same(pair: Any, questions: QuestionSet, source: TaskSource) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    loaded = load_tasks(source)
    lm = HFLM(pretrained=pair.assemble((1, 2)), tokenizer=make_tokenizer())
    results = simple_evaluate(model=lm, tasks=["toy"], bootstrap_iters=0, task_manager=loaded.manager)
    accuracy = evaluate_sets(Engine(pair, questions), [LayerSet((1, 2))], None)[LayerSet((1, 2))]
    assert results["results"]["toy"]["acc,none"] == pytest.approx(accuracy.groups["toy"].accuracy)
    for name, score in accuracy.subjects.items():
        assert results["results"][name]["acc,none"] == pytest.approx(score.accuracy)


def test_report_has_a_line_for_each_group_and_subject(pair: Any, questions: QuestionSet) -> None:
    report = accuracy_report(evaluate_sets(Engine(pair, questions), [LayerSet(()), LayerSet((1, 3))], 10))
    lines = report.splitlines()
    assert lines[0].split() == ["questions", "base", "layers", "1+3"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["total", "30"],
        ["toy", "30"],
        ["toy_short", "10"],
        ["toy_long", "10"],
        ["toy_phrases", "10"],
    ]
    assert all(re.fullmatch(r".*( +[01]\.\d{4} \+- 0\.\d{4}){2}", line) for line in lines[1:])


# --- judging


def test_judging_by_hand() -> None:
    scores = np.log([[0.1, 0.4, 0.4, 0.1], [0.2, 0.8, 1, 1], [0.2, 0.8, 1, 1], [0.7, 0.1, 0.1, 0.1]])
    absent = np.array([[False] * 4, [False, False, True, True], [False, False, True, True], [False] * 4])
    scores[absent] = -np.inf
    gold = np.zeros((4, 4), dtype=np.bool_)
    gold[0, 2] = True  # as likely as choice 1, which comes first
    gold[1, :2] = True  # all right
    gold[3, [1, 2]] = True  # two right
    answers = judge(scores, gold, absent, None)
    assert answers.correct.tolist() == [False, True, False, False]
    assert answers.margin is not None
    np.testing.assert_allclose(answers.margin, [0, np.log(4), -np.log(4), -np.log(7)], atol=1e-6)
    assert answers.divergence is None
