"""How long a candidate takes: timed on the real engine, or forecast from the rate of its matrix products."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from evaluation.engine import Engine
from genetic_algorithm.evaluator import limit_questions

Shapes = Sequence[tuple[int, int]]
"""[out, in] of each matrix of a layer."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Expected seconds for one candidate that shares no layers with another."""

    seconds: dict[str, float]
    """By which questions."""
    how: str
    """Where the figures come from."""


def measured(engine: Engine) -> Pace:
    """From a short pass of an engine that has all questions."""
    each = engine.seconds_per_question
    asked = {"limit 10": len(limit_questions(engine.subjects, 10)), "all questions": engine.num_questions}
    seconds = {which: each * number for which, number in asked.items()}
    return Pace(
        seconds, f"measured on some of the {engine.num_questions:,} questions; sets that share layers take less"
    )


def forecast(
    rate: float, shapes: Shapes, layers: int, tokens: Mapping[str, int], shares: Mapping[str, float] | None
) -> Pace:
    """From the rate of matrix products.

    Args:
        rate: Of matrix products alone, in FLOP/s.
        shapes: Of one layer.
        layers: How many there are.
        tokens: Of all questions of a kind, by its name.
        shares: The rate of a whole walk over that of its matrix products, by the same names; None where it has not been
            measured.
    """
    per_token = 2 * layers * sum(out * width for out, width in shapes)
    seconds = {which: count * per_token / (rate * (shares[which] if shares else 1)) for which, count in tokens.items()}
    told = f"forecast for questions of MMLU from {rate / 1e12:.3g} TFLOP/s of matrix products, measured here"
    return Pace(seconds, told if shares else f"{told}; at least, for what runs between them is left out")


def matrix_rate(device: torch.device, dtype: torch.dtype, shapes: Shapes, tokens: int, seconds: float = 2.0) -> float:
    """Sustained rate of a layer's matrix products alone, in FLOP/s.

    Args:
        device: Where.
        dtype: Of weights and activations.
        shapes: Of the layer.
        tokens: At a time.
        seconds: How long to measure, after a first round.
    """

    def random(rows: int, width: int) -> torch.Tensor:
        return torch.randn(rows, width, dtype=dtype, device=device) / width**0.5

    pairs = [(random(tokens, width), random(out, width)) for out, width in shapes]

    def run(rounds: int) -> None:
        for x, weight in pairs * rounds:
            linear(x, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        run(1)
        done, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < seconds or not done:
            run(4)  # so that a GPU is not waited for after every layer
            done += 4
    return done * 2 * tokens * sum(out * width for out, width in shapes) / took
