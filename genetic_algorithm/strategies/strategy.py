"""What every strategy is given, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from genetic_algorithm.config import SearchConfig
from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.ledger import Ledger, Request


@dataclass(frozen=True, slots=True)
class Setting:
    """What a strategy works with.

    Args:
        config: rates and sizes.
        space: the sets it may propose.
        ledger: where answers are found once a request has been told; its budget is the strategy's.
        rng: the only source of chance.
        single_scores: accuracy by layer, where known from elsewhere.
        elite: sets to begin with, where known.
    """

    config: SearchConfig
    space: SearchSpace
    ledger: Ledger
    rng: np.random.Generator
    single_scores: Mapping[int, float] | None = None
    elite: Sequence[LayerSet] = ()

    @property
    def singles(self) -> list[LayerSet]:
        """The base, and what each free layer makes of the root alone: the first thing to ask of any pair."""
        beside = self.space.free if len(self.space.root) < self.space.max_layers else ()
        return list(dict.fromkeys([LayerSet(()), self.space.root, *(self.space.of([i]) for i in beside)]))


@dataclass(frozen=True, slots=True)
class StageForecast:
    """What a stage asks for: layer sets newly looked at, question-evaluations at most and mostly.

    `shared_passes` is what `questions` come to, in passes of one model over all questions, where sets that are asked
    together share their lower layers; None where that is not known beforehand.
    """

    stage: str
    sets: int
    questions: int
    typical: int
    shared_passes: float | None = None


class Strategy(Protocol):
    """A way to search. `run` yields requests and reads the ledger when it goes on. `contract` holds it to this.

    Ledger's `wanted` leaves out what the budget does not pay for; a strategy ends when it has nothing more to ask,
    and must end when what it asks for is left out.
    """

    stages: tuple[str, ...]
    """Names of its stages, in order."""

    def run(self) -> Iterator[Request]:
        """Yield requests until the strategy is done."""

    def ranking(self) -> list[LayerSet]:
        """Sets of the space, best first by what is known now; empty while nothing is."""

    def forecast(self) -> list[StageForecast]:
        """The cost by stage, were there no budget."""

    def details(self) -> dict[str, Any]:
        """What the result says of the stages, JSON values by stage."""


def candidates(ledger: Ledger, sets: Sequence[LayerSet], *parts: str) -> list[dict[str, Any]]:
    """Sets with their scores on the first part that each has answered, for the result."""
    found = [(layers, ledger.best_score(layers, *parts)) for layers in sets]
    return [{"layers": list(layers.indices), **score.as_json()} for layers, score in found if score is not None]


def ranked_on_ladder(setting: Setting) -> list[LayerSet]:
    """Sets of the space by rung, the highest first, and within a rung by score: never across different questions."""
    return setting.ledger.ranked_on_ladder(s for s in setting.ledger.known if setting.space.contains(s))
