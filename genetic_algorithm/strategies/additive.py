"""Strategies `additive` and `pairwise`: measure single layers, or singles and pairs, and ask the best sums.

Effects add up on a logit scale. The best sets by a fitted model are found exactly (`best_subsets`), looked at, and
raced; `pairwise` takes what they show into its model and solves it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from math import inf, log
from typing import Any

import numpy as np

from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Request
from genetic_algorithm.observations import observe, to_value
from genetic_algorithm.questions import FAST, FULL
from genetic_algorithm.strategies.best_subsets import NODE_LIMIT, Solution, best_subsets
from genetic_algorithm.strategies.quadratic import Quadratic, fit
from genetic_algorithm.strategies.racing import VERIFY, capacity, race_forecast, verify
from genetic_algorithm.strategies.strategy import Setting, StageForecast, candidates, ranked_on_ladder

SINGLES, PAIRS, BEST = "single layers", "pairs", "best by the model"
_PAIR_SHARE = 0.25  # of what singles leave of the budget
_BEST_SHARE = 0.3  # of what pairs leave of it
_MOST_PAIRS = 1500  # a fit is cubic in what was measured
_MOST_BEST = 500  # sets asked of a model at a time
_DIGITS = 9


def measure_singles(setting: Setting, stage: str) -> Iterator[Request]:
    """Ask elites, the base, and every layer alone unless single-layer scores are given."""
    known = setting.single_scores is not None or setting.space.max_layers == len(setting.space.root)
    singles = [LayerSet(()), setting.space.root] if known else setting.singles
    yield from setting.ledger.wanted([*setting.elite, *singles], FAST, stage, "single layers")


def additive_model(setting: Setting) -> Quadratic:
    """What each free layer adds to the root, from single-layer scores where they are given, else as measured.

    A layer that failed counts as the worst.
    """
    space, ledger = setting.space, setting.ledger
    scale = _logit if ledger.goal == "accuracy" else float

    def measured(layers: LayerSet) -> float | None:
        score = ledger.score(layers, FAST)
        return None if score is None else score.value

    given = setting.single_scores
    values = {i: measured(space.of([i])) if given is None else given[i] for i in space.free}
    worst = min((value for value in values.values() if value is not None), default=0.0)
    root = measured(space.root)
    constant = scale(worst if root is None else root)
    single = np.zeros(space.num_layers)
    for i, value in values.items():
        single[i] = scale(worst if value is None else value) - constant
    return Quadratic(constant, single, np.zeros((space.num_layers, space.num_layers)))


def _logit(accuracy: float) -> float:
    rate = min(max(accuracy, 0.02), 0.98)
    return log(rate / (1 - rate))


@dataclass(slots=True)
class Solver:
    """The best sets of a space by a model, with what the solutions say of themselves."""

    setting: Setting
    solutions: list[Solution] = field(default_factory=list)

    def best(self, model: Quadratic, count: int) -> list[LayerSet]:
        """The `count` sets of the space that are best by the model, cost of layers taken off, best first."""
        space = self.setting.space
        self.solutions = [best_subsets(model, space, size, count) for size in space.sizes]
        found = [item for solution in self.solutions for item in solution.sets]
        sets = [layers for _, layers in found]
        value = np.round(to_value(self.setting.ledger, sets, np.array([value for value, _ in found])), _DIGITS)
        order = sorted(range(len(sets)), key=lambda i: (-value[i], len(sets[i]), sets[i]))
        return [sets[i] for i in order[:count]]

    def as_json(self) -> dict[str, Any]:
        """Whether the last optimum is known to be one."""
        return {
            "exact": all(solution.is_exact for solution in self.solutions),
            "nodes": sum(solution.nodes for solution in self.solutions),
            "node_limit_per_count": NODE_LIMIT,
        }


@dataclass(slots=True)
class Additive:
    """Top singles: the sets of the largest sum of single effects, raced."""

    setting: Setting
    stages: tuple[str, ...] = (SINGLES, BEST, VERIFY)
    solver: Solver = field(init=False)

    def __post_init__(self) -> None:
        self.solver = Solver(self.setting)

    def run(self) -> Iterator[Request]:
        """Yield the requests."""
        ledger = self.setting.ledger
        yield from measure_singles(self.setting, SINGLES)
        affordable = capacity(ledger)
        count = self.setting.config.verified if affordable == inf else max(1, min(_MOST_BEST, int(affordable)))
        best = self.solver.best(additive_model(self.setting), count)
        yield from ledger.wanted(best, FAST, BEST, "largest sums")
        yield from verify(self.setting)

    def ranking(self) -> list[LayerSet]:
        """By score on the highest rung answered."""
        return ranked_on_ladder(self.setting)

    def forecast(self) -> list[StageForecast]:
        """The cost by stage."""
        ledger, best = self.setting.ledger, min(self.setting.space.size, self.setting.config.verified)
        fast, singles = len(ledger.parts[FAST]), len(self.setting.singles)
        return [
            StageForecast(SINGLES, singles, singles * fast, singles * fast),
            StageForecast(BEST, best, best * fast, best * fast),
            race_forecast(ledger, VERIFY, singles + best),
        ]

    def details(self) -> dict[str, Any]:
        """Effects of single layers, and the best sets."""
        single = additive_model(self.setting).single
        return {
            SINGLES: {"effects": {str(i): round(float(single[i]), 4) for i in self.setting.space.free}},
            BEST: self.solver.as_json(),
            VERIFY: {"candidates": candidates(self.setting.ledger, self.ranking()[: self.setting.config.kept], FULL)},
        }


@dataclass(slots=True)
class Pairwise:
    """Singles and pairs: a ridge model of both, solved exactly, learning from the sets that it proposes."""

    setting: Setting
    stages: tuple[str, ...] = (SINGLES, PAIRS, BEST, VERIFY)
    solver: Solver = field(init=False)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.solver = Solver(self.setting)

    def run(self) -> Iterator[Request]:
        """Yield the requests."""
        ledger = self.setting.ledger
        yield from measure_singles(self.setting, SINGLES)
        fast, pairs = len(ledger.parts[FAST]), self._pairs()
        affordable = len(pairs) if ledger.left == inf else int(_PAIR_SHARE * ledger.left / fast)
        yield from ledger.wanted(pairs[:affordable], FAST, PAIRS, "pairs of the best single layers first")
        yield from self._improve()
        yield from verify(self.setting)

    def _pairs(self) -> list[LayerSet]:
        """Two free layers beside the root, the largest sum of single effects first."""
        space = self.setting.space
        if space.max_layers < len(space.root) + 2:
            return []
        model = additive_model(self.setting)
        pairs = [space.of(pair) for pair in combinations(space.free, 2)]
        return sorted(pairs, key=lambda pair: (-round(model.value(pair), _DIGITS), pair))[:_MOST_PAIRS]

    def _improve(self) -> Iterator[Request]:
        """Ask the best by the model, in rounds, until these are known or their share of the budget is spent."""
        config, ledger = self.setting.config, self.setting.ledger
        fast = len(ledger.parts[FAST])
        looks = inf if ledger.left == inf else max(1, int(_BEST_SHARE * ledger.left / fast))
        for number in range(1, config.rounds + 1):
            model = self._fitted()
            if model is None or looks < 1:
                return
            each = (
                config.population
                if looks == inf
                else max(1, min(_MOST_BEST // 4, int(looks / (config.rounds - number + 1))))
            )
            best = self.solver.best(model, 4 * each)
            new = [s for s in best if ledger.score(s, FAST) is None and s not in ledger.failed][:each]
            self.rounds.append({"new_sets": len(new), "best": list(best[0].indices), **self.solver.as_json()})
            before = ledger.spent
            yield from ledger.wanted(new, FAST, BEST, f"round {number}")
            if ledger.spent == before:
                return
            looks -= len(new)

    def _fitted(self) -> Quadratic | None:
        ledger = self.setting.ledger
        if not any(ledger.level(layers) for layers in ledger.known):
            return None
        return fit(observe(ledger, with_signals=False), self.setting.space.num_layers)

    def ranking(self) -> list[LayerSet]:
        """By score on the highest rung answered."""
        return ranked_on_ladder(self.setting)

    def forecast(self) -> list[StageForecast]:
        """The cost by stage."""
        config, ledger, space = self.setting.config, self.setting.ledger, self.setting.space
        fast, singles = len(ledger.parts[FAST]), len(self.setting.singles)
        count = len(space.free)
        pairs = min(_MOST_PAIRS, count * (count - 1) // 2) if space.max_layers >= len(space.root) + 2 else 0
        best = min(space.size, config.rounds * config.population)
        return [
            StageForecast(SINGLES, singles, singles * fast, singles * fast),
            StageForecast(PAIRS, pairs, pairs * fast, pairs * fast),
            StageForecast(BEST, best, best * fast, best * fast // 2),
            race_forecast(ledger, VERIFY, min(space.size, singles + pairs + best)),
        ]

    def details(self) -> dict[str, Any]:
        """Rounds, and the best sets."""
        return {
            BEST: {"rounds": self.rounds},
            VERIFY: {"candidates": candidates(self.setting.ledger, self.ranking()[: self.setting.config.kept], FULL)},
        }
