"""Puts an engine together from a configuration: questions first, for they fail fastest, then the models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.errors import EvaluationError
from evaluation.question_cache import cached_questions
from evaluation.questions import QuestionSet, resolve_max_length
from evaluation.tasks import TaskSource
from models.hybrid import HybridPair
from models.layer_files import fingerprint
from models.loading import read_llamba_config
from models.pairs import BUNDLED_TASKS, PAIRS, Pair, Role, get_pair
from models.tokenizer import load_tokenizer

Locate = Callable[[Pair, Role], Path]
"""Finds the local folder of one of a pair's models; `model_preparation.sources.locate` may download it."""


def build_evaluator(config: EvalConfig, *, max_limit: int | None, locate: Locate | None = None) -> Engine:
    """An engine with the first `max_limit` questions of each subject (None: all) and both models loaded.

    Args:
        config: What to evaluate, and where.
        max_limit: Most questions of a subject that will ever be asked.
        locate: Finds the models of a pair from a hub; without it only pairs of local folders can be built.

    Raises:
        EvaluationError: for tasks, questions or a device that cannot be had.
        ModelError: for an unknown pair, or weights that are missing, damaged or of another shape.
    """
    device = usable_device(config.device)
    pair = get_pair(config.pair)
    locate = locate or _local_folder
    base = locate(pair, "base")
    donor = config.layers_dir or locate(pair, "donor")
    tokenizer = load_tokenizer(base, donor)
    questions = load_questions(config, tokenizer, read_llamba_config(base), max_limit=max_limit)
    source = {"layers_dir": donor} if config.layers_dir else {"donor_dir": donor}
    models = HybridPair.load(base, **source, dtype=getattr(torch, config.dtype), device=device)
    about = {
        "pair": _lasting_name(pair),
        "base": fingerprint(base),
        "donor": fingerprint(donor),
        "tasks": list(task_source(config).names),
    }
    return Engine(models, questions, batch_tokens=config.batch_tokens, about=about)


def task_source(config: EvalConfig) -> TaskSource:
    """Where the questions of a configuration come from: its tasks, else MMLU, else the pair's own.

    The bundled tasks are at hand for every pair.
    """
    pair = get_pair(config.pair)
    names = config.tasks or (("mmlu",) if config.mmlu_dir else pair.tasks)
    task_dir = pair.task_dir or BUNDLED_TASKS
    return TaskSource(names, task_dir=task_dir, mmlu_dir=config.mmlu_dir, num_fewshot=config.num_fewshot)


def load_questions(config: EvalConfig, tokenizer: Any, model_config: Any, *, max_limit: int | None) -> QuestionSet:
    """The questions of a configuration, from the cache where it has them.

    Args:
        config: Which tasks, shots and order.
        tokenizer: Of the models.
        model_config: transformers configuration of the model, for its longest text.
        max_limit: Questions per subject; None for all.
    """
    return cached_questions(
        task_source(config),
        tokenizer,
        max_length=resolve_max_length(model_config, tokenizer),
        order=config.question_order,
        limit=max_limit,
        cache_dir=config.cache_dir,
    )


def usable_device(name: str) -> torch.device:
    """The device of that name, once it is known to be there.

    Raises:
        EvaluationError: if this machine lacks it.
    """
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            has = f"has CUDA devices 0 to {count - 1}" if count else "has no CUDA device"
            raise EvaluationError(f"device {name} is not there: this machine {has}; give another, or cpu")
    return device


def _lasting_name(pair: Pair) -> str:
    """A pair's name unless it holds a folder: that is known by its weights alone, for folders are moved."""
    is_lasting = pair.name in PAIRS or (pair.base.hubs and pair.donor.hubs)
    return pair.name if is_lasting else "local folders"


def _local_folder(pair: Pair, role: Role) -> Path:
    folder = pair.source(role).folder
    if folder is None:
        raise EvaluationError(
            f"the models of pair {pair.name} come from a hub; download them first, or give folders: --base and --donor"
        )
    return Path(folder)
