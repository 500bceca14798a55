"""Strategy `evopress`: EvoPress (Sieberling et al. 2024), an evolution of one parent.

Each generation mutates the parent into a number of offspring by a few swaps, additions and removals, mostly one. They
are selected in steps, ever fewer on ever more questions; in the last step the parent competes, and the best is the next
parent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Request
from genetic_algorithm.questions import FULL
from genetic_algorithm.strategies.operators import Operators
from genetic_algorithm.strategies.racing import VERIFY, race_forecast, verify
from genetic_algorithm.strategies.random_search import draw_new
from genetic_algorithm.strategies.strategy import Setting, StageForecast, candidates, ranked_on_ladder

EVOLUTION = "evolution"
_STEPS = 3  # of a selection, a rung each
_KEPT = 0.25  # share of the offspring that goes on from a step
_VERIFY_SHARE = 0.3  # of the budget
_TRIES = 20  # mutations for one offspring that was not seen before


@dataclass(slots=True)
class EvoPress:
    """(1 + lambda) with selection by successive halving."""

    setting: Setting
    stages: tuple[str, ...] = (EVOLUTION, VERIFY)
    parents: list[LayerSet] = field(default_factory=list)
    """The parent of each generation."""

    def run(self) -> Iterator[Request]:
        """Yield the requests."""
        setting, config, ledger = self.setting, self.setting.config, self.setting.ledger
        reserve = 0.0 if ledger.left == inf else _VERIFY_SHARE * ledger.left
        first = [*setting.elite, *draw_new(setting, config.population)]
        yield from self._select(first, None, "first parents")
        # A budget is there to be spent: without one, generations are counted.
        while self.parents and (len(self.parents) <= config.generations or ledger.left < inf):
            if ledger.left <= reserve:
                break
            parent, spent = self.parents[-1], ledger.spent
            offspring = self._offspring(parent, max(1, config.population // 2))
            yield from self._select(offspring, parent, f"generation {len(self.parents)}")
            if ledger.spent == spent:
                break
        yield from verify(setting)

    def _offspring(self, parent: LayerSet, count: int) -> list[LayerSet]:
        """New sets: the parent after one to three mutations, fewer being likelier."""
        setting, rng = self.setting, self.setting.rng
        operators = Operators(setting.config, setting.space, rng)
        found: dict[LayerSet, None] = {}
        for _ in range(_TRIES * count):
            child = parent
            for _ in range(min(int(rng.integers(1, 4)), int(rng.integers(1, 4)))):
                child = operators.mutate(child, (), 0.0)
            if setting.ledger.is_new(child) and child not in setting.ledger.failed:
                found[child] = None
                if len(found) == count:
                    break
        return list(found)

    def _select(self, offspring: list[LayerSet], parent: LayerSet | None, label: str) -> Iterator[Request]:
        """Ask fewer and fewer of the offspring more and more questions; the best is the next parent."""
        ledger = self.setting.ledger
        rungs = ledger.questions.rungs[:_STEPS]
        for step, rung in enumerate(rungs):
            is_last = step + 1 == len(rungs)
            competing = [*offspring, parent] if is_last and parent is not None else offspring
            yield from ledger.wanted(competing, rung, EVOLUTION, label)
            ranked = ledger.ranked(competing, rung)
            offspring = ranked if is_last else ranked[: max(1, int(len(ranked) * _KEPT))]
        best = offspring[0] if offspring else parent
        if best is not None:
            self.parents.append(best)

    def ranking(self) -> list[LayerSet]:
        """By score on the highest rung answered."""
        return ranked_on_ladder(self.setting)

    def forecast(self) -> list[StageForecast]:
        """The cost by stage."""
        config, ledger = self.setting.config, self.setting.ledger
        blocks = [len(block) for block in ledger.questions.blocks[:_STEPS]]
        each = max(1, config.population // 2)
        looks = min(self.setting.space.size, config.population + config.generations * each)
        cost = sum(max(1.0, looks * _KEPT**i) * block for i, block in enumerate(blocks))
        cost += config.generations * sum(blocks[1:])  # at least one of each generation goes on
        most = min(int(cost), looks * sum(blocks))
        return [StageForecast(EVOLUTION, looks, most, most), race_forecast(ledger, VERIFY, looks)]

    def details(self) -> dict[str, Any]:
        """Parents by generation, and the best sets."""
        best = self.ranking()[: self.setting.config.kept]
        return {
            EVOLUTION: {"parents": [list(layers.indices) for layers in self.parents]},
            VERIFY: {"candidates": candidates(self.setting.ledger, best, FULL)},
        }
