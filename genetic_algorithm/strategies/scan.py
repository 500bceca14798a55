"""Strategy `scan`: every set of the space, by successive halving, so that the optimum is known up to a stated error.

All sets of a rung are asked in one request, so that an evaluator can share their lower layers. A set goes out where it
is worse than the leader with high confidence, corrected for how many sets and rungs there are, or, where the budget
does not pay for it, by its score; the result states by how much one of those may be better than the leader after all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import comb
from typing import Any

from genetic_algorithm.errors import SearchError
from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.ledger import Request
from genetic_algorithm.questions import FULL
from genetic_algorithm.strategies.additive import additive_model, measure_singles
from genetic_algorithm.strategies.racing import MANY_KEPT, Race, advantage, capacity, race_forecast
from genetic_algorithm.strategies.strategy import Setting, StageForecast, candidates, ranked_on_ladder

SCAN = "scan"
_CONFIDENCE = 0.95
_BYTES_PER_ANSWER = 5  # right or wrong, margin and divergence
_MOST_BYTES = 4e9
_DIGITS = 9


def layer_calls(space: SearchSpace) -> int:
    """Calls of a layer that all sets of a space take together when sets share their lower layers.

    A layer is called once for each distinct choice, for itself and all layers below it, of donor or base.
    """
    fixed, free = len(space.must_include), set(space.free)
    low, high = space.min_layers - fixed, space.max_layers - fixed
    calls, below = 0, 0
    for layer in range(space.num_layers):
        below += layer in free
        # Chosen of the free layers up to this one: as many as can still be completed to a set.
        least = max(0, low - (len(free) - below))
        calls += sum(comb(below, chosen) for chosen in range(least, min(below, high) + 1))
    return calls


def shared_passes(space: SearchSpace, share: float = 1.0) -> float:
    """Passes of one model over all questions that all sets of a space cost with shared lower layers.

    For layers 8 to 23 of 32 and 1 to 4 of them, these are 923 passes for 2,516 sets.

    Args:
        space: The sets.
        share: Of the questions that each set answers.
    """
    return share * layer_calls(space) / space.num_layers


@dataclass(slots=True)
class Scan:
    """Every set of the space.

    Raises:
        SearchError: if the answers of so many sets do not fit in memory.
    """

    setting: Setting
    stages: tuple[str, ...] = (SCAN,)
    race: Race = field(init=False)

    def __post_init__(self) -> None:
        setting = self.setting
        size, questions = setting.space.size, setting.ledger.questions.num_answers
        if size * questions * _BYTES_PER_ANSWER > _MOST_BYTES:
            most = int(_MOST_BYTES / _BYTES_PER_ANSWER / questions)
            raise SearchError(
                f"--strategy scan: the space has {size:,} sets, and memory holds the answers of {most:,} at most; "
                "narrow it with --window FIRST:LAST or --max-layers, or take another strategy"
            )
        self.race = Race(setting, SCAN, "all sets", doubt=1 - _CONFIDENCE, keep=MANY_KEPT)

    def run(self) -> Iterator[Request]:
        """Yield the requests."""
        sets = list(self.setting.space)
        if capacity(self.setting.ledger, MANY_KEPT) < len(sets):  # then those come first whose layers are good alone
            yield from measure_singles(self.setting, SCAN)
            model = additive_model(self.setting)
            sets.sort(key=lambda s: (-round(model.value(s), _DIGITS), s))
        yield from self.race.run([*self.setting.elite, *sets])

    def ranking(self) -> list[LayerSet]:
        """By score on the highest rung answered."""
        return ranked_on_ladder(self.setting)

    def forecast(self) -> list[StageForecast]:
        """The cost without a budget: at most all questions for every set, with the passes that sharing leaves of it."""
        ledger, space = self.setting.ledger, self.setting.space
        passes = shared_passes(space, len(ledger.parts[FULL]) / ledger.num_questions)
        return [replace(race_forecast(ledger, SCAN, space.size, keep=MANY_KEPT), shared_passes=round(passes, 1))]

    def details(self) -> dict[str, Any]:
        """What was dropped why, and the error: how much better than the leader a set may still be."""
        dropped, rivals = self.largest_advantages()
        return {
            SCAN: {
                "sets": self.setting.space.size,
                "worse_with_confidence": len(self.race.worse),
                "dropped_by_score": len(self.race.cut),
                "not_looked_at": len(self.race.unseen),
                "confidence": _CONFIDENCE,
                "largest_advantage_of_a_dropped_set": dropped,
                "largest_advantage_of_a_rival": rivals,
                "statement": self._statement(dropped, rivals),
                "candidates": candidates(self.setting.ledger, self.ranking()[: self.setting.config.kept], FULL),
            }
        }

    def largest_advantages(self) -> tuple[float | None, float | None]:
        """How much better than the leader a dropped set, and one that came as far as it, may be: upper bounds.

        Both hold at 95 % for all sets together and are at least 0; None where there is no such set.
        """
        ledger, ranking = self.setting.ledger, self.ranking()
        if not ranking:
            return None, None
        leader = ranking[0]
        last = ledger.questions.rungs[ledger.level(leader) - 1]
        rivals = {s: last for s in ledger.ranked(ledger.known, last) if s != leader and self.setting.space.contains(s)}
        dropped = {s: rung for s, rung in {**self.race.worse, **self.race.cut}.items() if s not in rivals}

        def largest(sets: dict[LayerSet, str]) -> float | None:
            found = (advantage(ledger, layers, leader, rung) for layers, rung in sets.items())
            bounds = [difference + self.race.confidence * error for difference, error in found]
            return max(0.0, round(max(bounds), 6)) if bounds else None

        return largest(dropped), largest(rivals)

    def _statement(self, dropped: float | None, rivals: float | None) -> str:
        """The error in words."""
        race, ranking, questions = self.race, self.ranking(), self.setting.ledger.questions
        size, unseen = self.setting.space.size, len(race.unseen)
        told = [f"{size - unseen:,} of the {size:,} sets were asked."]
        if unseen:
            told.append(f"The budget did not pay for {unseen:,}, of which nothing is known.")
        if dropped is not None:
            told.append(
                f"{len(race.worse):,} were dropped as worse than the leader, {len(race.cut):,} by score for want of "
                f"budget: at 95 % none of them is better than {ranking[0]} by more than {dropped:.4f}."
            )
        if rivals is not None:
            told.append(f"Of those asked as many questions as it, at 95 % none is better by more than {rivals:.4f}.")
        if questions.num_answers > questions.num_questions:
            told.append("The first look was by coarse answers, whose own error is not in this.")
        return " ".join(told)
