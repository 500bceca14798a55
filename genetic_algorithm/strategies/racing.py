"""Racing: sets earn questions rung by rung, in comparisons on the same questions.

Successive halving (Jamieson and Talwalkar 2016) that drops no more than it must: a set goes out where it is worse than
the leader with high confidence (Hoeffding races, Maron and Moore 1994, here with paired comparisons), and beyond that
only where the budget does not pay for its next rung.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import hypot, inf
from statistics import NormalDist

from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Ledger, Request
from genetic_algorithm.strategies.strategy import Setting, StageForecast

VERIFY = "verification"
KEPT = 0.5  # share of the sets that is expected to go on, where a budget is planned
MANY_KEPT = 0.25  # the same where most sets are bad and leave early


@dataclass(slots=True)
class Race:
    """Race sets up the ladder; `run` yields the requests.

    Args:
        setting: where answers are found.
        stage: of the requests.
        label: of the requests.
        height: how many rungs the race has; all when None.
        limit: question-evaluations it may ask for.
        doubt: probability that the best of the sets is dropped as worse, at most.
        keep: share of the sets that is expected to go on from each rung: plans how many the budget pays for.
    """

    setting: Setting
    stage: str
    label: str
    height: int | None = None
    limit: float = inf
    doubt: float = 0.05
    keep: float = KEPT
    worse: dict[LayerSet, str] = field(default_factory=dict)
    """Sets dropped with confidence, and the rung after which."""
    cut: dict[LayerSet, str] = field(default_factory=dict)
    """Sets dropped by score, for want of budget, and the rung after which."""
    unseen: list[LayerSet] = field(default_factory=list)
    """Sets not asked at all, for want of budget."""
    confidence: float = 0.0
    """Standard errors by which a set must be worse to be dropped for it."""

    def run(self, sets: Sequence[LayerSet]) -> Iterator[Request]:
        """Yield requests until the sets left have answered the last rung; those first in order are asked first."""
        ledger, spent = self.setting.ledger, self.setting.ledger.spent
        racing = list(dict.fromkeys(sets))
        rungs = ledger.questions.rungs[: self.height]
        self.confidence = corrected(self.doubt, len(racing) * len(rungs))
        for number, rung in enumerate(rungs):
            left = min(ledger.left, self.limit - (ledger.spent - spent))
            kept = self._affordable(racing, number, len(rungs), left)
            yield from ledger.wanted(kept, rung, self.stage, f"{self.label}, rung {number + 1} of {len(rungs)}")
            answered = ledger.ranked(racing, rung)
            self._note_left_out(racing, answered, rungs[number - 1] if number else None)
            racing = answered
            if racing and number + 1 < len(rungs):
                self.worse |= {s: rung for s in racing if is_worse(ledger, s, racing[0], rung, self.confidence)}
                racing = [s for s in racing if s not in self.worse]

    def _affordable(self, racing: Sequence[LayerSet], number: int, height: int, left: float) -> list[LayerSet]:
        """Those that the budget pays for, the first of them to the last rung, the others as far as halving goes."""
        if left == inf:
            return list(racing)
        blocks = self.setting.ledger.questions.blocks
        chosen: list[LayerSet] = []
        for top in (height, number + 1):  # where the budget is too small to climb, a look is better than nothing
            for layers in racing:
                level = max(number, self.setting.ledger.level(layers))
                share = self.keep if chosen else 1.0
                cost = sum(len(blocks[i]) * share ** (i - number) for i in range(level, top))
                if cost <= left:
                    left -= cost
                    chosen.append(layers)
            if chosen:
                break
        return chosen

    def _note_left_out(self, racing: Sequence[LayerSet], answered: Sequence[LayerSet], below: str | None) -> None:
        going_on = {*answered, *self.setting.ledger.failed}
        out = [s for s in racing if s not in going_on]
        if below is None:
            self.unseen += out
        else:
            self.cut |= dict.fromkeys(out, below)


def corrected(doubt: float, comparisons: int) -> float:
    """Standard errors that so many one-sided comparisons all stay within, but for a chance of `doubt` (Bonferroni)."""
    return NormalDist().inv_cdf(1 - min(0.5, doubt / max(1, comparisons)))


def advantage(ledger: Ledger, first: LayerSet, second: LayerSet, part: str) -> tuple[float, float]:
    """How much better the first set is on a part that both have answered, cost of layers taken off; standard error.

    The error is that of one question more than was seen to differ: no difference on few questions is not certainty.
    """
    paired = ledger.compare(first, second, part)
    cost = ledger.layer_cost * (len(first) - len(second))
    return paired.difference - cost, hypot(paired.standard_error, 1 / len(ledger.parts[part]))


def is_worse(ledger: Ledger, layers: LayerSet, leader: LayerSet, part: str, confidence: float) -> bool:
    """Whether a set is worse than the leader by more than `confidence` standard errors."""
    if layers == leader:
        return False
    difference, error = advantage(ledger, layers, leader, part)
    return difference < -confidence * error


def capacity(ledger: Ledger, keep: float = KEPT) -> float:
    """New sets that the budget lets a race take in; infinite without one."""
    blocks = [len(block) for block in ledger.questions.blocks]
    each = sum(block * keep**i for i, block in enumerate(blocks))
    return ledger.left if ledger.left == inf else max(0, int((ledger.left - sum(blocks)) // each) + 1)


def verify(setting: Setting) -> Iterator[Request]:
    """Race all sets that are known to the top of the ladder, with what is left of the budget."""
    ledger = setting.ledger
    known = [s for s in ledger.ranked(ledger.known, ledger.questions.rungs[0]) if setting.space.contains(s)]
    yield from Race(setting, VERIFY, "racing").run(known)


def race_forecast(
    ledger: Ledger, stage: str, sets: int, *, height: int | None = None, keep: float = KEPT
) -> StageForecast:
    """The cost of a race of so many new sets: all questions for each at most; mostly a share goes on from each rung."""
    blocks = [len(block) for block in ledger.questions.blocks[:height]]
    mostly = sum(max(min(sets, 1), int(sets * keep**i)) * block for i, block in enumerate(blocks))
    return StageForecast(stage, sets, sets * sum(blocks), mostly)
