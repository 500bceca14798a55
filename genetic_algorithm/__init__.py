"""Proposes layer sets and judges answers; Python and NumPy only, no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genetic_algorithm.config import SearchConfig
    from genetic_algorithm.errors import SearchError
    from genetic_algorithm.evaluator import Answers, Evaluator, Score
    from genetic_algorithm.layer_set import LayerSet, SearchSpace
    from genetic_algorithm.search import Search
else:
    _PLACES = {
        "Answers": "evaluator",
        "Evaluator": "evaluator",
        "LayerSet": "layer_set",
        "Score": "evaluator",
        "Search": "search",
        "SearchConfig": "config",
        "SearchError": "errors",
        "SearchSpace": "layer_set",
    }

    def __getattr__(name: str) -> object:
        """Imported when first asked for, so that the tools in here can say what a Python without NumPy lacks."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


__all__ = [
    "Answers",
    "Evaluator",
    "LayerSet",
    "Score",
    "Search",
    "SearchConfig",
    "SearchError",
    "SearchSpace",
]
