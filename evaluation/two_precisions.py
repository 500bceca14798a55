"""One evaluator of two: every question exactly, and once more coarsely.

The coarse questions have indices of their own, so that journal and search keep the two kinds of answers apart without
knowing of it, and no coarse answer can stand in for an exact one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.engine import Engine
from evaluation.walk import distinct
from genetic_algorithm import Answers, LayerSet


class TwoPrecisions:
    """Questions 0 to `coarse_from` are the exact engine's, those from there on the coarse one's."""

    def __init__(self, exact: Engine, coarse: Engine) -> None:
        """Take two engines with the same questions."""
        self._exact, self._coarse = exact, coarse
        self.coarse_from = exact.num_questions

    @property
    def num_layers(self) -> int:
        """Depth of base and donor."""
        return self._exact.num_layers

    @property
    def num_questions(self) -> int:
        """Of both kinds."""
        return 2 * self.coarse_from

    @property
    def subjects(self) -> NDArray[np.int64]:
        """Subject of each question."""
        return np.tile(self._exact.subjects, 2)

    @property
    def tokens(self) -> NDArray[np.float64]:
        """Of each question."""
        return np.tile(self._exact.tokens, 2)

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """Of each question in a score, where some count more than others."""
        return None if self._exact.weights is None else np.tile(self._exact.weights, 2)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """That of the exact engine, and the dtype of coarse answers."""
        return {**self._exact.fingerprint, "num_questions": self.num_questions, "fast_dtype": self._coarse.dtype_name}

    @property
    def setting(self) -> str:
        """On what the engines run, in words."""
        return f"{self._exact.setting}; fast stage: {self._coarse.dtype_name}"

    @property
    def seconds_per_question(self) -> float:
        """Of the exact engine."""
        return self._exact.seconds_per_question

    def describe(self) -> dict[str, Any]:
        """Of the exact engine, and the pace of the coarse one."""
        return {
            **self._exact.describe(),
            "fast_dtype": self._coarse.dtype_name,
            "fast_seconds_per_question": self._coarse.seconds_per_question,
        }

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """As `Engine.answers`, exact and coarse questions mixed as they come."""
        asked = np.asarray(questions, dtype=np.int64)
        is_coarse = asked >= self.coarse_from
        if not is_coarse.any():
            yield from self._exact.answers(batch, asked)
        elif is_coarse.all():
            yield from self._coarse.answers(batch, asked - self.coarse_from)
        else:
            exact = dict(self._exact.answers(batch, asked[~is_coarse]))
            coarse = dict(self._coarse.answers(batch, asked[is_coarse] - self.coarse_from))
            order = np.argsort(np.concatenate([np.flatnonzero(~is_coarse), np.flatnonzero(is_coarse)]))
            for layers in distinct(batch):
                yield layers, _joined(exact[layers], coarse[layers], order)


def _joined(first: Answers, second: Answers, order: NDArray[np.int64]) -> Answers:
    def both(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        return None if a is None or b is None else np.concatenate([a, b])[order]

    correct = np.concatenate([first.correct, second.correct])[order]
    return Answers(correct, both(first.margin, second.margin), both(first.divergence, second.divergence))
