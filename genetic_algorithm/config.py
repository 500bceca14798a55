"""What shapes a search, with its defaults; every field is checked on construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from genetic_algorithm.errors import SearchError
from genetic_algorithm.layer_set import SearchSpace

GOALS = ("accuracy", "kl")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How to search. Limits are questions per subject; None means all of them.

    Raises:
        SearchError: if a value cannot be; the message names it.
    """

    strategy: str = "ga"
    """How sets are proposed and raced: a name of `strategies.STRATEGIES`, or MODULE:CLASS."""
    goal: str = "accuracy"
    """What is to be high: `accuracy`, or `kl`, the negative divergence from the donor's answers."""
    max_questions: int | None = None
    """Question-evaluations that the whole search may ask for, hold-out included."""
    max_passes: float | None = None
    """The same in units of all questions once (for MMLU, full-MMLU units)."""
    max_hours: float | None = None
    """Hours that answers may take, whenever they were made."""
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
    must_include: tuple[int, ...] = ()
    """Layers that every proposed set holds."""
    forbid: tuple[int, ...] = ()
    """Layers that no proposed set holds."""
    window: tuple[int, int] | None = None
    """First and last layer that a proposed set may hold; None for all."""
    layer_cost: float = 0.0
    """Accuracy that one more layer must bring to be worth it."""
    fast_limit: int | None = 10
    """Questions per subject in the fast look of stages 1 and 3; the first of those of `full_limit`."""
    full_limit: int | None = 50
    """Questions per subject by which sets are ranked in the end."""
    final_limit: int | None = 0
    """Questions per subject on which the leaders that the full ones cannot tell apart are compared once more;
    0 leaves this out."""
    holdout: float = 0.25
    """Share of each subject's questions that only the finalists see; they never choose. 0 for none."""
    growth: float = 2.0
    """How many times as many questions each rung of the ladder has as the one below."""
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
    last_share: float = 0.35
    """Share of the budget that strategy ga keeps for its stages 2 and 3."""
    plausible: float = 0.02
    """Probability of being the best above which strategy ga goes on asking a set."""
    max_failed: float = 0.5
    """Stop when more than this share of the sets asked for cannot be evaluated."""

    def __post_init__(self) -> None:
        for name in ("population", "tournament", "verified", "kept", "verified_per_round", "no_improve", "contenders"):
            self._at_least(name, 1)
        counts = ("generations", "elitism", "climbs", "rounds", "verifications", "min_layers", "max_layers", "seed")
        for name in counts:
            self._at_least(name, 0)
        for name in ("fast_limit", "full_limit"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        shares = ("elite_fraction", "scored_fraction", "crossover_rate", "mutation_rate", "guidance", "doubt")
        for name in (*shares, "last_share", "plausible", "max_failed"):
            if not 0 <= getattr(self, name) <= 1:
                raise SearchError(f"{flag(name)} must be between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.holdout < 1:
            raise SearchError(f"--holdout must be at least 0 and below 1, got {self.holdout}; it is a share")
        if not 1.2 <= self.growth <= 100:
            raise SearchError(f"--growth must be between 1.2 and 100, got {self.growth}")
        if self.goal not in GOALS:
            raise SearchError(f"--goal {self.goal} is none of {', '.join(GOALS)}")
        if not 0 <= self.layer_cost < 1:
            raise SearchError(
                f"--layer-cost must be at least 0 and below 1 (accuracy per layer), got {self.layer_cost}"
            )
        for name in ("max_questions", "max_passes", "max_hours"):
            if (most := getattr(self, name)) is not None and not 0 < most < float("inf"):
                raise SearchError(f"{flag(name)} must be above 0, got {most}")
        if self.window is not None and not 0 <= self.window[0] <= self.window[1]:
            raise SearchError(f"--window {self.window[0]}:{self.window[1]} holds no layer; give FIRST:LAST, as 8:23")
        if self.elite_fraction + self.scored_fraction > 1:
            raise SearchError(
                f"--elite-fraction {self.elite_fraction} and --scored-fraction {self.scored_fraction} "
                "are more than the whole population; their sum is at most 1"
            )
        if self.tolerance < 0:
            raise SearchError(f"--tolerance must be at least 0, got {self.tolerance}")
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

    def space(self, num_layers: int) -> SearchSpace:
        """The sets that may be proposed for a model of this depth.

        Raises:
            SearchError: naming the constraint that cannot be met.
        """
        outside: set[int] = set()
        if self.window is not None:
            first, last = self.window
            if last >= num_layers:
                raise SearchError(f"--window {first}:{last}: the model's layers are 0 to {num_layers - 1}")
            outside = {i for i in range(num_layers) if not first <= i <= last}
        forbidden = tuple(sorted({*self.forbid, *outside}))
        return SearchSpace(num_layers, self.min_layers, self.max_layers, self.must_include, forbidden)

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value < least:
            raise SearchError(f"{flag(name)} must be at least {least}, got {value}")


def flag(name: str) -> str:
    """How the command line spells a field."""
    return "--" + name.replace("_", "-")


def _spelt(limit: int | None) -> str:
    return "none" if limit is None else str(limit)


def quick() -> SearchConfig:
    """A first look at a pair with many subjects: limits 10 and 50."""
    return SearchConfig(max_passes=6.0)


def full() -> SearchConfig:
    """The whole search for a pair with many subjects: limits 20 and none (all questions)."""
    return replace(quick(), population=40, generations=20, fast_limit=20, full_limit=None, max_passes=16.0)


def tiny() -> SearchConfig:
    """For few subjects with a thousand questions each, as the bundled pair has: limits 24 and 150."""
    return replace(quick(), fast_limit=24, full_limit=150, final_limit=750, max_passes=12.0)


PRESETS: dict[str, Callable[[], SearchConfig]] = {"tiny": tiny, "quick": quick, "full": full}
