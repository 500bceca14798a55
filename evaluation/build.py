"""Puts an engine together from a configuration: questions first, for they fail fastest, then the models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evaluation.config import EvalConfig
from evaluation.devices import gpu_bytes
from evaluation.engine import Engine
from evaluation.errors import EvaluationError
from evaluation.memory import choose_plan, read_machine, sizes_of
from evaluation.mixture import question_weights
from evaluation.question_cache import cached_questions
from evaluation.questions import QuestionSet, resolve_max_length
from evaluation.tasks import TaskSource
from evaluation.two_precisions import TwoPrecisions
from models.hybrid import HybridPair
from models.layer_files import fingerprint
from models.loading import read_llama_config, read_llamba_config
from models.packed.choose import choose_kernels
from models.packed.donors import ResidentDonors, StreamedDonors
from models.packed.layers import PackedLayers
from models.packed.matrices import FP8_CAPABILITY, fp8_problem, has_fp8
from models.packed.plain import PlainKernels
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
    base_config, donor_config = read_llamba_config(base), read_llama_config(donor)
    questions = load_questions(config, tokenizer, base_config, max_limit=max_limit)
    source = {"layers_dir": donor} if config.layers_dir else {"donor_dir": donor}
    dtype = getattr(torch, config.dtype)
    kernels = choose_kernels(device, dtype, base_config, donor_config, coarse=config.fast_dtype == "fp8")
    if config.fast_dtype == "fp8" and config.memory == "streamed":
        raise EvaluationError("--fast-dtype fp8 needs both models on the GPU; leave it or --memory streamed out")
    plan = choose_plan(
        sizes_of(
            base_config,
            donor_config,
            itemsize=dtype.itemsize,
            fp8=config.fast_dtype == "fp8",
            fused=not isinstance(kernels, PlainKernels),
        ),
        read_machine(device),
        batch_tokens=config.batch_tokens,
        choice="resident" if config.fast_dtype == "fp8" else config.memory,
        longest_text=int(questions.lengths_R.max()),
    )
    is_streamed = plan.mode == "streamed"
    models = HybridPair.load(base, **source, dtype=dtype, device=device, donor_device="cpu" if is_streamed else None)
    if is_streamed:
        streamed = partial(StreamedDonors, device=device, slots=plan.slots)
        layers = PackedLayers.of_pair(models, kernels, streamed, takes_donor=True)
        layers.embed_on_host()
    else:
        layers = PackedLayers.of_pair(models, kernels, ResidentDonors)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the pieces that joined matrices were made of
    layers.branch_bytes = plan.kept_bytes
    names = task_source(config).names
    weights = None
    if config.task_weights:
        given = dict(zip(names, config.task_weights, strict=True))
        weights = question_weights(given, questions.subjects_Q, questions.subject_names, questions.groups)
    about = {
        "pair": _lasting_name(pair),
        "base": fingerprint(base),
        "donor": fingerprint(donor),
        "tasks": list(names),
    }
    return Engine(
        models,
        questions,
        layers=layers,
        batch_tokens=plan.batch_tokens,
        about=about,
        memory=str(plan),
        weights=weights,
    )


def with_coarse_answers(engine: Engine) -> TwoPrecisions:
    """The same questions once more, their matrix products in 8 bits, for the fast stage of a search.

    Raises:
        EvaluationError: for a device without matrix units for 8 bits.
        ModelError: for a pair that cannot be run so.
    """
    require_fp8(engine.pair.device)
    coarse = Engine(
        engine.pair,
        engine.questions,
        layers=engine.layers.quantised(),
        batch_tokens=engine.batch_tokens,
    )
    return TwoPrecisions(engine, coarse)


def require_fp8(device: torch.device) -> None:
    """Refuse a device that cannot multiply matrices of 8 bits.

    Raises:
        EvaluationError: it has no such matrix units, or PyTorch cannot use them.
    """
    if not has_fp8(device):
        least = ".".join(map(str, FP8_CAPABILITY))
        raise EvaluationError(
            f"--fast-dtype fp8 needs a GPU of compute capability {least} or later, which {device} is not; leave it out"
        )
    if problem := fp8_problem(device):
        raise EvaluationError(f"--fast-dtype fp8: 8-bit products do not work on {device}: {problem}; leave it out")


def task_source(config: EvalConfig) -> TaskSource:
    """Where the questions of a configuration come from: its tasks, else MMLU, else the pair's own.

    The bundled tasks are at hand for every pair.

    Raises:
        EvaluationError: for a folder of tasks that is none.
    """
    if config.task_dir is not None and not config.task_dir.is_dir():
        raise EvaluationError(f"--task-dir {config.task_dir} is no folder; give the one that holds the task files")
    pair = get_pair(config.pair)
    names = config.tasks or (("mmlu",) if config.mmlu_dir else pair.tasks)
    task_dir = pair.task_dir or BUNDLED_TASKS
    return TaskSource(names, task_dir, config.mmlu_dir, config.num_fewshot, config.task_dir)


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
        EvaluationError: if this machine lacks it, or others leave no room on it.
    """
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            has = f"has CUDA devices 0 to {count - 1}" if count else "has no CUDA device"
            raise EvaluationError(f"device {name} is not there: this machine {has}; give another, or cpu")
        gpu_bytes(str(device))
    return device


def _lasting_name(pair: Pair) -> str:
    """A pair's name unless it holds a folder: that is known by its weights alone, for folders are moved."""
    if pair.name in PAIRS:
        return pair.name
    return f"{pair.base.spelling}:{pair.donor.spelling}" if pair.base.hubs and pair.donor.hubs else "local folders"


def _local_folder(pair: Pair, role: Role) -> Path:
    folder = pair.source(role).folder
    if folder is None:
        raise EvaluationError(
            f"the models of pair {pair.name} come from a hub; download them first, or give folders: --base and --donor"
        )
    return Path(folder)
