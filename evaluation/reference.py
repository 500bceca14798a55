"""The plain twin of the whole engine: lm-eval's own model class and loop on an assembled hybrid.

Slow and obvious, kept for comparison: the engine's decisions must be these, question by question.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from evaluation.tasks import TaskSource, load_tasks


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


def lm_eval_answers(
    model: Any, tokenizer: Any, source: TaskSource, *, limit: int | None = None, batch_size: int = 16
) -> dict[str, ReferenceAnswers]:
    """Answer the tasks of `source` through lm-eval alone.

    Args:
        model: A causal language model of transformers, on its device.
        tokenizer: Its tokenizer.
        source: The tasks.
        limit: Documents of each subject, in the dataset's order, as `lm_eval --limit`; None for all.
        batch_size: Rows in one forward pass.

    Raises:
        EvaluationError: for unknown tasks, or in a process that lm-eval takes for a helper rank.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    loaded = load_tasks(source)
    # A copy, because HFLM gives a tokenizer without a padding token one.
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
    results = simple_evaluate(
        model=lm,
        tasks=list(loaded.tasks.values()),
        num_fewshot=source.num_fewshot,
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        task_manager=loaded.manager,
    )
    if results is None:
        raise EvaluationError("lm-eval gives no results where LOCAL_RANK is not 0; run without LOCAL_RANK")
    return {name: _answers(results["samples"][name]) for name in loaded.tasks}


def _answers(samples: list[dict[str, Any]]) -> ReferenceAnswers:
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    return ReferenceAnswers(
        documents=np.array([sample["doc_id"] for sample in samples], dtype=np.int64),
        log_probs=[[float(reply[0]) for reply in sample["filtered_resps"]] for sample in samples],
        correct=np.array([sample["acc"] == 1.0 for sample in samples], dtype=np.bool_),
    )
