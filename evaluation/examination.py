"""What a search would run on here: which path each part takes, what is missing, how long a candidate takes."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from evaluation.build import build_evaluator
from evaluation.config import DType, EvalConfig, Memory
from evaluation.devices import check_gpu, device_name
from evaluation.errors import EvaluationError
from evaluation.forecast import Pace, forecast, matrix_rate, measured
from evaluation.memory import MemoryPlan, Sizes, choose_plan, matrix_shapes, read_machine, sizes_of
from evaluation.surroundings import TRITON, Finding, table, verdict
from models.errors import ModelError
from models.loading import check_pair, read_llama_config, read_llamba_config
from models.packed.choose import choose_kernels
from models.packed.matrices import has_fp8
from models.packed.plain import PlainKernels
from models.pairs import Pair
from models.weights import tensor_files

BRINGS: dict[str, str | None] = {
    "gpu": "one H200 searched the tiny pair in 1.6 s after start-up (benchmarks/fp8-ranking-h200-2026-11.md)",
    "triton": "on one H200 what stands between the matrix products of an 8B Llamba layer took 1.1 ms instead of 27",
    "fp8": "fp8 against bfloat16, both on one H200: 0.78 s and 1.57 s for an 8B candidate on 570 MMLU questions",
    "resident": None,
}
"""What a missing part would bring: measured figures alone, None where nothing has been measured."""
MMLU_TOKENS = {"limit 10": 62_000, "all questions": 1_740_000}
"""0-shot, with a vocabulary of Llama's density; forecasts go by these where questions are not loaded."""
SHARE_OF_MATRIX_RATE: dict[str, dict[str, float]] = {"Triton": {"limit 10": 0.91, "all questions": 1.00}}
"""By name of the kernels and by questions as in `MMLU_TOKENS`: the rate of one candidate on the tokens of its questions
over that of its matrix products alone, as measured at 8B size in bfloat16 (benchmarks/engine-h200-2026-11.md); larger
where questions share more of their beginnings, which are run once."""

LARGE_GB = 1.0
"""Size of base and donor, in 10**9 bytes, above which a CPU alone is no help."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the engine."""

    name: str
    path: str
    """Which way it takes."""
    missing: str | None = None
    """What the fastest way lacks."""
    brings: str | None = None
    """What that would bring, where it has been measured."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that the doctor says."""

    pair: str
    device: str
    versions: dict[str, str]
    parts: list[Part]
    plan: MemoryPlan | None
    pace: Pace | None
    problems: list[str]
    """Why no search can run; empty where one can."""
    surroundings: list[Finding] = field(default_factory=list)
    """What is here beside the engine."""

    def text(self) -> str:
        """For a person."""
        width = max(len(part.name) for part in self.parts)
        lines = [f"{self.pair} on {self.device}", ", ".join(" ".join(item) for item in self.versions.items()), ""]
        lines += [f"{part.name:<{width}}  {part.path}" for part in self.parts] + [""]
        for missing in dict.fromkeys(part.missing for part in self.parts if part.missing):
            lacking = [part for part in self.parts if part.missing == missing]
            lines.append(f"missing: {missing} ({', '.join(part.name for part in lacking)})")
            lines += [
                f"         with it: {brings}" for brings in dict.fromkeys(part.brings for part in lacking) if brings
            ]
        if self.pace is not None:
            told = ", ".join(f"{seconds:.3g} ({which})" for which, seconds in self.pace.seconds.items())
            lines.append(f"seconds per candidate: {told}; {self.pace.how}")
        lines += ["", table(self.surroundings), ""] if self.surroundings else []
        lines.append(verdict(self.problems, self.surroundings))
        return "\n".join(lines)

    def document(self) -> dict[str, Any]:
        """For a program."""
        return {"can_run": not self.problems, **asdict(self)}


