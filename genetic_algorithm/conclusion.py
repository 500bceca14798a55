"""A result in words: what is established, and what is not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from genetic_algorithm.comparisons import BASE, OF_BASE, RUNNER_UP, Finding
from genetic_algorithm.evaluator import Score
from genetic_algorithm.intervals import Z95
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Ledger
from genetic_algorithm.questions import FINAL, FULL, HOLDOUT


def conclude(ledger: Ledger, leader: LayerSet, findings: Sequence[Finding], donor: Ledger | None = None) -> str:
    """Sentences about the leader of a search and the comparisons made of it; p-values are the corrected ones.

    The last is about the donor, where its own answers are known.
    """
    return " ".join(filter(None, [_compared(ledger, leader, findings), _recovered(ledger, leader, donor)]))


def _recovered(ledger: Ledger, leader: LayerSet, donor: Ledger | None) -> str:
    """What the donor has on the same questions, and how much of the way from the base to it the leader goes."""
    if donor is None or ledger.goal == "kl":  # divergences tell how far from the donor all are
        return ""
    whole = donor.known[0]
    for part in (HOLDOUT, FULL):
        of_donor, base, best = (
            of.score(layers, part) for of, layers in ((donor, whole), (ledger, BASE), (ledger, leader))
        )
        if of_donor is not None:
            found = f"The donor itself has {spell_score(ledger, of_donor, 3)} on these"
            if base is None or best is None:
                return f"{found}."
            gap, error = of_donor.value - base.value, math.hypot(of_donor.value_error, base.value_error)
            if gap <= Z95 * error:
                return f"{found}, which is not established to be more than the base has."
            return f"{found}: {leader} makes up {(best.value - base.value) / gap:.0%} of what the base lacks."
    return ""


def _compared(ledger: Ledger, leader: LayerSet, findings: Sequence[Finding]) -> str:
    score = ledger.score(leader, HOLDOUT)
    where = "that took no part in the choice"
    if score is None:
        score, where = ledger.best_score(leader, FINAL, FULL), "by which it was chosen, so they may flatter it"
    if score is None:
        return f"{leader} has no score."
    found = f"{leader} has {spell_score(ledger, score, 3)} on {score.asked:,} questions {where}."
    better = [finding for finding in findings if finding.is_better]
    worse = [finding for finding in findings if finding.is_worse]
    open_ = [finding for finding in findings if not finding.is_better and not finding.is_worse]
    said = []
    if better:
        said.append(f"it is better than {_listed(better, ' and than ')}")
    if worse:
        said.append(f"it is worse than {_listed(worse, ' and than ')}")
    if open_:
        said.append(f"that it is better than {_listed(open_, ' and ')} is not established")
    if not said:
        return found
    sentence = "; ".join(said)
    return f"{found} {sentence[0].upper()}{sentence[1:]}."


def spell_score(ledger: Ledger, score: Score, digits: int = 4) -> str:
    """`0.6031 +- 0.0083`, of the accuracy or of whatever else the search is for."""
    number = f"{abs(score.value):.{digits}f} +- {score.value_error:.{digits}f}"
    if ledger.goal == "kl":
        return f"a mean divergence of {number} nats from the donor's answers"
    return f"a weighted accuracy of {number}" if ledger.questions.is_weighted else number


def spell_p(p_value: float) -> str:
    """`p = 0.41`, `p = 0.004`, `p < 0.001`."""
    if p_value < 0.001:
        return "p < 0.001"
    return f"p = {p_value:.2g}" if p_value < 0.995 else "p = 1"


def _listed(findings: Sequence[Finding], joint: str) -> str:
    """The base, the best of smaller counts as one item, and the runner-up, each with its p-value."""
    runner_up = [finding for finding in findings if RUNNER_UP in finding.roles]
    base = [finding for finding in findings if OF_BASE in finding.roles and finding not in runner_up]
    counts = [finding for finding in findings if finding not in base and finding not in runner_up]
    named = [f"the base ({spell_p(finding.corrected)})" for finding in base]
    if counts:
        sizes = sorted(len(finding.against) for finding in counts)
        p_value = spell_p(max(finding.corrected for finding in counts))
        if len(sizes) == 1:
            named.append(f"the best set of {sizes[0]} layer{'s' if sizes[0] > 1 else ''} ({p_value})")
        else:
            which = f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
            named.append(f"the best sets of {which} layers ({p_value}{' each' if '<' in p_value else ' at most'})")
    named += [f"the runner-up{_also(finding)} ({spell_p(finding.corrected)})" for finding in runner_up]
    return f"{', '.join(named[:-1])}{joint}{named[-1]}" if len(named) > 1 else named[0]


def _also(runner_up: Finding) -> str:
    """The runner-up's name, and what it is besides."""
    size = len(runner_up.against)
    if OF_BASE in runner_up.roles:
        return ", the base"
    if len(runner_up.roles) > 1:
        return f" {runner_up.against}, the best set of {size} layer{'s' if size > 1 else ''}"
    return f" {runner_up.against}"
