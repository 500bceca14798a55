"""Strategies `beam` and `greedy`: build sets layer by layer from the best of one layer less.

Each step adds one layer to every set of the beam and races what comes of it; the best go on. Forward selection is a
beam of one. Then the best set is improved by removals and swaps (floating search, Pudil et al. 1994, after the fact).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Request
from genetic_algorithm.questions import FAST, FULL
from genetic_algorithm.strategies.additive import SINGLES, additive_model, measure_singles
from genetic_algorithm.strategies.quadratic import Quadratic
from genetic_algorithm.strategies.racing import VERIFY, Race, race_forecast, verify
from genetic_algorithm.strategies.strategy import Setting, StageForecast, candidates, ranked_on_ladder

STEPS, POLISH = "forward steps", "polish"
_HEIGHT = 3  # rungs of a race within a step
_ROUNDS = 6  # of the polish, at most
_DIGITS = 9


@dataclass(slots=True)
class Beam:
    """Beam search over sets of growing size.

    Args:
        setting: what to work with.
        width: sets that go on from each step; a fifth of a population when None.
    """

    setting: Setting
    width: int | None = None
    stages: tuple[str, ...] = (SINGLES, STEPS, POLISH, VERIFY)
    steps: list[list[LayerSet]] = field(default_factory=list)
    """The beam after each step."""

    def run(self) -> Iterator[Request]:
        """Yield the requests."""
        setting, root = self.setting, self.setting.space.root
        width = self.width or max(2, setting.config.population // 5)
        yield from measure_singles(setting, SINGLES)
        model = additive_model(setting)
        beam, steps = [root], setting.space.max_layers - len(root)
        for step in range(steps):
            # The steps left, a polish and the verification share what is left of the budget.
            limit = setting.ledger.left / (steps - step + 2)
            grown = self._grown(beam, model)
            yield from Race(setting, STEPS, f"{len(root) + step + 1} layers", _HEIGHT, limit).run(grown)
            beam = (setting.ledger.ranked_on_ladder(grown) or grown)[:width]  # also those too small for the space
            self.steps.append(beam)
        yield from self._polish(model)
        yield from verify(setting)

    def _grown(self, beam: list[LayerSet], model: Quadratic) -> list[LayerSet]:
        """Every set of the beam with one more layer: the best set first, with the layers that are best alone first."""
        best = sorted(self.setting.space.free, key=lambda i: (-round(float(model.single[i]), _DIGITS), i))
        return list(dict.fromkeys(layers.with_(i) for layers in beam for i in best if i not in layers))

    def _polish(self, model: Quadratic) -> Iterator[Request]:
        """Race the neighbours of the best set, until none is better."""
        setting = self.setting
        for number in range(_ROUNDS):
            ranking = self.ranking()
            if not ranking:
                return
            leader, spent = ranking[0], setting.ledger.spent
            near = setting.space.neighbours(leader)
            near.sort(key=lambda s: (-round(model.value(s), _DIGITS), s))
            limit = setting.ledger.left / 3
            yield from Race(setting, POLISH, f"round {number + 1}", _HEIGHT, limit).run([leader, *near])
            if setting.ledger.spent == spent or self.ranking()[0] == leader:
                return

    def ranking(self) -> list[LayerSet]:
        """By score on the highest rung answered."""
        return ranked_on_ladder(self.setting)

    def forecast(self) -> list[StageForecast]:
        """The cost by stage."""
        setting, space = self.setting, self.setting.space
        ledger = setting.ledger
        width = self.width or max(2, setting.config.population // 5)
        singles, count = len(setting.singles), len(space.free)
        steps = [min(space.size, width * (count - k)) for k in range(1, space.max_layers - len(space.root))]
        near = min(space.size, (space.max_layers + 1) * count)
        most = min(space.size, _ROUNDS * near)
        polish = race_forecast(ledger, POLISH, most, height=_HEIGHT)
        return [
            StageForecast(SINGLES, singles, singles * len(ledger.parts[FAST]), singles * len(ledger.parts[FAST])),
            race_forecast(ledger, STEPS, count + sum(steps), height=_HEIGHT),
            replace(polish, typical=race_forecast(ledger, POLISH, near, height=_HEIGHT).typical),
            race_forecast(ledger, VERIFY, min(space.size, singles + sum(steps) + most)),
        ]

    def details(self) -> dict[str, Any]:
        """The beam after each step, and the best sets."""
        return {
            STEPS: {"beams": [[list(layers.indices) for layers in beam] for beam in self.steps]},
            VERIFY: {"candidates": candidates(self.setting.ledger, self.ranking()[: self.setting.config.kept], FULL)},
        }


def greedy(setting: Setting) -> Beam:
    """Forward selection: a beam of one."""
    return Beam(setting, width=1)
