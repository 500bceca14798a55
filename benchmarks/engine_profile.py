"""Where the time of one batch goes, by kind of kernel."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from serving import synchronize
from torch.profiler import ProfilerActivity, profile, record_function

# The first that is found in a kernel's name says its kind.
_KINDS = (
    ("quantise", r"quantise"),
    ("swiglu", r"swiglu"),
    ("norm", r"norm"),
    ("attend", r"attend|rotate|flash|fmha|varlen"),
    ("mix", r"mix|convolve|chunk_|gla_|scan"),
    ("matrix product", r"gemm|nvjet|cutlass|cublas|xmma|matmul|splitk"),
    ("copy", r"memcpy|memset|copy|cat|gather|index|fill"),
    ("other", r""),
)
_METHODS = {
    "rms_norm": "norm",
    "add_rms_norm": "norm",
    "mix": "mix",
    "attend": "attend",
    "swiglu": "swiglu",
    "quantise": "quantise",
}
"""Of `Kernels`, and their kinds."""
_WHOLE = "kind: whole"


@dataclass(frozen=True, slots=True)
class Profile:
    """Of some runs of the same."""

    ms: dict[str, float]
    """By kind, of one run."""
    wall_ms: float
    """Of one run without the profiler: what the kinds do not add up to, the device waits."""
    kernels: list[tuple[float, float, str]]
    """Milliseconds and times of one run, and the name: those that take longest, first."""


class Marked:
    """Kernels that note in the profile what they are called for."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._kernels, name)
        if name not in _METHODS:
            return found

        def marked(*args: Any, **options: Any) -> Any:
            with record_function(f"kind: {_METHODS[name]}"):
                return found(*args, **options)

        return marked


def profile_runs(run: Callable[[], object], device: torch.device, runs: int = 3) -> Profile:
    """Run it some times, with the profiler and without."""
    run()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(runs):
        run()
    synchronize(device)
    wall_ms = 1000 * (time.perf_counter() - began) / runs
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(runs):
            with record_function(_WHOLE):
                run()
        synchronize(device)
    events = [event for event in found.key_averages() if not on_gpu or event.device_type.name == "CUDA"]
    if not on_gpu:
        return _on_cpu(events, wall_ms, runs)
    ms: dict[str, float] = defaultdict(float)
    kernels = []
    for event in events:
        if not event.key.startswith("kind: "):
            taken = event.self_device_time_total / 1000 / runs
            ms[kind_of(event.key)] += taken
            kernels.append((taken, event.count / runs, event.key))
    return Profile(dict(ms), wall_ms, sorted(kernels, reverse=True))


def kind_of(kernel: str) -> str:
    """The kind of a GPU's kernel, by its name."""
    return next(kind for kind, pattern in _KINDS if re.search(pattern, kernel, re.IGNORECASE))


def _on_cpu(events: list[Any], wall_ms: float, runs: int) -> Profile:
    """By what the kernels were called for; nothing inside them is a linear map."""
    total = {event.key: event.cpu_time_total / 1000 / runs for event in events}
    ms = {kind: total[f"kind: {kind}"] for kind, _ in _KINDS if f"kind: {kind}" in total}
    ms["matrix product"] = total.get("aten::linear", 0.0)
    ms["other"] = total[_WHOLE] - sum(ms.values())
    own = [(event.self_cpu_time_total / 1000 / runs, event.count / runs, event.key) for event in events]
    return Profile(ms, wall_ms, sorted((one for one in own if not one[2].startswith("kind: ")), reverse=True))


def table(found: Profile, layers: int, most: int = 15) -> str:
    """As Markdown, with milliseconds per layer; then the kernels that take longest."""
    busy = sum(found.ms.values())
    lines = ["| kind | ms | ms per layer | share |", "|---|---|---|---|"]
    rows = [*sorted(found.ms.items(), key=lambda item: -item[1]), ("all of these", busy), ("wall clock", found.wall_ms)]
    for kind, taken in rows:
        lines.append(f"| {kind} | {taken:.2f} | {taken / layers:.3f} | {taken / found.wall_ms:.3f} |")
    lines.append("")
    lines += [f"    {taken:9.3f} ms {count:6.0f} x  {name[:100]}" for taken, count, name in found.kernels[:most]]
    return "\n".join(lines)
