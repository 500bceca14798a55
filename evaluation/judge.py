"""From scores of choices to answers: right or wrong, margin, divergence. NumPy alone.

Suffixes: Q questions, C choices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm import Answers


def log_softmax(scores_QC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores normalised over the choices; -inf stays."""
    shifted = scores_QC - scores_QC.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def judge(
    scores_QC: NDArray[np.float64],
    gold_QC: NDArray[np.bool_],
    absent_QC: NDArray[np.bool_],
    donor_QC: NDArray[np.float64] | None,
) -> Answers:
    """Right or wrong as lm-eval's `acc` has it (of equal scores the first counts), margin and divergence.

    Where no choice is right, or all are, the margin is the spread of the scores with the sign of the outcome:
    the convention keeps it finite, which the definition would not.

    Args:
        scores_QC: Log-probabilities of the choices in nats, up to a constant per question; -inf where absent.
        gold_QC: Which choices are right.
        absent_QC: Choices that a question does not have.
        donor_QC: The donor's log-probabilities, normalised over the choices; None for no divergence.
    """
    present_QC = ~absent_QC
    right_QC, other_QC = gold_QC & present_QC, ~gold_QC & present_QC
    picked_Q = scores_QC.argmax(axis=-1)
    correct = right_QC[np.arange(len(picked_Q)), picked_Q]
    lowest_Q = np.where(present_QC, scores_QC, np.inf).min(axis=-1)
    best_right_Q = np.where(right_QC, scores_QC, -np.inf).max(axis=-1)
    best_other_Q = np.where(other_QC, scores_QC, -np.inf).max(axis=-1)
    best_right_Q = np.where(right_QC.any(-1), best_right_Q, lowest_Q)
    best_other_Q = np.where(other_QC.any(-1), best_other_Q, lowest_Q)
    margin = (best_right_Q - best_other_Q).astype(np.float32)
    if donor_QC is None:
        return Answers(correct, margin)
    hybrid_QC = log_softmax(scores_QC)
    gap_QC = np.subtract(donor_QC, hybrid_QC, out=np.zeros_like(hybrid_QC), where=present_QC)
    # Rounding may take a vanishing divergence below 0.
    divergence = np.maximum((np.exp(donor_QC) * gap_QC).sum(axis=-1), 0.0)
    return Answers(correct, margin, divergence.astype(np.float32))
