"""What shapes an evaluation, as one frozen object; nothing here loads torch or looks at the machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from evaluation.errors import EvaluationError
from evaluation.mixture import check_weights

QuestionOrder = Literal["shuffled", "dataset"]
DType = Literal["float32", "bfloat16"]
FastDType = Literal["same", "fp8"]
Memory = Literal["auto", "resident", "streamed"]


def default_cache_dir() -> Path:
    """Folder of tokenised questions: $GA_CACHE_DIR, else a folder under ~/.cache."""
    given = os.environ.get("GA_CACHE_DIR")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "ga_layer_search"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Which models answer which questions, and where.

    Raises:
        EvaluationError: naming the value that does not fit.
    """

    pair: str = "tiny"
    """Base and donor: a name in the zoo of pairs, or `BASE:DONOR`."""
    tasks: tuple[str, ...] = ()
    """lm-eval tasks or groups of multiple-choice questions; empty for MMLU where `mmlu_dir` is given, else
    for the pair's own."""
    task_weights: tuple[float, ...] = ()
    """Of the accuracy of each task in a score; empty for all questions alike."""
    task_dir: Path | None = None
    """Folder of task files, looked through before the pair's own and lm-eval's; None for these alone."""
    mmlu_dir: Path | None = None
    """Local copy of the hub dataset `cais/mmlu`, read instead of the hub."""
    question_order: QuestionOrder = "shuffled"
    """Within each subject: a fixed permutation, or the dataset's own order, in which lm-eval counts --limit."""
    num_fewshot: int | None = None
    """Solved examples before each question; None for what the task says, else 0. As in lm-eval, a task that
    says 0 itself keeps it."""
    device: str = "cpu"
    """`cpu` or `cuda:N`, N counted within CUDA_VISIBLE_DEVICES."""
    dtype: DType = "float32"
    """Of weights and activations."""
    fast_dtype: FastDType = "same"
    """Of the matrix products of coarse answers: 8 bits (fp8) ask the fast stage's questions apart from all others."""
    memory: Memory = "auto"
    """Where the donor's layers are: on the device, or streamed to it from host memory."""
    batch_tokens: int | None = None
    """Most tokens in one forward pass; None for what suits the device."""
    layers_dir: Path | None = None
    """Folder of extracted donor layers (layer_00 ...), read instead of the donor's checkpoint."""
    cache_dir: Path = field(default_factory=default_cache_dir)
    """Where tokenised questions are kept; safe to delete."""

    def __post_init__(self) -> None:
        _check_choice("question order", self.question_order, get_args(QuestionOrder))
        _check_choice("dtype", self.dtype, get_args(DType))
        _check_choice("fast dtype", self.fast_dtype, get_args(FastDType))
        _check_choice("memory mode", self.memory, get_args(Memory))
        if self.fast_dtype == "fp8" and self.dtype != "bfloat16":
            raise EvaluationError(
                f"--fast-dtype fp8 stands in for bfloat16, not for {self.dtype}; give --dtype bfloat16"
            )
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise EvaluationError(f"device {self.device!r} is unknown; give cpu or cuda:N, such as cuda:0")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise EvaluationError(f"--batch-tokens {self.batch_tokens} is below 1; give thousands, such as 4096")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise EvaluationError(f"{self.num_fewshot} few-shot examples make no sense; give 0 or more")
        repeated = sorted({name for name in self.tasks if self.tasks.count(name) > 1})
        if repeated or "" in self.tasks:
            named = f"task {repeated[0]!r} is named twice" if repeated else "a task's name is empty"
            raise EvaluationError(f"{named} in {','.join(self.tasks)!r}; name each task once")
        if files := [name for name in self.tasks if name.endswith((".yaml", ".yml"))]:
            raise EvaluationError(f"{files[0]} is a file; give the name of its task, and its folder as --task-dir")
        if self.task_weights:
            check_weights(self.tasks, self.task_weights)


def _check_choice(what: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise EvaluationError(f"{what} {given!r} is unknown; give {' or '.join(allowed)}")
