"""Triton's kernels on a machine without a GPU: in Triton's interpreter, completed by what it lacks.

The interpreter has to be chosen before Triton is imported, so it has a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

runs_kernels = pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="runs in test_in_the_interpreter's process")
starts_interpreter = pytest.mark.skipif(ON_GPU or INTERPRETED, reason="the other tests run here")


def run_in_the_interpreter(file: str) -> None:
    """The tests of a file, once more, with kernels."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding to the nearest (it cuts off, or loses the carry), products of bfloat16, CUDA's library of functions."""
    import numpy as np
    import triton.language as tl
    from triton.language.extra import libdevice
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
    cast_to_8_bits = InterpreterBuilder.create_fp_to_fp

    def rounded(handle, dtype: torch.dtype, bits: torch.dtype):
        return torch.from_numpy(np.array(handle.data)).to(dtype).view(bits).numpy()

    def rounded_cast(self, handle, to):
        if handle.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
            return cast(self, handle, to)
        return TensorHandle(rounded(handle, torch.bfloat16, torch.int16).view(np.uint16), to.scalar)

    def rounded_cast_to_8_bits(self, handle, to, rounding):
        if handle.dtype.scalar != tl.float32 or to.scalar != tl.float8e4nv:
            return cast_to_8_bits(self, handle, to, rounding)
        return TensorHandle(rounded(handle, torch.float8_e4m3fn, torch.uint8), to.scalar)

    def wide_dot(self, a, b, *rest):
        a, b = (cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    def exp(x):
        made = torch.from_numpy(np.array(x.handle.data)).exp().numpy()
        return tl.tensor(TensorHandle(made, x.dtype.scalar), x.type)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounded_cast)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", rounded_cast_to_8_bits)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", wide_dot)
    monkeypatch.setattr(libdevice, "exp", exp)


def use_silu_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a mixer's bits: on a CPU, PyTorch's SiLU has another exponential than `exp`."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    from models.packed import triton_exact_kernels

    def silu(x):
        made = torch.nn.functional.silu(torch.from_numpy(np.array(x.handle.data))).numpy()
        return tl.tensor(TensorHandle(made, x.dtype.scalar), x.type)

    monkeypatch.setattr(triton_exact_kernels, "silu", silu)
