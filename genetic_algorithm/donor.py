"""The donor itself beside what a search found: how far its layers can bring the base."""

from __future__ import annotations

from genetic_algorithm.evaluator import Evaluator
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Ledger
from genetic_algorithm.questions import FULL, HOLDOUT
from genetic_algorithm.search import Search


def ask_donor(search: Search, evaluator: Evaluator) -> Ledger | None:
    """The donor's answers to what the finalists were asked last; None where there are none to be had.

    It is asked where answers tell how far they are from its own. Whoever tells that has asked it these questions, so
    that no budget is charged. The search, which is over, learns nothing of it.
    """
    ledger = search.ledger
    questions = ledger.parts[HOLDOUT if len(ledger.parts[HOLDOUT]) else FULL]
    if "divergence" not in ledger.signals(search.outcome.final[0], questions):
        return None
    donor = LayerSet(tuple(range(search.space.num_layers)))
    found = Ledger(ledger.questions, goal=ledger.goal)
    for layers, answers in evaluator.answers([donor], questions):
        found.record(layers, questions, answers)
    return found if found.known else None
