"""Strategy `ga-original`: the three stages as users know them, guided by mined patterns alone.

A genetic algorithm on the fast questions, the best of it on the full ones, and hill climbing around these; then a
play-off between leaders that the full questions cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.ledger import Request
from genetic_algorithm.questions import FAST, FINAL, FULL
from genetic_algorithm.strategies.genetic import STAGE as STAGE_1
from genetic_algorithm.strategies.genetic import Genetic
from genetic_algorithm.strategies.local_search import STAGE as STAGE_3
from genetic_algorithm.strategies.local_search import LocalSearch
from genetic_algorithm.strategies.strategy import Setting, StageForecast, candidates

STAGE_2, PLAY_OFF = "stage 2", "play-off"


@dataclass(slots=True)
class OriginalGA:
    """The original three stages and the play-off."""

    setting: Setting
    stages: tuple[str, ...] = (STAGE_1, STAGE_2, STAGE_3, PLAY_OFF)
    genetic: Genetic = field(init=False)
    climb: LocalSearch | None = None
    first: list[LayerSet] = field(default_factory=list)
    """Best by fast score, as many as stage 2 takes."""
    second: list[LayerSet] = field(default_factory=list)
    """Kept by stage 2, best by full score first."""

    def __post_init__(self) -> None:
        self.genetic = Genetic(self.setting)

    def run(self) -> Iterator[Request]:
        """Yield the requests of all stages."""
        config, space, ledger = self.setting.config, self.setting.space, self.setting.ledger
        yield from self.genetic.run()
        ranked = [layers for layers in ledger.scored(FAST) if space.contains(layers)]
        self.first = ranked[: config.verified]

        # The best of each size is verified as well, so that the report can compare sizes; so is the base.
        champions = [next((s for s in ranked if len(s) == size), None) for size in space.sizes]
        extra = [s for s in champions if s is not None] + [LayerSet(())]
        yield from ledger.wanted([*self.first, *extra], FULL, STAGE_2, "full evaluation")
        self.second = self._ranked_full()[: config.kept]

        self.climb = LocalSearch(config, space, ledger, self.second[: config.climbs])
        yield from self.climb.run()
        yield from ledger.wanted(self._contenders(), FINAL, PLAY_OFF, "final questions")

    def ranking(self) -> list[LayerSet]:
        """By score on the final questions, then, for those not asked these, on the full and on the fast ones."""
        ledger, found = self.setting.ledger, dict[LayerSet, None]()
        for part in (FINAL, FULL, FAST):
            found.update(dict.fromkeys(s for s in ledger.scored(part) if self.setting.space.contains(s)))
        return list(found)

    def forecast(self) -> list[StageForecast]:
        """The cost by stage. The sum is an upper bound; most searches stay well below it."""
        config, space, parts = self.setting.config, self.setting.space, self.setting.ledger.parts
        fast, full, final = (len(parts[name]) for name in (FAST, FULL, FINAL))
        rest = len(np.setdiff1d(parts[FULL], parts[FAST]))  # coarse answers are no part of the full ones
        measured = self.setting.single_scores is None
        singles = len(space.free) + 1 if measured else 0
        per_generation = max(1, config.population - config.elitism)
        first = min(space.size, config.population + config.generations * per_generation)
        early = min(space.size, config.population + min(config.generations, config.no_improve + 3) * per_generation)
        verified = min(space.size, config.verified + len(space.sizes)) + 1

        near = max((_neighbourhood(space, size) for size in space.sizes), default=0)
        climbs = min(config.climbs, space.size)
        screened = max(0, min(space.size - first, climbs * config.rounds * near))  # none was looked at in stage 1
        checked = min(space.size, config.verifications, climbs * config.rounds * config.verified_per_round)
        contenders = min(config.contenders, space.size) if final else 0
        more = max(0, final - full)
        base = 0 if measured else full - rest
        mostly = min(screened, climbs * near // 2) * fast + checked // 4 * rest
        return [
            StageForecast(STAGE_1, singles + first, (singles + first) * fast, (singles + early) * fast),
            StageForecast(STAGE_2, verified, verified * rest + base, verified * rest + base),
            StageForecast(STAGE_3, max(screened, checked), screened * fast + checked * rest, mostly),
            StageForecast(PLAY_OFF, contenders, contenders * more, contenders // 2 * more),
        ]

    def details(self) -> dict[str, Any]:
        """Generations, kept sets and climbs."""
        ledger, climb = self.setting.ledger, self.climb
        paths = climb.paths if climb else []
        ends = [path[-1] for path in paths]
        return {
            STAGE_1: {
                "candidates": candidates(ledger, self.first, FAST),
                "generations": [line.as_json() for line in self.genetic.history],
            },
            STAGE_2: {"candidates": candidates(ledger, self.second, FULL)},
            STAGE_3: {
                "local_optimum": bool(climb and climb.is_local_optimum),
                "climbs": [[list(layers.indices) for layers in path] for path in paths],
                "candidates": candidates(ledger, ends, FULL),
            },
            "patterns": [pattern.as_json() for pattern in self.genetic.patterns],
        }

    def _contenders(self) -> list[LayerSet]:
        """The leader and those that the full questions cannot tell from it; none where it stands alone."""
        ranking, compare = self._ranked_full(), self.setting.ledger.compare
        found = [s for s in ranking if compare(ranking[0], s, FULL).p_value > self.setting.config.doubt]
        return found[: self.setting.config.contenders] if len(found) > 1 else []

    def _ranked_full(self) -> list[LayerSet]:
        return [layers for layers in self.setting.ledger.scored(FULL) if self.setting.space.contains(layers)]


def _neighbourhood(space: SearchSpace, size: int) -> int:
    outside = max(0, space.num_layers - len(space.forbidden) - size)
    inside = size - len(space.must_include)
    return inside * outside + (outside if size < space.max_layers else 0) + (inside if size > space.min_layers else 0)
