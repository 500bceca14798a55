"""Scores a finished model on questions, for the tools that test."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evaluation.accuracy import Accuracy, evaluate_model
from evaluation.build import load_questions, usable_device
from evaluation.config import EvalConfig
from evaluation.errors import EvaluationError
from genetic_algorithm import Score

if TYPE_CHECKING:
    from models.modeling_llamba import LlambaForCausalLM


@dataclass(frozen=True, slots=True)
class Device:
    """Where to run and in which dtype."""

    name: str
    dtype: torch.dtype

    @classmethod
    def choose(cls, gpu: str) -> Device:
        """`auto`, `cpu` or a number; bfloat16 on a GPU and float32 on a CPU.

        Where there is no GPU at all, a number means the CPU, and that is said: the documented commands name GPU 0.

        Raises:
            EvaluationError: there is no such device.
        """
        if gpu not in ("auto", "cpu") and not gpu.isdecimal():
            raise EvaluationError(f"--gpu {gpu} is no device; give a number, cpu or auto")
        if gpu.isdecimal() and not torch.cuda.is_available():
            print(f"GPU {gpu}: there is no GPU that torch can use; running on the CPU", file=sys.stderr)
            gpu = "cpu"
        if gpu == "auto":
            gpu = "0" if torch.cuda.is_available() else "cpu"
        name = str(usable_device(gpu if gpu == "cpu" else f"cuda:{gpu}"))
        return cls(name, torch.float32 if name == "cpu" else torch.bfloat16)

    @property
    def dtype_name(self) -> Any:
        """The dtype as EvalConfig spells it."""
        return str(self.dtype).removeprefix("torch.")


def score_model(model: LlambaForCausalLM, tokenizer: Any, config: EvalConfig, limit: int | None) -> Accuracy:
    """Score one model as it stands on the first `limit` questions of each subject (None: all).

    Raises:
        EvaluationError: for tasks or questions that cannot be had.
    """
    questions = load_questions(config, tokenizer, model.config, max_limit=limit)
    return evaluate_model(model, questions, limit, batch_tokens=config.batch_tokens)


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
