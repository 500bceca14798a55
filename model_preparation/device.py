"""Where a tool runs a model, in which dtype, and what it says when there is too little memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evaluation.devices import device_name, gpu_bytes, gpu_count
from evaluation.errors import EvaluationError
from evaluation.memory import host_free_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from model_preparation.checkpoints.info import CheckpointInfo
    from models.modeling_llamba import LlambaForCausalLM


@dataclass(frozen=True, slots=True)
class Device:
    """Where to run and in which dtype."""

    name: str
    """`cpu` or `cuda:N`."""
    dtype: torch.dtype

    @classmethod
    def choose(cls, gpu: str, dtype: str | None = None) -> Device:
        """`auto`, `cpu` or a number; by default bfloat16 on a GPU and float32 on a CPU.

        Where there is no GPU at all, a number means the CPU, and that is said: the documented commands name GPU 0.

        Raises:
            EvaluationError: there is no such device.
        """
        name = _device_name(gpu)
        return cls(name, getattr(torch, dtype or ("float32" if name == "cpu" else "bfloat16")))

    def __str__(self) -> str:
        return f"{self.name} in {self.dtype_name}"

    @property
    def dtype_name(self) -> Any:
        """The dtype as EvalConfig spells it."""
        return str(self.dtype).removeprefix("torch.")


def _device_name(gpu: str) -> str:
    if gpu.isdecimal() and not gpu_count():
        print(f"GPU {gpu}: there is no GPU that torch can use; running on the CPU", file=sys.stderr)
        return "cpu"
    return device_name(gpu)


def load_on(device: Device, folder: Path, info: CheckpointInfo) -> tuple[LlambaForCausalLM, PreTrainedTokenizerBase]:
    """The model of a checkpoint and its tokenizer, if the device has room for them.

    Raises:
        EvaluationError: it has not.
        ModelError: a file of the checkpoint is missing or damaged.
    """
    from model_preparation.checkpoints.info import load_model

    _require_memory(device, info.num_parameters, info.dtype)
    with memory_errors_named(device.name, "loading the weights", "give another --gpu, or --gpu cpu"):
        return load_model(folder, dtype=device.dtype, device=device.name)


def _require_memory(device: Device, parameters: int, stored: str) -> None:
    """Check that a model's weights fit, before the machine finds out in ways of its own.

    Args:
        device: Where they are to go.
        parameters: How many there are.
        stored: Their dtype on disk; a CPU reads weights of that dtype from the file's pages, which may be dropped.

    Raises:
        EvaluationError: they do not; names what would.
    """
    free = _free_bytes(device)
    needed = parameters * device.dtype.itemsize
    if free is None or needed <= free or (device.name == "cpu" and device.dtype_name == stored):
        return
    if device.dtype == torch.float32:
        advice = "give --dtype bfloat16, which takes half"
    else:
        advice = "close other programs" if device.name == "cpu" else "give another --gpu, or --gpu cpu"
    taken = f"{needed / 1e9:.1f} GB in {device.dtype_name}"
    raise EvaluationError(f"the weights take {taken} and {device.name} has {free / 1e9:.1f} GB free; {advice}")


def _free_bytes(device: Device) -> int | None:
    return gpu_bytes(device.name)[0] if device.name != "cpu" else host_free_bytes()


@contextmanager
def memory_errors_named(device: str, what: str, advice: str) -> Iterator[None]:
    """Turn running out of memory into one line.

    Args:
        device: Whose memory it is.
        what: What was being done.
        advice: The next step.

    Raises:
        EvaluationError: the memory did not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not _is_about_memory(error):
            raise
        raise EvaluationError(f"out of memory on {device} while {what}; {advice}") from error


def _is_about_memory(error: RuntimeError) -> bool:
    return any(
        words in str(error)
        for words in ("can't allocate memory", "ALLOC_FAILED", "CUDA out of memory", "CUDA error: out of memory")
    )
