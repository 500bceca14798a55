"""The one error a user of the search can cause."""

from __future__ import annotations


class SearchError(ValueError):
    """Bad input to the search: one line that names the bad value and the next step."""
