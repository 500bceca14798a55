"""Strategy `random`: what chance finds; random sets, raced (Bergstra and Bengio 2012)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Request
from genetic_algorithm.questions import FAST, FULL
from genetic_algorithm.strategies.racing import MANY_KEPT, VERIFY, capacity, race_forecast, verify
from genetic_algorithm.strategies.strategy import Setting, StageForecast, candidates, ranked_on_ladder

DRAWN = "random sets"
_TRIES = 50  # draws for each new set before the space counts as seen


def draw_new(setting: Setting, count: int) -> list[LayerSet]:
    """So many distinct random sets that were not asked yet, fewer where these are rare."""
    drawn: dict[LayerSet, None] = {}
    for _ in range(_TRIES * count):
        if len(drawn) >= min(count, setting.space.size):
            break
        layers = setting.space.random(setting.rng)
        if setting.ledger.is_new(layers) and layers not in setting.ledger.failed:
            drawn[layers] = None
    return list(drawn)


@dataclass(slots=True)
class RandomSearch:
    """Random sets on the fast questions, the best of them verified."""

    setting: Setting
    stages: tuple[str, ...] = (DRAWN, VERIFY)

    def run(self) -> Iterator[Request]:
        """Yield the requests."""
        ledger, looks = self.setting.ledger, list(self.setting.elite)
        without_budget = ledger.left == inf
        while True:
            spent = ledger.spent
            count = self._planned() if without_budget else max(1, int(capacity(ledger, MANY_KEPT)))
            looks += draw_new(self.setting, count)
            yield from ledger.wanted(looks[: max(count, len(self.setting.elite))], FAST, DRAWN, "random sets")
            yield from verify(self.setting)
            # Bad sets leave a race early, which leaves some of the budget for more sets.
            if without_budget or ledger.spent == spent:
                return
            looks = []

    def _planned(self) -> int:
        config = self.setting.config
        return min(self.setting.space.size, config.population * max(1, config.generations))

    def ranking(self) -> list[LayerSet]:
        """By score on the highest rung answered."""
        return ranked_on_ladder(self.setting)

    def forecast(self) -> list[StageForecast]:
        """The cost by stage."""
        ledger, planned = self.setting.ledger, self._planned()
        fast = planned * len(ledger.parts[FAST])
        return [StageForecast(DRAWN, planned, fast, fast), race_forecast(ledger, VERIFY, planned)]

    def details(self) -> dict[str, Any]:
        """The best sets."""
        best = self.ranking()[: self.setting.config.kept]
        return {VERIFY: {"candidates": candidates(self.setting.ledger, best, FULL)}}