def examine(
    pair: Pair,
    gpu: str,
    locate: Callable[[Pair, Any], Path],
    *,
    dtype: DType | None = None,
    memory: Memory = "auto",
    mmlu_dir: Path | None = None,
    measure: bool,
) -> Report:
    """Look at this machine with the eyes of a search.

    Args:
        pair: The models.
        gpu: `auto`, `cpu` or a number.
        locate: Finds a model's folder without the network, or raises a ModelError where it is not here; that is no
            problem yet, as a hub may have it: `model_preparation.readiness` tells.
        dtype: Of weights and activations; None for what suits the device.
        memory: Where the donor's layers are to be.
        mmlu_dir: Local folder of MMLU.
        measure: Whether to load the models and run them.

    Raises:
        EvaluationError: `gpu` is no device at all.
    """
    problems = [] if find_spec("lm_eval") else ["lm-eval is not installed; install requirements.txt"]
    device = _device(gpu, problems)
    described = _describe(device)  # before anything takes memory
    chosen: DType = dtype or ("float32" if device.type == "cpu" else "bfloat16")
    kernels, warnings = _kernels(device, getattr(torch, chosen))
    is_plain = kernels == PlainKernels.name
    folders, itemsize = _folders(pair, locate), getattr(torch, chosen).itemsize
    sizes, shapes = _sizes(*folders, itemsize, problems, fused=not is_plain) if folders else (None, [])
    plan = None
    if sizes is not None:
        try:
            plan = choose_plan(sizes, read_machine(device), choice=memory)
        except EvaluationError as error:
            problems.append(str(error))
    pace, rate = None, None
    if sizes is not None and plan is not None and not problems:
        try:
            if measure:
                config = EvalConfig(pair=pair.name, device=str(device), dtype=chosen, memory=memory, mmlu_dir=mmlu_dir)
                pace = measured(build_evaluator(config, max_limit=None, locate=locate))
            else:
                rate = matrix_rate(device, getattr(torch, chosen), shapes, plan.batch_tokens)
                pace = forecast(rate, shapes, sizes.layers, MMLU_TOKENS, SHARE_OF_MATRIX_RATE.get(kernels))
        except (EvaluationError, ModelError) as error:
            problems.append(str(error))
        except torch.OutOfMemoryError:
            problems.append(f"out of memory on {device}; stop what else runs there, or give --gpu cpu")
    lacks_gpu = _why_no_gpu() if device.type == "cpu" else None
    if problems and lacks_gpu and (pair.size_gb or 0) > LARGE_GB:
        problems.append("no GPU is used, without which a search of this pair is too slow to be of use")
    parts = [
        *(
            Part(name, kernels, *_why_plain(device, warnings, lacks_gpu, is_plain=is_plain))
            for name in ("scan and mixer", "attention", "norm and SwiGLU")
        ),
        Part("matrix products", _products(device, chosen, rate), lacks_gpu),
        _fp8(device, lacks_gpu),
        _memory(plan, pair, is_asked=memory == "streamed"),
    ]
    return Report(pair.name, described, _versions(), parts, plan, pace, problems)


def _device(gpu: str, problems: list[str]) -> torch.device:
    check_gpu(gpu)
    try:
        return torch.device(device_name(gpu))
    except EvaluationError as error:
        problems.append(str(error))
        return torch.device("cpu")


def _kernels(device: torch.device, dtype: torch.dtype) -> tuple[str, list[str]]:
    """The name of the kernels that would run, and what their choice warned of."""
    with _listening("models.packed") as heard:
        return choose_kernels(device, dtype).name, heard


