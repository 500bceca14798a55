"""Evaluators of benchmarks/chaos.py, which write down in a file what they are asked: `--evaluator MODULE:FACTORY`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm import Answers, Evaluator, LayerSet

CALLS = "CHAOS_CALLS"
"""Environment variable: the file."""


class Written:
    """Wraps an evaluator; a file has a line for each call, and for each set when it is begun and when it is answered.

    A set is begun when the one before it has been answered; an evaluator that works ahead is behind by what it has
    done meanwhile, and one that answers all sets at its end begins them together.
    """

    def __init__(self, inner: Evaluator, path: Path) -> None:
        self._inner, self._path = inner, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """Of the evaluator."""
        left = len(set(batch))
        self._write("asked", left * len(questions))
        coming = self._inner.answers(batch, questions)
        while True:
            if left:
                self._write("begins", len(questions))
                left -= 1
            try:
                layers, answers = next(coming)
            except StopIteration:
                return
            self._write("answers", len(questions))
            yield layers, answers

    def _write(self, what: str, count: int) -> None:
        line = f"{time.time():.3f} {os.getpid()} {what} {count}\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


class Calls(NamedTuple):
    """Question-evaluations that were asked for in whole calls, that were begun, and that were answered."""

    asked: int
    begun: int
    ended: int


def calls_in(path: Path) -> Calls:
    """What a file says; a line that a kill tore counts nothing."""
    counts = {"asked": 0, "begins": 0, "answers": 0}
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) == 4:
            counts[words[2]] += int(words[3])
    return Calls(counts["asked"], counts["begins"], counts["answers"])


def tiny() -> Evaluator:
    """The bundled pair, as `--pair tiny` has it on a CPU."""
    from evaluation.config import EvalConfig
    from genetic_algorithm.wiring import make_evaluator

    return Written(
        make_evaluator(EvalConfig(pair="tiny", device="cpu", dtype="float32"), None), Path(os.environ[CALLS])
    )


def simulated() -> Evaluator:
    """The simulator of the tests; its settings are in the environment (SIM_SLEEP_S and others)."""
    from tests.genetic_algorithm.simulator import factory

    return Written(factory(), Path(os.environ[CALLS]))
