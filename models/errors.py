"""The error that everything in `models` raises for what a user can put right."""

from __future__ import annotations


class ModelError(ValueError):
    """A model folder, weight file, configuration or pair that cannot be used.

    The message is one line: it names the bad value and says what to do next.
    """
