"""Proposes layer sets and judges answers; Python and NumPy only, no torch."""

from __future__ import annotations

from genetic_algorithm.config import SearchConfig
from genetic_algorithm.errors import SearchError
from genetic_algorithm.evaluator import Answers, Evaluator, Score
from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.search import Search

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
