"""The one error a user of the evaluation can cause."""

from __future__ import annotations


class EvaluationError(ValueError):
    """Bad input to, or a failure of, an evaluation: one line with the bad value and the next step."""
