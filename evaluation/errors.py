"""The one error a user of the evaluation can cause, and errors in words."""

from __future__ import annotations


class EvaluationError(ValueError):
    """Bad input to, or a failure of, an evaluation: one line with the bad value and the next step."""


def in_words(error: BaseException) -> str:
    """One line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
