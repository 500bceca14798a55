"""Scores a finished model on questions, for the tools that test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.accuracy import Accuracy, evaluate_model
from evaluation.build import load_questions
from evaluation.config import EvalConfig
from evaluation.engine import default_batch_tokens
from genetic_algorithm import Score
from model_preparation.device import Device, memory_errors_named

if TYPE_CHECKING:
    from models.modeling_llamba import LlambaForCausalLM


def score_model(model: LlambaForCausalLM, tokenizer: Any, config: EvalConfig, limit: int | None) -> Accuracy:
    """Score one model as it stands on the first `limit` questions of each subject (None: all).

    Raises:
        EvaluationError: for tasks or questions that cannot be had; the memory does not suffice.
    """
    questions = load_questions(config, tokenizer, model.config, max_limit=limit)
    tokens = config.batch_tokens or default_batch_tokens(model.device)
    advice = f"give --batch-tokens {max(1, tokens // 2)}" + ("" if model.device.type == "cpu" else ", or --gpu cpu")
    with memory_errors_named(str(model.device), f"answering with {tokens} tokens at a time", advice):
        return evaluate_model(model, questions, limit, batch_tokens=tokens)


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
