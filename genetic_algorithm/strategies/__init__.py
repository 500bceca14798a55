"""Ways to search, behind one interface; ARCHITECTURE.md tells how to add one."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from genetic_algorithm.errors import SearchError
from genetic_algorithm.imported import imported, is_spec
from genetic_algorithm.strategies.additive import Additive, Pairwise
from genetic_algorithm.strategies.beam import Beam, greedy
from genetic_algorithm.strategies.contract import held
from genetic_algorithm.strategies.evopress import EvoPress
from genetic_algorithm.strategies.ga import ModelAssistedGA
from genetic_algorithm.strategies.ga_original import OriginalGA
from genetic_algorithm.strategies.random_search import RandomSearch
from genetic_algorithm.strategies.scan import Scan
from genetic_algorithm.strategies.strategy import Setting, StageForecast, Strategy

__all__ = ["STRATEGIES", "Setting", "StageForecast", "Strategy", "check_name", "find_strategy", "make_strategy"]

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
"""By the name that --strategy takes; any other is named as MODULE:CLASS."""


def check_name(name: str) -> str:
    """Return the name, or raise SearchError unless it is known or spelled as MODULE:CLASS; imports nothing."""
    if name in STRATEGIES or is_spec(name):
        return name
    near = difflib.get_close_matches(name, STRATEGIES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise SearchError(f"--strategy {name} is none of {', '.join(STRATEGIES)}, nor MODULE:CLASS{hint}")


def find_strategy(name: str) -> Callable[[Setting], Strategy]:
    """What makes the strategy of that name: a known one, or MODULE:CLASS of a user's own.

    Raises:
        SearchError: if there is none of that name.
    """
    return STRATEGIES.get(check_name(name)) or held(name, imported("--strategy", name, "class"))


def make_strategy(name: str, setting: Setting) -> Strategy:
    """Build a strategy by name.

    Raises:
        SearchError: if there is none of that name, or what it names makes something else.
    """
    return find_strategy(name)(setting)