@contextmanager
def _listening(logger: str) -> Iterator[list[str]]:
    """Warnings of a logger, which then go nowhere else but to handlers that are there already."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(" ".join(record.getMessage().split()))  # type: ignore[method-assign]
    logging.getLogger(logger).addHandler(handler)
    try:
        yield heard
    finally:
        logging.getLogger(logger).removeHandler(handler)


def _why_plain(
    device: torch.device, warnings: list[str], lacks_gpu: str | None, *, is_plain: bool
) -> tuple[str | None, str | None]:
    """What the fast kernels lack, and what they would bring."""
    if device.type == "cpu":
        return lacks_gpu, BRINGS["gpu"]
    if not is_plain:
        return None, None
    if find_spec("triton") is None:
        return f"triton is not installed; {TRITON}", BRINGS["triton"]
    return warnings[0] if warnings else "triton is installed but does not run on this GPU", BRINGS["triton"]


def _why_no_gpu() -> str:
    if torch.cuda.is_available():
        return "the GPU, which --gpu cpu leaves out"
    if torch.version.cuda is None and torch.version.hip is None:
        driver = Path("/proc/driver/nvidia/version").exists()
        advice = ", though this machine has an NVIDIA driver: install PyTorch with CUDA" if driver else ""
        return f"a GPU; PyTorch {torch.__version__} is built without CUDA{advice}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "a GPU that PyTorch can use" + ("" if visible is None else f"; CUDA_VISIBLE_DEVICES is {visible!r}")


def _products(device: torch.device, dtype: str, rate: float | None) -> str:
    where = "cuBLAS" if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    return f"{where}, {dtype}" + ("" if rate is None else f", {rate / 1e12:.3g} TFLOP/s")


def _fp8(device: torch.device, lacks_gpu: str | None) -> Part:
    if has_fp8(device):
        return Part("fp8", "possible (--fast-dtype fp8)")
    if lacks_gpu is not None:
        return Part("fp8", "not possible", lacks_gpu, BRINGS["fp8"])
    major, minor = torch.cuda.get_device_capability(device)
    return Part("fp8", "not possible", f"compute capability 8.9; this is {major}.{minor}", BRINGS["fp8"])


def _memory(plan: MemoryPlan | None, pair: Pair, *, is_asked: bool) -> Part:
    if plan is None:
        size = f"; both models take {pair.size_gb:g} GB in bfloat16" if pair.size_gb else ""
        return Part("memory", f"not planned{size}")
    path = str(plan).removeprefix("memory: ")
    if plan.mode == "streamed" and not is_asked:
        return Part("memory", path, "room for both models on the GPU", BRINGS["resident"])
    fewer = plan.batch_tokens < plan.asked_tokens
    return Part("memory", path, f"room for {plan.asked_tokens:,} tokens at a time" if fewer else None)


def _folders(pair: Pair, locate: Callable[[Pair, Any], Path]) -> tuple[Path, Path] | None:
    try:
        return locate(pair, "base"), locate(pair, "donor")
    except ModelError:
        return None


def _sizes(
    base_folder: Path, donor_folder: Path, itemsize: int, problems: list[str], *, fused: bool
) -> tuple[Sizes | None, list[tuple[int, int]]]:
    """Sizes and the shapes of a layer's matrices, from the models' folders; what is wrong with them is a problem."""
    try:
        base, donor = read_llamba_config(base_folder), read_llama_config(donor_folder)
        check_pair(base, donor)
        for folder in (base_folder, donor_folder):
            tensor_files(folder)
    except ModelError as error:
        problems.append(str(error))
        return None, []
    return sizes_of(base, donor, itemsize=itemsize, fused=fused), matrix_shapes(base)


def _describe(device: torch.device) -> str:
    if device.type == "cpu":
        free = read_machine(device).free_bytes
        memory = "" if free is None else f", {free / 1e9:.1f} GB free"
        return f"CPU, {os.cpu_count()} cores{memory}"
    properties = torch.cuda.get_device_properties(device)
    free = read_machine(device).free_bytes or 0
    memory = f"{free / 1e9:.1f} GB free of {properties.total_memory / 1e9:.1f}"
    return f"{device}: {properties.name}, {memory}, compute capability {properties.major}.{properties.minor}"


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "CUDA": torch.version.cuda or "none"}
    for name in ("torch", "triton", "transformers", "lm_eval"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found
