from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.errors import EvaluationError
from evaluation.questions import (
    QuestionSet,
    build_questions,
    encode_pairs,
    question_order,
    render,
    resolve_max_length,
)
from evaluation.tasks import TaskSource, load_tasks
from tests.evaluation.conftest import Doc, letter_docs, make_tokenizer, write_tasks


def build(folder: Path, tokenizer: Any, name: str = "toy", shots: int | None = None, **options: Any) -> QuestionSet:
    loaded = load_tasks(TaskSource((name,), folder, num_fewshot=shots))
    return build_questions(loaded, tokenizer, **({"max_length": 256, "order": "dataset"} | options))


def targets(questions: QuestionSet, q: int) -> list[tuple[list[int], list[tuple[int, int, int]]]]:
    """Each row of a question with its (position, token, choice) targets."""
    found = []
    for r in range(questions.first_row_Q1[q], questions.first_row_Q1[q + 1]):
        m = slice(questions.first_target_R1[r], questions.first_target_R1[r + 1])
        of = zip(questions.position_M[m], questions.token_M[m], questions.choice_M[m], strict=True)
        found.append((questions.row(r).tolist(), [tuple(map(int, target)) for target in of]))
    return found


def hflm(tokenizer: Any) -> Any:
    """lm-eval's own model class around a model too small to matter."""
    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    return HFLM(pretrained=LlamaForCausalLM(config), tokenizer=tokenizer)


PAIRS = [
    ("w1 w2 Answer", " A"),
    ("w1 w2 Answer", " B"),
    ("w1 w2 \n", "w3 w4"),
    ("<bos> w1", " w2"),
    ("", "w1 w2"),
    ("", "<bos> w2"),
    ("w5", " w6 w7"),
    ("unheard of", " words w1"),
]


