"""Today's way for benchmarks/engine.py, and how often two ways of answering take different choices.

Suffixes: Q questions, C choices.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.questions import QuestionSet
from evaluation.reference import LmEval, ReferenceAnswers
from genetic_algorithm import LayerSet
from models.hybrid import HybridPair


@dataclass(frozen=True, slots=True)
class Theirs:
    """What lm-eval made of one set."""

    seconds: float
    subjects: Mapping[str, ReferenceAnswers]

    def log_probs(self, questions: QuestionSet, asked: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of the choices, as `Engine.log_probs` gives them, [Q, C]; -inf where a choice is absent."""
        known = {
            (name, int(document)): choices
            for name, subject in self.subjects.items()
            for document, choices in zip(subject.documents, subject.log_probs, strict=True)
        }
        found_QC = np.full((len(asked), questions.gold_QC.shape[1]), -np.inf)
        for row, q in zip(found_QC, asked, strict=True):
            choices = known[questions.subject_names[questions.subjects_Q[q]], int(questions.documents_Q[q])]
            row[: len(choices)] = choices
        return found_QC


def ask_lm_eval(lm_eval: LmEval, pair: HybridPair, layers: LayerSet, limit: int | None) -> Theirs:
    """One set through lm-eval's HFLM, on the hybrid put together of the pair's own weights."""
    model = pair.assemble(layers.indices)
    began = time.perf_counter()
    subjects = lm_eval.answers(model, limit=limit)
    return Theirs(time.perf_counter() - began, subjects)


@dataclass(frozen=True, slots=True)
class Flips:
    """Questions on which two ways take different choices."""

    asked: int
    margin_Q: NDArray[np.float64]
    """Of each such question: by how much, in nats, the first way prefers its own choice to the next best."""
    differing: int
    """Questions of which any log-probability differs."""
    largest: float
    """Difference of a log-probability, in nats."""

    def __str__(self) -> str:
        count = len(self.margin_Q)
        told = f"{count} of {self.asked} decisions differ ({1000 * count / self.asked:.2f} per thousand)"
        if count:
            told += f", at margins of {np.median(self.margin_Q):.4f} (median) to {self.margin_Q.max():.4f}"
        if not self.differing:
            return f"{told}; all log-probabilities are the same bits"
        return f"{told}; log-probabilities differ on {self.differing} questions, by at most {self.largest:.2g}"

    def as_json(self) -> dict[str, float | int | None]:
        """The numbers."""
        count = len(self.margin_Q)
        return {
            "asked": self.asked,
            "flips": count,
            "per_thousand": 1000 * count / self.asked,
            "median_margin": float(np.median(self.margin_Q)) if count else None,
            "largest_margin": float(self.margin_Q.max()) if count else None,
            "differing": self.differing,
            "largest_difference": self.largest,
        }


def compare(first_QC: NDArray[np.float64], second_QC: NDArray[np.float64]) -> Flips:
    """Decisions by two tables of log-probabilities; of equal ones the first choice counts, as in lm-eval."""
    flipped_Q = first_QC.argmax(-1) != second_QC.argmax(-1)
    best_Q2 = np.sort(first_QC[flipped_Q], axis=-1)[:, -2:]
    present_QC = np.isfinite(first_QC) & np.isfinite(second_QC)
    off_QC = np.abs(np.subtract(first_QC, second_QC, out=np.zeros_like(first_QC), where=present_QC))
    return Flips(
        asked=len(first_QC),
        margin_Q=best_Q2[:, 1] - best_Q2[:, 0],
        differing=int((off_QC > 0).any(-1).sum()),
        largest=float(off_QC.max(initial=0.0)),
    )
