"""Strategy `ga`, the default: the three stages, assisted by a model of all sets.

Stage 1 is a genetic algorithm. Offspring of crossover, mutation and mined patterns are screened by the surrogate:
joint draws from its posterior over offspring and sets seen before each name their favourite (Thompson sampling,
Thompson 1933). A new favourite gets the fast questions, one seen before its next rung of the ladder, so sets earn
questions by promise. Stage 2 races what has a fair chance of being the best up to the full questions. Stage 3 looks
at the neighbours of the leaders and races those that may be better, until none is likely to be.

What is ranked in the end is the posterior by right and wrong alone; signals only help to propose. Its variances are
fitted to the sets around the leader (as in trust regions, Eriksson et al. 2019): towards the donor's own accuracy
effects become small, and variances that hold for all sets take noise in the leaders' scores for effects of their pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Request
from genetic_algorithm.observations import observe, to_value
from genetic_algorithm.questions import FAST, FULL
from genetic_algorithm.strategies.genetic import Genetic
from genetic_algorithm.strategies.operators import Operators
from genetic_algorithm.strategies.patterns import Pattern, mine
from genetic_algorithm.strategies.strategy import Setting, StageForecast, candidates
from genetic_algorithm.surrogate import Surrogate, Variances

STAGE_1, STAGE_2, STAGE_3 = "stage 1", "stage 2", "stage 3"
RANKED_BY = (
    "rank: by the estimate, what a model of all sets expects of a set from right and wrong answers alone; it weighs "
    "each set's own score with those of similar sets, so that a set of slightly lower accuracy may rank higher."
)
_OFFSPRING = 20  # offspring screened for each that is asked
_POOL = 400  # sets over which draws are made jointly: the cost is cubic
_DRAWS = 400  # draws from which a probability of being the best is counted
_PARENTS = 40
_CHAMPIONS_SHARE = 0.05  # of what is left of the budget, that one more rung of the best of each count may cost
_STEPS = 3  # rungs that a set can earn in stage 1
_DIGITS = 9  # scores are rounded before they are compared, so that no last bit of a sum decides
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ModelAssistedGA:
    """The default strategy."""

    setting: Setting
    stages: tuple[str, ...] = (STAGE_1, STAGE_2, STAGE_3)
    history: list[dict[str, Any]] = field(default_factory=list)
    patterns: list[Pattern] = field(default_factory=list)
    kept: list[LayerSet] = field(default_factory=list)
    """Best of stage 2."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Of stage 3: neighbours asked, and the probability that one not asked is better."""
    is_local_optimum: bool = False
    estimates: dict[str, float] = field(default_factory=dict)
    """Posterior mean of each set seen, by its spelling, as of the last ranking."""
    _surrogate: Surrogate | None = None
    _variances: Variances | None = None
    _fitted_on: int = 0

    def run(self) -> Iterator[Request]:
        """Yield the requests of the three stages."""
        yield from self._evolve()
        yield from self._champions()
        yield from self._verify(STAGE_2, "racing")
        self.kept = self.ranking()[: self.setting.config.kept]
        yield from self._refine()
        yield from self._confirm()

    def ranking(self) -> list[LayerSet]:
        """All sets seen, by posterior mean from right and wrong alone."""
        ledger, space = self.setting.ledger, self.setting.space
        seen = [s for s in ledger.known if space.contains(s) and ledger.level(s)]
        if not seen:
            return []
        leader = ledger.ranked_on_ladder(seen)[0]
        model = Surrogate(space.num_layers, observe(ledger, with_signals=False), around=leader)
        value = np.round(to_value(ledger, seen, model.mean(seen)), _DIGITS)
        costs = (ledger.layer_cost * len(layers) for layers in seen)
        self.estimates = {str(s): float(v) + cost for s, v, cost in zip(seen, value, costs, strict=True)}
        order = sorted(range(len(seen)), key=lambda i: (-value[i], len(seen[i]), seen[i]))
        return [seen[i] for i in order]

    def forecast(self) -> list[StageForecast]:
        """The cost by stage; a budget, where there is one, ends the search before."""
        config, ledger = self.setting.config, self.setting.ledger
        fast, full = len(ledger.parts[FAST]), len(ledger.parts[FULL])
        per_generation = max(1, config.population - config.elitism)
        singles = len(self.setting.singles)
        looks = min(self.setting.space.size, config.generations * per_generation)
        early = min(looks, (config.no_improve + 4) * per_generation)
        raced = min(self.setting.space.size, config.verified)
        near = min(self.setting.space.size, config.rounds * per_generation)
        return [
            StageForecast(STAGE_1, singles + looks, (singles + 2 * looks) * fast, (singles + early) * fast),
            StageForecast(STAGE_2, raced, raced * full, raced * full // 3),
            StageForecast(STAGE_3, near, near * fast + raced * full, per_generation * fast + raced * full // 6),
        ]

    def details(self) -> dict[str, Any]:
        """Generations, sets kept by stage 2, rounds of stage 3, and the surrogate's variances."""
        ledger = self.setting.ledger
        return {
            STAGE_1: {"generations": self.history},
            STAGE_2: {"candidates": candidates(ledger, self.kept, FULL)},
            STAGE_3: {"local_optimum": self.is_local_optimum, "rounds": self.rounds},
            "patterns": [pattern.as_json() for pattern in self.patterns],
            "ranked_by": RANKED_BY,
            "estimates": self.estimates,
        }

    # Stage 1.

    def _evolve(self) -> Iterator[Request]:
        config, ledger = self.setting.config, self.setting.ledger
        yield from ledger.wanted(self._first(), FAST, STAGE_1, "first sets")
        enough = 0.0 if ledger.budget is None else ledger.left * config.last_share
        leader, stale = None, 0
        for number in range(1, config.generations + 1):
            if not self._learn() or ledger.left <= enough:
                return
            chosen = self._generation(number, ledger.left - enough)
            before = ledger.spent
            for rung, questions in enumerate(ledger.questions.rungs[:_STEPS]):
                of_rung = [layers for layers, level in chosen if level == rung]
                yield from ledger.wanted(of_rung, questions, STAGE_1, f"generation {number}")
            if ledger.spent == before:
                return
            best = self.ranking()
            stale = stale + 1 if best and best[0] == leader else 0
            leader = best[0] if best else None
            self._note(number, [layers for layers, level in chosen if not level], leader)
            if stale >= config.no_improve:
                return

    def _first(self) -> list[LayerSet]:
        """Elites and single layers; where the latter are known from elsewhere, sets made of the best of them."""
        of = self.setting
        if of.single_scores is None:
            return [*of.elite, *of.singles]
        genetic = Genetic(of)
        return [LayerSet(()), of.space.root, *genetic.first_population()]

    def _generation(self, number: int, affordable: float) -> list[tuple[LayerSet, int]]:
        """Favourites of as many posterior draws as a generation has sets, with the rungs they have answered."""
        config, ledger = self.setting.config, self.setting.ledger
        wanted = max(1, config.population - config.elitism)
        seen = [s for s in self._ranked() if self.setting.space.contains(s)]
        self.patterns = mine(self._accuracies(seen))
        pool = self._pool(seen, config.guidance * number / max(1, config.generations), wanted)
        top = min(_STEPS, len(ledger.questions.rungs))
        pool = [s for s in pool if ledger.level(s) < top]
        chosen: dict[LayerSet, int] = {}
        if not pool:
            return []
        draws = self._draws(pool, 6 * wanted)
        for draw in draws.T:
            for i in np.argsort(-draw, kind="stable")[:3]:
                if pool[i] not in chosen:
                    chosen[pool[i]] = ledger.level(pool[i])
                    affordable -= len(ledger.questions.blocks[chosen[pool[i]]])
                    break
            if len(chosen) >= wanted or affordable <= 0:
                break
        return list(chosen.items())

    def _pool(self, seen: Sequence[LayerSet], guidance: float, wanted: int) -> list[LayerSet]:
        """Sets worth a look: the best seen, their neighbours, and offspring, the most promising of these."""
        setting, ledger = self.setting, self.setting.ledger
        pool = dict.fromkeys(seen[: 3 * _PARENTS // 2])
        for leader in seen[:3]:
            pool.update(dict.fromkeys(setting.space.neighbours(leader)))
        operators = Operators(setting.config, setting.space, setting.rng)
        for _ in range(_OFFSPRING * wanted if seen else 0):
            pool[operators.child(seen[:_PARENTS], self.patterns, guidance)] = None
        for _ in range(wanted):
            pool[setting.space.random(setting.rng)] = None
        # Once more around the most promising: offspring of offspring, screened before anything is asked.
        for layers in self._most_promising(list(pool), 4):
            pool.update(dict.fromkeys(setting.space.neighbours(layers)))
        open_to = [s for s in pool if setting.space.contains(s) and s not in ledger.failed]
        return self._most_promising(open_to, _POOL)

    def _most_promising(self, sets: list[LayerSet], count: int) -> list[LayerSet]:
        """Those with the highest value two standard deviations above the mean."""
        if not sets:
            return []
        assert self._surrogate is not None
        mean, deviation = self._surrogate.mean_and_deviation(sets)
        value = np.round(to_value(self.setting.ledger, sets, mean + 2 * deviation), _DIGITS)
        return [sets[i] for i in np.argsort(-value, kind="stable")[:count]]

    # Stages 2 and 3.

    def _champions(self) -> Iterator[Request]:
        """Look at the most promising set of every layer count: the report compares counts."""
        ledger, space = self.setting.ledger, self.setting.space
        if not self._learn(with_signals=False):
            return
        seen = [s for s in self._ranked() if space.contains(s)]
        best = {size: next((s for s in seen if len(s) == size), None) for size in space.sizes}
        found = (known or self._imagined(size, seen) for size, known in best.items())
        chosen = [layers for layers in found if layers is not None and layers not in ledger.failed]
        for number, rung in enumerate(ledger.questions.rungs[:_STEPS]):
            if number and len(chosen) * len(ledger.questions.blocks[number]) > _CHAMPIONS_SHARE * ledger.left:
                return
            yield from ledger.wanted(chosen, rung, STAGE_2, "best of each layer count")

    def _imagined(self, size: int, seen: Sequence[LayerSet]) -> LayerSet | None:
        """The set of a size that the surrogate thinks best, by climbing from the best set seen."""
        space = self.setting.space
        if not seen:
            return None
        here = seen[0]
        while len(here) != size:  # there may be no way through sets of the space; then there is no climb
            near = [s for s in space.neighbours(here) if abs(len(s) - size) < abs(len(here) - size)]
            if not near:
                return None
            here = self._best(near)
        while (best := self._best([here, *(s for s in space.neighbours(here) if len(s) == size)])) != here:
            here = best
        return here

    def _best(self, sets: list[LayerSet]) -> LayerSet:
        """The first of those with the highest posterior mean."""
        assert self._surrogate is not None
        value = np.round(to_value(self.setting.ledger, sets, self._surrogate.mean(sets)), _DIGITS)
        return sets[int(np.argmax(value))]

    def _confirm(self) -> Iterator[Request]:
        """Ask the leader what it has not been asked, as far as the budget pays: nobody deploys a guess."""
        ledger, rungs = self.setting.ledger, self.setting.ledger.questions.rungs
        while best := self.ranking()[:1]:
            before = ledger.spent
            if (level := ledger.level(best[0])) < len(rungs):
                yield from ledger.wanted(best, rungs[level], STAGE_3, "confirming the leader")
            if ledger.spent == before:
                return

    def _verify(self, stage: str, label: str) -> Iterator[Request]:
        """Ask the plausible sets rung by rung, the lowest first, until all of them have all full questions."""
        config, ledger = self.setting.config, self.setting.ledger
        rungs = ledger.questions.rungs
        while self._learn(with_signals=False):
            seen = [s for s in self._ranked() if self.setting.space.contains(s)][:_POOL]
            if not seen:
                return
            chance = self._chances(seen)
            open_ = [(s, p) for s, p in zip(seen, chance, strict=True) if ledger.level(s) < len(rungs)]
            open_ = [(s, p) for s, p in open_ if p >= config.plausible]
            open_.sort(key=lambda item: (ledger.level(item[0]), -item[1]))
            before = ledger.spent
            for layers, _ in open_[: config.verified_per_round]:
                rung = rungs[ledger.level(layers)]
                yield from ledger.wanted([layers], rung, stage, f"{label}, {rung}")
            if ledger.spent == before:
                return

    def _refine(self) -> Iterator[Request]:
        """Look at neighbours of the leaders while one of them may well be better."""
        config, ledger, space = self.setting.config, self.setting.ledger, self.setting.space
        for number in range(1, config.rounds + 1):
            if not self._learn():
                return
            seen = [s for s in self._ranked() if space.contains(s)]
            near = dict.fromkeys(n for leader in seen[: config.climbs] for n in space.neighbours(leader))
            new = [n for n in near if ledger.is_new(n) and n not in ledger.failed]
            new = self._most_promising(new, _POOL // 2)
            if not seen:
                return
            chance = self._chances([*seen[: _POOL // 2], *new])[min(len(seen), _POOL // 2) :]
            risk = float(chance.sum())
            self.rounds.append({"round": number, "neighbours": len(new), "chance_of_a_better_one": round(risk, 4)})
            if risk < config.doubt:
                self.is_local_optimum = True
                _tell_end(number, _why_none(len(new), risk))
                return
            best = [new[i] for i in np.argsort(-chance, kind="stable") if chance[i] > 0]
            before = ledger.spent
            chosen = best[: max(1, config.population - config.elitism)]
            yield from ledger.wanted(chosen, FAST, STAGE_3, f"round {number}, neighbours")
            yield from self._verify(STAGE_3, f"round {number}")
            if ledger.spent == before:
                _tell_end(number, "the budget, or the time allowed, is used up")
                return

    # The model.

    def _learn(self, *, with_signals: bool = True) -> bool:
        """Fit the surrogate to what is known; False while nothing is."""
        ledger = self.setting.ledger
        if not any(ledger.level(layers) for layers in ledger.known):
            return False
        data = observe(ledger, with_signals=with_signals)
        refit = len(data.value) >= 1.25 * self._fitted_on
        depth = self.setting.space.num_layers
        self._surrogate = Surrogate(depth, data, self._variances, refit=refit)
        if refit:
            self._variances, self._fitted_on = self._surrogate.variances, len(data.value)
        return True

    def _ranked(self) -> list[LayerSet]:
        """Sets seen, by posterior mean."""
        assert self._surrogate is not None
        ledger = self.setting.ledger
        seen = [s for s in ledger.known if ledger.level(s)]
        value = np.round(to_value(ledger, seen, self._surrogate.mean(seen)), _DIGITS)
        return [seen[i] for i in np.argsort(-value, kind="stable")]

    def _draws(self, sets: list[LayerSet], count: int) -> NDArray[np.float64]:
        """Joint posterior draws of utilities, rounded, float64 [sets, count]."""
        assert self._surrogate is not None
        draws = self._surrogate.draw(sets, count, self.setting.rng)
        return np.round(to_value(self.setting.ledger, sets, draws), _DIGITS)

    def _chances(self, sets: list[LayerSet]) -> NDArray[np.float64]:
        """Probability of each set to be the best of them, float64 [sets]."""
        best = self._draws(sets, _DRAWS).argmax(0)
        return np.bincount(best, minlength=len(sets)) / _DRAWS

    def _accuracies(self, seen: Sequence[LayerSet]) -> dict[LayerSet, float]:
        scores = ((s, self.setting.ledger.score(s, FAST)) for s in seen)
        return {layers: score.value for layers, score in scores if score is not None}

    def _note(self, number: int, new: Sequence[LayerSet], leader: LayerSet | None) -> None:
        values = self._accuracies(new)
        score = None if leader is None else self.setting.ledger.best_score(leader)
        self.history.append(
            {
                "generation": number,
                "new_sets": len(new),
                "best": None if leader is None else list(leader.indices),
                "best_accuracy": None if score is None else round(score.accuracy, 6),
                "mean_accuracy": round(float(np.mean(list(values.values()))), 6) if values else None,
            }
        )


def _tell_end(number: int, why: str) -> None:
    """Say why a round of stage 3 asks nothing, which no other line would tell."""
    over = "nothing to ask" if number == 1 else f"nothing more to ask after round {number - 1}"
    _log.info("%s, local search: %s: %s", STAGE_3, over, why)


def _why_none(neighbours: int, chance: float) -> str:
    if not neighbours:
        return "every neighbour of the leaders was asked before"
    spelled = "below 1%" if chance < 0.01 else f"{chance:.0%}"  # it is counted over draws
    return f"the chance that one of the neighbours not asked yet ({neighbours}) is better is {spelled}"