@pytest.mark.parametrize("bos", [True, False])
def test_tokens_are_those_of_lm_eval(bos: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces at the seam, a BOS already there, empty contexts, unknown words."""
    from lm_eval.api.instance import Instance

    tokenizer = make_tokenizer(bos=bos)
    lm, seen = hflm(make_tokenizer(bos=bos)), []
    monkeypatch.setattr(lm, "_loglikelihood_tokens", lambda requests, **_: seen.extend(requests))
    lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)], disable_tqdm=True)
    assert encode_pairs(tokenizer, PAIRS) == [(context, continuation) for _, context, continuation in seen]


def test_one_token_choices_share_one_row(task_dir: Path, tokenizer: Any) -> None:
    questions = build(task_dir, tokenizer, "toy_short")
    doc = letter_docs(1)[0]
    row = tokenizer(doc["question"])["input_ids"]
    letters = tokenizer.convert_tokens_to_ids(["A", "B", "C", "D"])
    expected = [(len(row) - 1, letter, choice) for choice, letter in enumerate(letters)]
    assert targets(questions, 0) == [(row, expected)]
    assert questions.one_token_Q.all()
    assert questions.gold_QC[0].tolist() == [True, False, False, False]


def test_longer_choices_have_a_row_each_unless_their_input_is_the_same(task_dir: Path, tokenizer: Any) -> None:
    questions = build(task_dir, tokenizer, "toy_phrases")
    w = tokenizer.convert_tokens_to_ids([f"w{i}" for i in range(40)])
    context = tokenizer("w0 w0 what ?")["input_ids"]
    last = len(context) - 1
    assert targets(questions, 0) == [
        (context, [(last, w[1], 0)]),
        ([*context, w[2]], [(last, w[2], 1), (last + 1, w[3], 1)]),
        ([*context, w[4], w[5]], [(last, w[4], 2), (last + 1, w[5], 2), (last + 2, w[6], 2)]),
    ]
    # w7 w8 and w7 w9 differ in the last word alone.
    [(_, shared)] = targets(questions, 1)
    assert [(token, choice) for _, token, choice in shared] == [(w[7], 0), (w[8], 0), (w[7], 1), (w[9], 1)]
    assert questions.num_choices_Q[:3].tolist() == [3, 2, 4]
    assert not questions.one_token_Q.any()


def test_questions_too_long_are_cut_on_the_left_as_in_lm_eval(task_dir: Path, tokenizer: Any) -> None:
    whole, cut = (build(task_dir, tokenizer, "toy_phrases", max_length=n) for n in (256, 4))
    (full_row, full), (row, short) = targets(whole, 0)[2], targets(cut, 0)[2]
    assert row == full_row[-4:]
    assert [target[0] for target in short] == [1, 2, 3]
    assert [target[1:] for target in short] == [target[1:] for target in full]


def test_a_choice_longer_than_the_model_is_refused(task_dir: Path, tokenizer: Any) -> None:
    with pytest.raises(EvaluationError, match="choice 2 of question 0 of task toy_phrases has 3 tokens"):
        build(task_dir, tokenizer, "toy_phrases", max_length=2)


def test_a_choice_without_tokens_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    docs: list[Doc] = [{"question": "w1", "choices": ["w1", " "], "answer": 0}]
    options = {"blank": {"doc_to_choice": "choices"}}
    with pytest.raises(EvaluationError, match="choice 1 of question 0 of task blank has no tokens"):
        build(write_tasks(tmp_path, {"blank": docs}, options=options), tokenizer)


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_prompts_are_those_that_lm_eval_builds(tmp_path: Path, sampler: str, shots: int, limit: int | None) -> None:
    """Also where examples are drawn at random, question after question."""
    options = {"toy": {"fewshot_split": "test", "fewshot_config": {"sampler": sampler}}}
    source = TaskSource(
        ("toy",),
        write_tasks(tmp_path, {"toy": letter_docs(12)}, group="all", options=options),
        num_fewshot=shots,
    )
    task = load_tasks(source).tasks["toy"]
    task.build_all_requests(limit=None)
    expected: dict[int, list[tuple[str, str]]] = {}
    for request in task.instances:
        expected.setdefault(request.doc_id, []).append(request.args)
    order = question_order("toy", 12, "shuffled")[:limit].tolist()
    rendered = {q.document: q.pairs for q in render(load_tasks(source).tasks["toy"], order)}
    assert rendered == {document: expected[document] for document in order}


def test_gold_may_be_a_number_a_word_or_a_list(tmp_path: Path, tokenizer: Any) -> None:
    answers: dict[str, list[Any]] = {
        "several": [[0, 2], [3]],
        "word": ["B", "D"],
        "number": [0, 2],
        "column": [1.0, 3.0],
    }
    docs = {name: [{"question": "w1", "answer": gold} for gold in golds] for name, golds in answers.items()}
    questions = build(write_tasks(tmp_path, docs), tokenizer)
    golds = [np.flatnonzero(row).tolist() for row in questions.gold_QC]
    assert golds == [[0, 2], [3], [1], [3], [0], [2], [1], [3]]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (
            [0, None],
            "question 1 of task toy (counted from 0) has no `answer`; give the number of the right choice, 0 for",
        ),
        ([None, None], "question 0 of task toy (counted from 0) has no `answer`; "),
        (
            [0, 4],
            "question 1 of task toy (counted from 0) is answered by 4, which is none of its 4 choices; give the num",
        ),
        ([0, -1], "is answered by -1, which is none of its 4 choices"),
        ([0.0, 1.5], "is answered by 1.5, which is none of its 4 choices"),
        (["A", "E"], "is answered by 'E', which is none of its 4 choices"),
        ([[0, 1], []], "is answered by [], which is none of its 4 choices"),
        ([[0, 1], [2, 9]], "is answered by [2, 9], which is none of its 4 choices"),
    ],
)
def test_an_answer_that_is_no_choice_is_refused_and_never_counts_as_wrong(
    tmp_path: Path, tokenizer: Any, answers: list[Any], told: str
) -> None:
    docs: list[Doc] = [{"question": "w1", "answer": answer} for answer in answers]
    with pytest.raises(EvaluationError) as caught:
        build(write_tasks(tmp_path, {"toy": docs}, group="all"), tokenizer)
    assert told in str(caught.value)


def test_an_answer_that_no_question_has_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """lm-eval takes the name of a key that is not there for the answer itself."""
    folder = write_tasks(tmp_path, {"toy": [{"question": "w1"}] * 2}, group="all")
    with pytest.raises(EvaluationError, match=r"question 0 of task toy \(counted from 0\) has no `answer`; give"):
        build(folder, tokenizer)


def test_a_question_that_cannot_be_rendered_is_named(tmp_path: Path, tokenizer: Any) -> None:
    docs: list[Doc] = [{"question": "w1", "answer": 0}, {"question": None, "answer": 0}]
    folder = write_tasks(tmp_path, {"toy": docs}, group="all", options={"toy": {"doc_to_text": "{{question + ' is'}}"}})
    with pytest.raises(
        EvaluationError, match=r"question 1 of task toy \(counted from 0\) cannot be rendered \(TypeError"
    ):
        build(folder, tokenizer)


def test_choices_may_be_in_the_context(tmp_path: Path, tokenizer: Any) -> None:
    """As in Winogrande: doc_to_text gives the gold choice, doc_to_choice the contexts."""
    docs: list[Doc] = [{"which": 1, "question": "unused", "choices": ["w1 w2", "w3"], "end": "w9 w8"}]
    option = {"doc_to_text": "which", "doc_to_choice": "choices", "doc_to_target": "end"}
    questions = build(write_tasks(tmp_path, {"wino": docs}, options={"wino": option}), tokenizer)
    rows = [tokenizer.decode(row, skip_special_tokens=True) for row, _ in targets(questions, 0)]
    assert rows == ["w1 w2 w9", "w3 w9"]
    assert questions.gold_QC.tolist() == [[False, True]]


def test_dataset_order_keeps_documents_and_limit_takes_the_first_of_each_subject(
    task_dir: Path, tokenizer: Any
) -> None:
    questions = build(task_dir, tokenizer, limit=4)
    assert questions.subjects_Q.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert questions.documents_Q.tolist() == [0, 1, 2, 3] * 3


def test_shuffled_order_is_fixed_per_subject_and_limits_are_nested(task_dir: Path, tokenizer: Any) -> None:
    every, few = (build(task_dir, tokenizer, order="shuffled", limit=n) for n in (None, 4))
    for subject, count in enumerate((23, 17, 19)):
        documents = every.documents_Q[every.subjects_Q == subject].tolist()
        assert sorted(documents) == list(range(count)) != documents
        assert few.documents_Q[few.subjects_Q == subject].tolist() == documents[:4]
    alone = build(task_dir, tokenizer, "toy_long", order="shuffled")
    assert alone.documents_Q.tolist() == every.documents_Q[every.subjects_Q == 1].tolist()
    # On every machine and version: a changed order would silently make journals worthless.
    assert question_order("toy_long", 17, "shuffled").tolist() == [
        5,
        7,
        16,
        8,
        10,
        2,
        9,
        12,
        15,
        4,
        1,
        14,
        11,
        3,
        6,
        13,
        0,
    ]


def test_the_same_question_reads_the_same_in_either_order(task_dir: Path, tokenizer: Any) -> None:
    plain, shuffled = (build(task_dir, tokenizer, order=order) for order in ("dataset", "shuffled"))
    for q, document in enumerate(shuffled.documents_Q):
        subject = shuffled.subjects_Q[q]
        [same] = np.flatnonzero((plain.subjects_Q == subject) & (plain.documents_Q == document))
        assert targets(shuffled, q) == targets(plain, int(same))
        assert (shuffled.gold_QC[q] == plain.gold_QC[same]).all()
    assert plain.digest != shuffled.digest


def test_what_shaped_the_questions_is_told(task_dir: Path, tokenizer: Any) -> None:
    assert build(task_dir, tokenizer, limit=2, shots=1).about == {
        "split": "test",
        "num_fewshot": 1,
        "question_order": "dataset",
        "limit": 2,
        "max_length": 256,
    }


def test_a_limit_below_one_is_refused(task_dir: Path, tokenizer: Any) -> None:
    with pytest.raises(EvaluationError, match="a limit of 0 leaves no questions"):
        build(task_dir, tokenizer, limit=0)


@pytest.mark.parametrize("fields", [{"max_position_embeddings": 77}, {"n_positions": 5, "n_ctx": 9}, {}])
def test_longest_row_is_found_where_lm_eval_finds_it(fields: dict[str, int]) -> None:
    from types import SimpleNamespace

    from lm_eval.models.utils import resolve_max_length as of_lm_eval

    config = SimpleNamespace(**fields)
    for tokenizer in (make_tokenizer(), SimpleNamespace(model_max_length=33), SimpleNamespace()):
        assert resolve_max_length(config, tokenizer) == of_lm_eval(config, tokenizer)
