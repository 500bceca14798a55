"""Scores a finished model on questions, for the tools that test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.build import task_source
from evaluation.config import EvalConfig
from evaluation.tasks import load_tasks
from genetic_algorithm import Score
from model_preparation.device import Device, memory_errors_named

if TYPE_CHECKING:
    from evaluation.lm_results import LmEvalRun
    from models.modeling_llamba import LlambaForCausalLM


def score_model(
    model: LlambaForCausalLM, tokenizer: Any, config: EvalConfig, limit: int | None, *, name: str, output: Path
) -> LmEvalRun:
    """Have lm-eval ask one model the first `limit` questions of each subject (None: all), and keep its files.

    Args:
        model: As it stands.
        tokenizer: Its tokenizer.
        config: Which questions, and how many tokens at a time.
        limit: Questions of each subject.
        name: What lm-eval is to call the model.
        output: Folder of its files.

    Raises:
        EvaluationError: for tasks or questions that cannot be had; the memory does not suffice.
        OSError: the folder cannot be made.
    """
    # Both import lm-eval, which takes seconds: tools that only spell scores need not wait for it.
    from evaluation.hybrid_lm import HybridLM
    from evaluation.lm_results import run_lm_eval

    loaded = load_tasks(task_source(config))
    lm = HybridLM(model, tokenizer, batch_tokens=config.batch_tokens, name=name)
    tokens = lm.batch_tokens
    advice = f"give --batch-tokens {max(1, tokens // 2)}" + ("" if model.device.type == "cpu" else ", or --gpu cpu")
    with memory_errors_named(str(model.device), f"answering with {tokens} tokens at a time", advice):
        return run_lm_eval(lm, loaded, limit=limit, order=config.question_order, output=output)


def spell_score(score: Score) -> dict[str, Any]:
    """A score as JSON values."""
    return {
        "accuracy": round(score.accuracy, 6),
        "standard_error": round(score.standard_error, 6),
        "questions": score.asked,
    }


def mmlu_folder(given: Path | None) -> Path | None:
    """The folder as an absolute path, so that it means the same everywhere."""
    return None if given is None else given.expanduser().absolute()


__all__ = ["Device", "mmlu_folder", "score_model", "spell_score"]
