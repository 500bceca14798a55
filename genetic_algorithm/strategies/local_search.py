"""Stage 3: climb from the best sets, a cheap look at all neighbours before a full one at the promising."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from genetic_algorithm.config import SearchConfig
from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.ledger import Ledger, Request, distinct
from genetic_algorithm.questions import FAST, FULL

STAGE = "stage 3"


@dataclass(slots=True)
class LocalSearch:
    """Hill climbing by swap, addition and removal; `run` is its strategy.

    All climbs share what is known. A neighbour is screened on the fast questions, and scored on the full ones
    if it is promising: not worse than where the climb stands by more than `tolerance` paired standard errors
    on those same fast questions. A climb moves to its best neighbour by full score and ends where none is
    better and no promising one is left.
    """

    config: SearchConfig
    space: SearchSpace
    ledger: Ledger
    starts: Sequence[LayerSet]
    paths: list[list[LayerSet]] = field(default_factory=list)
    is_local_optimum: bool = False
    """Whether every climb ended for want of promising neighbours, not of rounds or verifications."""

    def run(self) -> Iterator[Request]:
        """Yield requests until every climb is at a local optimum or the rounds are over."""
        self.paths = [[start] for start in distinct(self.starts)[: self.config.climbs]]
        climbing, verified = list(self.paths), 0
        for number in range(1, self.config.rounds + 1):
            here = distinct([path[-1] for path in climbing])
            screened = [near for layers in here for near in self._to_screen(layers)]
            # A start may have been ranked without a fast look: the base, where fast answers are coarse ones.
            yield from self.ledger.wanted([*here, *screened], FAST, STAGE, f"round {number}, screening")
            promising = {layers: self._promising(layers) for layers in here}
            chosen = [near for sets in promising.values() for near in sets[: self.config.verified_per_round]]
            chosen = list(distinct(chosen))[: self.config.verifications - verified]
            verified += len(chosen)
            yield from self.ledger.wanted(chosen, FULL, STAGE, f"round {number}, verification")
            together: dict[LayerSet, list[LayerSet]] = {}  # climbs that have met go on as one
            for path in climbing:
                if self._step(path, promising[path[-1]]):
                    together.setdefault(path[-1], path)
            climbing = list(together.values())
            if not climbing:
                self.is_local_optimum = True
                return

    def _step(self, path: list[LayerSet], promising: Sequence[LayerSet]) -> bool:
        """Move uphill if a verified neighbour is better; return whether the climb goes on."""
        best = self.ledger.ranked([path[-1], *self.space.neighbours(path[-1])], FULL)
        if best and self._value(best[0]) > self._value(path[-1]):
            path.append(best[0])
            return True
        unverified = [near for near in promising if self.ledger.score(near, FULL) is None]
        return any(near not in self.ledger.failed for near in unverified)  # there is more to verify from here

    def _value(self, layers: LayerSet) -> float:
        score = self.ledger.score(layers, FULL)
        return float("inf") if score is None else self.ledger.utility(layers, score)  # nothing beats the unknown

    def _to_screen(self, layers: LayerSet) -> list[LayerSet]:
        """Neighbours without a fast score, those of the most telling kind first."""
        near = [s for s in self.space.neighbours(layers) if self.ledger.score(s, FAST) is None]
        return [s for s in near if s not in self.ledger.failed]

    def _promising(self, layers: LayerSet) -> list[LayerSet]:
        """Screened neighbours without a full score that may be better than `layers`, best first."""
        found = []
        for near in self.ledger.ranked(self.space.neighbours(layers), FAST):
            if self.ledger.score(near, FULL) is None and near not in self.ledger.failed:
                paired = self.ledger.compare(near, layers, FAST)
                if paired.difference >= -self.config.tolerance * paired.standard_error:
                    found.append(near)
        return found
