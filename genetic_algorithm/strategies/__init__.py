"""Ways to search, behind one interface."""

from __future__ import annotations

from collections.abc import Callable

from genetic_algorithm.errors import SearchError
from genetic_algorithm.strategies.additive import Additive, Pairwise
from genetic_algorithm.strategies.beam import Beam, greedy
from genetic_algorithm.strategies.evopress import EvoPress
from genetic_algorithm.strategies.ga import ModelAssistedGA
from genetic_algorithm.strategies.ga_original import OriginalGA
from genetic_algorithm.strategies.random_search import RandomSearch
from genetic_algorithm.strategies.scan import Scan
from genetic_algorithm.strategies.strategy import Setting, StageForecast, Strategy

__all__ = ["STRATEGIES", "Setting", "StageForecast", "Strategy", "make_strategy"]

STRATEGIES: dict[str, Callable[[Setting], Strategy]] = {
    "ga": ModelAssistedGA,
    "ga-original": OriginalGA,
    "scan": Scan,
    "beam": Beam,
    "greedy": greedy,
    "additive": Additive,
    "pairwise": Pairwise,
    "evopress": EvoPress,
    "random": RandomSearch,
}
"""By the name that --strategy takes."""


def make_strategy(name: str, setting: Setting) -> Strategy:
    """Build a strategy by name.

    Raises:
        SearchError: if there is none of that name.
    """
    if name not in STRATEGIES:
        raise SearchError(f"--strategy {name} is none of {', '.join(STRATEGIES)}")
    return STRATEGIES[name](setting)
