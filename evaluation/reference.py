"""The plain twin of the whole engine: lm-eval's own model class and loop on an assembled hybrid.

Slow and obvious, kept for comparison: the engine's decisions must be these, question by question.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.engine import Engine
from evaluation.errors import EvaluationError
from evaluation.tasks import TaskSource, load_tasks
from genetic_algorithm import LayerSet


@dataclass(frozen=True)
class ReferenceAnswers:
    """What lm-eval made of one subject, in the dataset's order."""

    documents: NDArray[np.int64]
    log_probs: list[list[float]]
    """Of each choice, in nats."""
    correct: NDArray[np.bool_]
    """lm-eval's `acc`."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The choice that lm-eval takes: the likeliest, of equals the first."""
        return np.array([int(np.argmax(choices)) for choices in self.log_probs], dtype=np.int64)


class LmEval:
    """lm-eval as it is, its tasks loaded once."""

    def __init__(self, tokenizer: Any, source: TaskSource, *, batch_size: int = 16) -> None:
        """Load the tasks.

        Args:
            tokenizer: Of the models to come.
            source: The tasks.
            batch_size: Rows in one forward pass.

        Raises:
            EvaluationError: for unknown tasks.
        """
        self._tokenizer, self._source, self._batch_size = tokenizer, source, batch_size
        self._loaded = load_tasks(source)

    def with_batch_size(self, batch_size: int) -> LmEval:
        """The same tasks, not loaded again, with so many rows in one forward pass."""
        other = copy.copy(self)
        other._batch_size = batch_size
        return other

    def answers(self, model: Any, *, limit: int | None = None) -> dict[str, ReferenceAnswers]:
        """Answers per subject of a causal language model of transformers, on its device.

        Args:
            model: The model.
            limit: Documents of each subject, in the dataset's order, as `lm_eval --limit`; None for all.

        Raises:
            EvaluationError: in a process that lm-eval takes for a helper rank.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        # A copy, because HFLM gives a tokenizer without a padding token one.
        tokenizer = copy.deepcopy(self._tokenizer)
        results = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self._batch_size),
            tasks=list(self._loaded.tasks.values()),
            num_fewshot=self._source.num_fewshot,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=self._loaded.manager,
        )
        if results is None:
            raise EvaluationError("lm-eval gives no results where LOCAL_RANK is not 0; run without LOCAL_RANK")
        return {name: _answers(results["samples"][name]) for name in self._loaded.tasks}


def lm_eval_answers(
    model: Any, tokenizer: Any, source: TaskSource, *, limit: int | None = None, batch_size: int = 16
) -> dict[str, ReferenceAnswers]:
    """Answer the tasks of `source` through lm-eval alone, once; arguments and errors as `LmEval`."""
    return LmEval(tokenizer, source, batch_size=batch_size).answers(model, limit=limit)


def _answers(samples: list[dict[str, Any]]) -> ReferenceAnswers:
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    return ReferenceAnswers(
        documents=np.array([sample["doc_id"] for sample in samples], dtype=np.int64),
        log_probs=[[float(reply[0]) for reply in sample["filtered_resps"]] for sample in samples],
        correct=np.array([sample["acc"] == 1.0 for sample in samples], dtype=np.bool_),
    )


def disagreements(engine: Engine, layers: LayerSet, answers: Mapping[str, ReferenceAnswers]) -> list[str]:
    """Where the engine's decisions for `layers` are not lm-eval's, a line for each; empty when all are the same.

    Every question of the engine that lm-eval answered is compared, by subject and document.

    Raises:
        EvaluationError: if lm-eval answered none of them.
    """
    expected = {
        (name, int(document)): (int(choice), bool(correct))
        for name, subject in answers.items()
        for document, choice, correct in zip(subject.documents, subject.predicted, subject.correct, strict=True)
    }
    names, questions = engine.subject_names, engine.questions
    documents = [
        (names[subject], int(document))
        for subject, document in zip(questions.subjects_Q, questions.documents_Q, strict=True)
    ]
    asked = np.array([q for q, document in enumerate(documents) if document in expected], dtype=np.int64)
    if not len(asked):
        raise EvaluationError("lm-eval answered none of the engine's questions; use the same tasks and limit")
    choices = engine.log_probs(layers, asked).argmax(axis=-1)
    [(_, found)] = engine.answers([layers], asked)
    lines = []
    for q, choice, correct in zip(asked, choices, found.correct, strict=True):
        if (int(choice), bool(correct)) != expected[documents[q]]:
            name, document = documents[q]
            lines.append(f"{name} {document}: {(int(choice), bool(correct))}, lm-eval {expected[name, document]}")
    return lines
