"""Questions as lm-eval renders them, tokenised once into flat arrays that the engine reads.

A question is one or more *rows* (token sequences to run) and *targets* (which token's log-probability, at
which position of which row, adds to which choice). Choices that share their input share a row, as in lm-eval:
four one-letter choices are four targets at the last position of one row; longer choices have a row each.

The tokens are those that `lm_eval --model hf` would run: see `encode_pairs`.

Array suffixes: Q questions, C most choices of any question, R rows, M targets, N tokens of all rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.config import QuestionOrder
from evaluation.errors import EvaluationError
from evaluation.tasks import LoadedTasks

log = logging.getLogger(__name__)

ORDER_SEED = 0
"""Of the shuffled order; not the search's seed, or runs of two seeds would see other questions."""

Pair = tuple[str, str]
"""Context and continuation, as strings."""


@dataclass(frozen=True)
class QuestionSet:
    """Tokenised questions of all subjects, in order of use within each subject."""

    subject_names: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    """Subjects below each group, and below each tag asked for."""
    about: Mapping[str, Any]
    """What shaped the questions, as JSON values."""

    subjects_Q: NDArray[np.int64]
    """Index into `subject_names`, not decreasing."""
    documents_Q: NDArray[np.int64]
    """lm-eval's doc_id within the subject."""
    num_choices_Q: NDArray[np.int64]
    gold_QC: NDArray[np.bool_]
    """Which choices count as right, at least one; lm-eval knows questions with several."""
    first_row_Q1: NDArray[np.int64]
    """[Q+1]: rows of question q are first_row[q] to first_row[q+1]."""

    tokens_N: NDArray[np.int32]
    first_token_R1: NDArray[np.int64]
    """[R+1]: tokens of row r are first_token[r] to first_token[r+1]."""
    first_target_R1: NDArray[np.int64]
    """[R+1]: targets of row r are first_target[r] to first_target[r+1]."""

    position_M: NDArray[np.int64]
    """Position in the row whose logits predict the token."""
    token_M: NDArray[np.int64]
    choice_M: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.subjects_Q)

    def row(self, r: int) -> NDArray[np.int32]:
        """Tokens of row `r`."""
        return self.tokens_N[self.first_token_R1[r] : self.first_token_R1[r + 1]]

    @cached_property
    def lengths_R(self) -> NDArray[np.int64]:
        """Tokens in each row."""
        return np.diff(self.first_token_R1)

    @cached_property
    def one_token_Q(self) -> NDArray[np.bool_]:
        """Whether all choices are one token after the same context, so that logits rank them as they are."""
        targets = self.first_target_R1[self.first_row_Q1]
        return (np.diff(self.first_row_Q1) == 1) & (np.diff(targets) == self.num_choices_Q)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every array, subject and group."""
        digest = hashlib.sha256(json.dumps([self.subject_names, sorted(self.groups.items())]).encode())
        for name, array in self.arrays().items():
            digest.update(f"{name} {array.dtype} {array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The array fields by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


class Rendered(NamedTuple):
    """One question as strings."""

    document: int
    pairs: list[Pair]
    """Context and continuation of each choice."""
    gold: frozenset[int]


def build_questions(
    loaded: LoadedTasks, tokenizer: Any, *, max_length: int, order: QuestionOrder, limit: int | None = None
) -> QuestionSet:
    """Render and tokenise the first `limit` questions of each subject (None: all).

    Raises:
        EvaluationError: for a subject without questions, a question without an answer among its choices, or a choice
            without tokens or longer than the model.
    """
    if limit is not None and limit < 1:
        raise EvaluationError(f"a limit of {limit} leaves no questions; give 1 or more, or none for all")
    table = _Table(max_length)
    for subject, (name, task) in enumerate(loaded.tasks.items()):
        chosen = question_order(name, len(task.eval_docs), order)[:limit].tolist()
        if not chosen:
            raise EvaluationError(f"task {name} has no questions; leave it out")
        rendered = {question.document: question for question in render(task, chosen)}
        questions = [rendered[document] for document in chosen]
        encoded = iter(encode_pairs(tokenizer, [pair for question in questions for pair in question.pairs]))
        for question in questions:
            table.add(name, subject, question, [next(encoded) for _ in question.pairs])
    if table.truncated:
        log.warning("%d rows are longer than %d tokens: cut on the left", table.truncated, max_length)
    configs = {name: task.config for name, task in loaded.tasks.items()}
    about = {
        "split": _one_or_each({name: config.test_split or config.validation_split for name, config in configs.items()}),
        "num_fewshot": _one_or_each({name: config.num_fewshot for name, config in configs.items()}),
        "question_order": order if order == "dataset" else f"{order} (seed {ORDER_SEED})",
        "limit": limit,
        "max_length": max_length,
    }
    spread = {name: below for name, below in loaded.names.items() if below != (name,)}
    return table.finish(tuple(loaded.tasks), {**loaded.groups, **spread}, about)


def question_order(subject: str, count: int, order: QuestionOrder) -> NDArray[np.int64]:
    """Documents of a subject in order of use.

    The permutation sorts hashes instead of using a random generator: it is then the same on every version of
    NumPy, and a subject's order does not depend on which other subjects are asked.
    """
    if order == "dataset":
        return np.arange(count, dtype=np.int64)
    keys = [hashlib.sha256(f"{ORDER_SEED}:{subject}:{i}".encode()).digest() for i in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), dtype=np.int64)


def render(task: Any, documents: Sequence[int]) -> Iterator[Rendered]:
    """Have lm-eval's task object render `documents`, as its `build_all_requests` does but without its bar.

    Few-shot examples that are drawn at random come from one stream over the documents in the dataset's order,
    so there every document up to the last wanted one is rendered.
    """
    from lm_eval.api.samplers import FirstNSampler

    docs, wanted = task.eval_docs, set(documents)
    drawn = task.config.num_fewshot > 0 and type(task.sampler) is not FirstNSampler
    for document in range(max(wanted) + 1) if drawn else documents:
        doc = docs[document]
        try:
            gold = gold_choices(task, document, doc) if document in wanted else frozenset()
            context = task.fewshot_context(doc, num_fewshot=task.config.num_fewshot, gen_prefix=task.doc_to_prefix(doc))
            if document in wanted:
                requests = task.construct_requests(doc=doc, ctx=context, metadata=(task.task_name, document, 1))
                # Behind the choices lm-eval may put the same ones without context, for acc_mutual_info.
                pairs = [(request.args[0], request.args[1]) for request in requests[: len(task.doc_to_choice(doc))]]
                yield Rendered(document, pairs, gold)
        except EvaluationError:
            raise
        except Exception as error:  # whatever templates and functions make of a question that lacks something
            reason = f"{type(error).__name__}: {error}"
            raise EvaluationError(f"{_spelled(task, document)} cannot be rendered ({reason}); mend it") from error


def gold_choices(task: Any, document: int, doc: Any) -> frozenset[int]:
    """Choices that lm-eval's `acc` counts as right.

    Raises:
        EvaluationError: for an answer that is none of the choices, where lm-eval would count all of them as wrong.
    """
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    listed = gold if isinstance(gold, list) else [gold]
    found = [_index(one, choices) for one in listed]
    if found and None not in found:
        return frozenset(index for index in found if index is not None)
    key = task.config.doc_to_text if task.multiple_input else task.config.doc_to_target
    is_missing = gold is None or (gold == key and key not in task.features)  # then lm-eval takes the key for a text
    told = f"has no `{key}`" if is_missing else f"is answered by {gold!r}, which is none of its {len(choices)} choices"
    raise EvaluationError(
        f"{_spelled(task, document)} {told}; give the number of the right choice, 0 for the first, or its text"
    )


def _index(answer: Any, choices: Sequence[str]) -> int | None:
    """Of the choice that is meant; None where none is."""
    if isinstance(answer, str):
        return choices.index(answer) if answer in choices else None
    is_one = isinstance(answer, (int, float, np.number)) and answer in range(len(choices))
    return int(answer) if is_one else None


def _spelled(task: Any, document: int) -> str:
    return f"question {document} of task {task.task_name} (counted from 0)"


def encode_pairs(tokenizer: Any, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    """Token ids of contexts and continuations as lm-eval's HFLM makes them, but in one batch.

    Spaces that end a context go to the continuation; context and whole are encoded apart and the continuation
    is what the whole has more; the tokenizer's own special tokens are added unless the text already begins
    with BOS; an empty context becomes BOS (else EOS). See lm_eval.api.model.TemplateLM and HFLM.tok_encode.
    """
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    bos = None if prefix is None else tokenizer.decode(prefix)
    moved = [_move_spaces(*pair) for pair in pairs]
    texts = {text for context, continuation in moved if context for text in (context, context + continuation)}
    own = {text for text in texts if bos is not None and text.startswith(bos)}
    ids = _encode(tokenizer, texts - own, {}) | _encode(tokenizer, own, {"add_special_tokens": False})
    alone = {continuation for context, continuation in moved if not context}
    bare = _encode(tokenizer, alone, {"add_special_tokens": False})
    encoded = []
    for context, continuation in moved:
        if context:
            start = ids[context]
            encoded.append((start, ids[context + continuation][len(start) :]))
        elif prefix is None:
            raise EvaluationError("a question has no context and the tokenizer neither BOS nor EOS; give it one")
        elif bare[continuation][:1] == [prefix]:
            encoded.append((bare[continuation][:1], bare[continuation][1:]))
        else:
            encoded.append(([prefix], bare[continuation]))
    return encoded


def resolve_max_length(config: Any, tokenizer: Any) -> int:
    """Most tokens of a row, found where lm-eval's HFLM looks for it."""
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    given = getattr(tokenizer, "model_max_length", None)
    # transformers writes this number where a tokenizer states no length.
    return 2048 if given is None or given == int(1e30) else int(given)


