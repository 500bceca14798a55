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
_TRIES = 20  # draws for each new set before the space counts as seen
_ENUMERABLE = 100_000


def draw_new(setting: Setting, count: int) -> list[LayerSet]:
    """So many distinct random sets that were not asked yet, fewer where these are rare."""
    space, ledger, rng = setting.space, setting.ledger, setting.rng
    failed = set(ledger.failed)
    if space.size <= min(2 * count, _ENUMERABLE):  # drawing until the last ones come would take long
        new = [layers for layers in space if ledger.is_new(layers) and layers not in failed]
        return [new[i] for i in rng.permutation(len(new))[:count]]
    drawn: dict[LayerSet, None] = {}
    for _ in range(_TRIES * count):
        layers = space.random(rng)
        if ledger.is_new(layers) and layers not in failed:
            drawn[layers] = None
            if len(drawn) == count:
                break
    return list(drawn)


@dataclass(slots=True)
class RandomSearch:
    """Random sets on the fast questions, the best of them verified."""

    setting: Setting
    stages: tuple[str, ...] = (DRAWN, VERIFY)

    def run(self) -> Iterator[Request]:
        """Yield the requests."""
        setting, ledger = self.setting, self.setting.ledger
        yield from ledger.wanted(setting.elite, FAST, DRAWN, "elites")
        while True:
            spent, affordable = ledger.spent, capacity(ledger, MANY_KEPT)
            count = self._planned() if affordable == inf else max(1, int(affordable))
            yield from ledger.wanted(draw_new(setting, count), FAST, DRAWN, "random sets")
            yield from verify(setting)
            # Bad sets leave a race early, which leaves some of the budget for more sets.
            if affordable == inf or ledger.spent == spent:
                return

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
        return [StageForecast(DRAWN, planned, fast, fast), race_forecast(ledger, VERIFY, planned, keep=MANY_KEPT)]

    def details(self) -> dict[str, Any]:
        """The best sets."""
        best = self.ranking()[: self.setting.config.kept]
        return {VERIFY: {"candidates": candidates(self.setting.ledger, best, FULL)}}
