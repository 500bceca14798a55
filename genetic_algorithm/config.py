"""What shapes a search, with its defaults; every field is checked on construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from genetic_algorithm.errors import SearchError


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How to search. Limits are questions per subject; None means all of them.

    Raises:
        SearchError: if a value cannot be; the message names it.
    """

    population: int = 20
    """Layer sets per generation."""
    generations: int = 15
    """Generations after the first population, at most."""
    no_improve: int = 5
    """Stop stage 1 after this many generations without a better fast score."""
    min_layers: int = 1
    """Fewest donor layers in a proposed set."""
    max_layers: int = 4
    """Most donor layers in a proposed set."""
    fast_limit: int | None = 10
    """Questions per subject in the fast look of stages 1 and 3; the first of those of `full_limit`."""
    full_limit: int | None = 50
    """Questions per subject by which sets are ranked in the end."""
    final_limit: int | None = 0
    """Questions per subject on which the leaders that the full ones cannot tell apart are compared once more;
    0 leaves this out."""
    holdout_limit: int = 0
    """Questions per subject, next after all those above, that only the finalists see; they never choose."""
    seed: int = 0
    """Of the one generator from which all chance comes."""
    elite_fraction: float = 0.1
    """Share of the first population that is seeded with elites."""
    scored_fraction: float = 0.4
    """Share of the first population drawn by single-layer scores; the rest is random."""
    tournament: int = 3
    """Sets that compete for each parenthood."""
    elitism: int = 2
    """A generation adds `population - elitism` new sets; the best `population` of old and new live on."""
    crossover_rate: float = 0.7
    """Share of children with two parents."""
    mutation_rate: float = 0.6
    """Share of children of two parents that are mutated as well; children of one parent always are."""
    guidance: float = 0.6
    """Share of mutations that plant a mined pattern, in the last generation; it grows from 0."""
    verified: int = 20
    """Best sets of stage 1 that stage 2 scores on the full questions."""
    kept: int = 10
    """Sets in the final ranking."""
    climbs: int = 3
    """Best sets of stage 2 from which stage 3 climbs."""
    verified_per_round: int = 6
    """Promising neighbours of one set that one round of stage 3 scores on the full questions."""
    verifications: int = 30
    """Neighbours that stage 3 scores on the full questions, at most, in all."""
    rounds: int = 6
    """Rounds of stage 3, at most."""
    tolerance: float = 1.0
    """A neighbour is promising unless it is worse by more than this many paired standard errors."""
    contenders: int = 5
    """Sets, the leader included, that are compared on the final questions, at most."""
    doubt: float = 0.05
    """A set contends while its exact paired p-value against the leader is above this."""
    holdout_sets: int = 3
    """Finalists that are asked the hold-out questions."""

    def __post_init__(self) -> None:
        for name in ("population", "tournament", "verified", "kept", "verified_per_round"):
            self._at_least(name, 1)
        for name in ("no_improve", "contenders"):
            self._at_least(name, 1)
        for name in (
            "generations",
            "elitism",
            "climbs",
            "rounds",
            "verifications",
            "holdout_limit",
            "holdout_sets",
        ):
            self._at_least(name, 0)
        for name in ("min_layers", "max_layers", "seed"):
            self._at_least(name, 0)
        for name in ("fast_limit", "full_limit"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        for name in ("elite_fraction", "scored_fraction", "crossover_rate", "mutation_rate", "guidance"):
            if not 0 <= getattr(self, name) <= 1:
                raise SearchError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.doubt <= 1:
            raise SearchError(f"doubt must be between 0 and 1, got {self.doubt}")
        if self.elite_fraction + self.scored_fraction > 1:
            raise SearchError(
                f"elite_fraction {self.elite_fraction} and scored_fraction {self.scored_fraction} "
                "are more than the whole population; their sum is at most 1"
            )
        if self.tolerance < 0:
            raise SearchError(f"tolerance must be at least 0, got {self.tolerance}")
        if self.min_layers > self.max_layers:
            raise SearchError(f"--min-layers {self.min_layers} is above --max-layers {self.max_layers}; swap them")
        if self.full_limit is not None and (self.fast_limit is None or self.fast_limit > self.full_limit):
            raise SearchError(
                f"--fast-limit {_spelt(self.fast_limit)} is more than --full-limit {self.full_limit}; "
                "the fast look must be the smaller one"
            )

        if self.final_limit is not None:
            self._at_least("final_limit", 0)
        if self.final_limit and (self.full_limit is None or self.final_limit < self.full_limit):
            raise SearchError(
                f"--final-limit {self.final_limit} is less than --full-limit {_spelt(self.full_limit)}; "
                "give more, or 0 to leave the final comparison out"
            )

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value < least:
            raise SearchError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def _spelt(limit: int | None) -> str:
    return "none" if limit is None else str(limit)


def quick() -> SearchConfig:
    """A first look at a pair with many subjects: limits 10 and 50."""
    return SearchConfig(holdout_limit=50)


def full() -> SearchConfig:
    """The whole search for a pair with many subjects: limits 20 and none (all questions)."""
    return replace(quick(), population=40, generations=20, fast_limit=20, full_limit=None, holdout_limit=0)


def tiny() -> SearchConfig:
    """For few subjects with a thousand questions each, as the bundled pair has: limits 24 and 150."""
    return replace(quick(), fast_limit=24, full_limit=150, final_limit=750, holdout_limit=250)


PRESETS: dict[str, Callable[[], SearchConfig]] = {"tiny": tiny, "quick": quick, "full": full}