def _move_spaces(context: str, continuation: str) -> Pair:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _encode(tokenizer: Any, texts: Iterable[str], options: dict[str, bool]) -> dict[str, list[int]]:
    listed = sorted(texts)
    if not listed:
        return {}
    return dict(zip(listed, tokenizer(listed, verbose=False, **options)["input_ids"], strict=True))


def _one_or_each(values: dict[str, Any]) -> Any:
    """The one value that all subjects share, else the value of each."""
    first = next(iter(values.values()))
    return first if all(value == first for value in values.values()) else values


class _Table:
    """Gathers questions row by row; `finish` turns the lists into arrays."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.truncated = 0
        self.per_question: list[tuple[int, int, int, frozenset[int]]] = []
        self.first_row, self.first_token, self.first_target = [0], [0], [0]
        self.tokens: list[int] = []
        self.targets: list[tuple[int, int, int]] = []

    def add(self, name: str, subject: int, question: Rendered, encoded: Sequence[tuple[list[int], list[int]]]) -> None:
        """Add a question of which each choice is a context and a continuation."""
        rows: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        for choice, (context, continuation) in enumerate(encoded):
            where = f"choice {choice} of question {question.document} of task {name}"
            if not context or not continuation:
                raise EvaluationError(f"{where} has no tokens; check the task and the tokenizer")
            if len(continuation) > self.max_length:
                raise EvaluationError(
                    f"{where} has {len(continuation)} tokens, the model takes {self.max_length}; leave the task out"
                )
            whole = context + continuation
            self.truncated += len(whole) > self.max_length + 1
            row = tuple(whole[-(self.max_length + 1) :][:-1])
            first = len(row) - len(continuation)
            targets = [(first + i, token, choice) for i, token in enumerate(continuation)]
            rows.setdefault(row, []).extend(targets)
        for row, targets in rows.items():
            self.tokens.extend(row)
            self.targets.extend(targets)
            self.first_token.append(len(self.tokens))
            self.first_target.append(len(self.targets))
        self.first_row.append(len(self.first_token) - 1)
        self.per_question.append((subject, question.document, len(encoded), question.gold))

    def finish(
        self, names: tuple[str, ...], groups: Mapping[str, tuple[str, ...]], about: Mapping[str, Any]
    ) -> QuestionSet:
        """All questions added so far."""
        subjects, documents, num_choices, golds = zip(*self.per_question, strict=True)
        gold_QC = np.zeros((len(golds), max(num_choices)), dtype=np.bool_)
        for row, gold in zip(gold_QC, golds, strict=True):
            row[list(gold)] = True
        position_M, token_M, choice_M = np.array(self.targets, dtype=np.int64).T.copy()
        return QuestionSet(
            subject_names=names,
            groups=dict(groups),
            about=about,
            subjects_Q=np.array(subjects, dtype=np.int64),
            documents_Q=np.array(documents, dtype=np.int64),
            num_choices_Q=np.array(num_choices, dtype=np.int64),
            gold_QC=gold_QC,
            first_row_Q1=np.array(self.first_row, dtype=np.int64),
            tokens_N=np.array(self.tokens, dtype=np.int32),
            first_token_R1=np.array(self.first_token, dtype=np.int64),
            first_target_R1=np.array(self.first_target, dtype=np.int64),
            position_M=position_M,
            token_M=token_M,
            choice_M=choice_M,
        )
