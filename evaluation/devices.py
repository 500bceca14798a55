"""Which device a `--gpu` names; torch is imported only when the machine must be looked at."""

from __future__ import annotations

from evaluation.errors import EvaluationError


def gpu_count() -> int:
    """GPUs that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_gpu(gpu: str) -> None:
    """Refuse what can be no device on any machine.

    Raises:
        EvaluationError: it is neither a number nor `auto` nor `cpu`.
    """
    if gpu not in ("auto", "cpu") and not (gpu.isascii() and gpu.isdecimal()):
        raise EvaluationError(f"--gpu {gpu} is no device; give a number, cpu or auto")


def device_name(gpu: str) -> str:
    """`cpu` or `cuda:N`; `auto` is GPU 0 where there is one.

    Raises:
        EvaluationError: there is no such device.
    """
    check_gpu(gpu)
    if gpu == "cpu":
        return "cpu"
    count = gpu_count()
    if gpu == "auto":
        return "cuda:0" if count else "cpu"
    if int(gpu) >= count:
        has = f"GPUs 0 to {count - 1}" if count else "no GPU that torch can use"
        raise EvaluationError(f"--gpu {gpu}: this machine has {has}; give another number, cpu or auto")
    return f"cuda:{int(gpu)}"


def gpu_bytes(device: str) -> tuple[int, int]:
    """Free memory of a `cuda:N`, and all of it.

    Raises:
        EvaluationError: it cannot be used at all, for which another process is the usual reason.
    """
    import torch

    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError as error:  # torch.AcceleratorError where not even a context finds room
        reason = str(error).partition("\n")[0]
        raise EvaluationError(
            f"{device} cannot be used ({reason}); nvidia-smi tells what fills it: wait for that, or give another GPU"
        ) from error
    return int(free), int(total)
