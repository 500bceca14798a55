"""What the answers establish: paired comparisons of what a search found, each on the fairest questions there are.

Two sets are compared on the hold-out where both have answered it. The search did not choose by it, so that a p-value
means what it says. Elsewhere they are compared on all questions that both have answered, and it is said that these
chose as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.intervals import holm
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Ledger
from genetic_algorithm.paired_test import Comparison, compare, compare_means
from genetic_algorithm.questions import ALL, HOLDOUT
from genetic_algorithm.search import Outcome

BASE = LayerSet(())
RUNNER_UP, OF_BASE = "runner-up", "base"
LEVEL = 0.05
"""Below this a corrected p-value establishes something."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A set beside another one, on `questions` questions.

    `roles` say what the other one is: the runner-up, the base, the best of a smaller count. `corrected` is the
    p-value after Holm's correction for all findings made together.
    """

    layers: LayerSet
    against: LayerSet
    roles: tuple[str, ...]
    comparison: Comparison
    questions: int
    also_chose: bool
    corrected: float = 1.0

    @property
    def is_better(self) -> bool:
        """Whether it is established that the set is better than the other one."""
        return self.corrected < LEVEL and self.comparison.difference > 0

    @property
    def is_worse(self) -> bool:
        """Whether it is established that it is worse."""
        return self.corrected < LEVEL and self.comparison.difference < 0

    def as_json(self) -> dict[str, Any]:
        """For the result."""
        low, high = self.comparison.interval
        return {
            "layers": list(self.layers.indices),
            "against": list(self.against.indices),
            "roles": list(self.roles),
            "difference": round(self.comparison.difference, 6),
            "standard_error": round(self.comparison.standard_error, 6),
            "interval": [round(low, 6), round(high, 6)],
            "p_value": float(f"{self.comparison.p_value:.4g}"),
            "p_value_corrected": float(f"{self.corrected:.4g}"),
            "established": self.is_better,
            "questions": self.questions,
            "questions_also_chose": self.also_chose,
        }


def fair_questions(ledger: Ledger, *sets: LayerSet) -> tuple[NDArray[np.int64], bool]:
    """Questions that all of `sets` have answered, int64 [n], and whether the search chose by them, too."""
    if all(ledger.score(layers, HOLDOUT) is not None for layers in sets):
        return ledger.parts[HOLDOUT], False
    common = ledger.parts[ALL]
    for layers in sets:
        common = np.setdiff1d(common, ledger.missing(layers, ALL), assume_unique=True)
    return common, True


def find(ledger: Ledger, layers: LayerSet, against: LayerSet, *roles: str) -> Finding | None:
    """Compare two sets; None where no question was asked of both."""
    questions, also_chose = fair_questions(ledger, layers, against)
    first, second = ledger.values(layers, questions), ledger.values(against, questions)
    if not len(questions) or first is None or second is None:
        return None
    comparison: Comparison
    if ledger.goal == "accuracy" and not ledger.questions.is_weighted:
        comparison = compare(first == 1, second == 1)
    else:
        comparison = compare_means(first - second, ledger.questions.weighting(questions))
    return Finding(layers, against, roles, comparison, len(questions), also_chose)


def of_leader(outcome: Outcome) -> list[Finding]:
    """The leader beside the runner-up, the best of each smaller count and the base."""
    leader, rivals = outcome.final[0], dict[LayerSet, list[str]]()
    if len(outcome.final) > 1:
        rivals[outcome.final[1]] = [RUNNER_UP]
    for size, layers in sorted(outcome.best_per_size.items(), reverse=True):
        if 0 < size < len(leader):
            rivals.setdefault(layers, []).append(of_count(size))
    if leader != BASE:
        rivals.setdefault(BASE, []).append(OF_BASE)
    found = (find(outcome.ledger, leader, rival, *roles) for rival, roles in rivals.items())
    return _corrected(finding for finding in found if finding is not None)


def of_each_more_layer(outcome: Outcome) -> dict[int, Finding]:
    """By layer count: the best set of it beside the best of the next smaller count, the base below them all."""
    below, found = BASE, dict[int, Finding]()
    for size, layers in sorted(outcome.best_per_size.items()):
        role = OF_BASE if below == BASE else of_count(len(below))
        if layers != BASE and (finding := find(outcome.ledger, layers, below, role)):
            found[size] = finding
        below = layers
    return dict(zip(found, _corrected(found.values()), strict=True))


def of_count(size: int) -> str:
    """The role of the best set of so many layers."""
    return f"best of {size}"


def _corrected(findings: Iterable[Finding]) -> list[Finding]:
    given = list(findings)
    corrected = holm([finding.comparison.p_value for finding in given])
    return [replace(finding, corrected=p) for finding, p in zip(given, corrected, strict=True)]
