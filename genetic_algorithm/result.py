"""The result of a search as a JSON document: what was found, how sure it is and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm import comparisons
from genetic_algorithm.comparisons import BASE, Finding
from genetic_algorithm.conclusion import conclude
from genetic_algorithm.evaluator import Score
from genetic_algorithm.intervals import Z95
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Ledger
from genetic_algorithm.paired_test import compare
from genetic_algorithm.questions import ALL, FAST, FINAL, FULL, HOLDOUT
from genetic_algorithm.search import Outcome

FORMAT = 1
RANKED_BY = "rank: by the score on the questions that chose."
_DIGITS = 6


def document(
    outcome: Outcome,
    *,
    run: Mapping[str, Any],
    seconds: Mapping[str, float],
    subjects: NDArray[np.int64],
    subject_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the document.

    Args:
        outcome: of a search that is over.
        run: what the run folder knows: config, versions, timestamp.
        seconds: evaluation time by stage, from all sittings of this run.
        subjects: subject of each question, int64 [num_questions].
        subject_names: of the subjects, where they have names.
    """
    ledger, details = outcome.ledger, outcome.details
    findings = comparisons.of_leader(outcome)
    parts = {name: len(ledger.parts[name]) for name in (FAST, FULL, FINAL, HOLDOUT)}
    rungs = [len(ledger.parts[rung]) for rung in ledger.questions.rungs]
    stages = {stage: details[stage] for stage in outcome.usage if stage in details}
    statements = [stage["statement"] for stage in stages.values() if "statement" in stage]  # how exhaustive it was
    return {
        "format": FORMAT,
        **run,
        "conclusion": " ".join([conclude(ledger, outcome.final[0], findings, outcome.donor), *statements]),
        "questions": {"in_all": ledger.num_questions, **parts, "rungs": rungs},
        "note": "accuracy is on questions that made the choice, so it flatters the best sets a little; "
        "holdout_accuracy is on questions that took no part in it, full_accuracy on all questions. Intervals are of "
        "95 %, and like standard errors of a sample stratified by subject, for new questions of the same subjects. "
        "p-values are of paired tests on the hold-out, or where questions_also_chose is true on all questions "
        "that both sets answered; p_value_corrected holds for all comparisons of its list together (Holm).",
        "ranked_by": details.get("ranked_by", RANKED_BY),
        "final_results": [_final(outcome, rank) for rank in range(len(outcome.final))],
        "base": _candidate(outcome, BASE),
        "donor": None if outcome.donor is None else _entry(outcome.donor, outcome.donor.known[0]),
        "comparisons": [finding.as_json() for finding in findings],
        "best_per_layer_count": _by_count(outcome),
        "per_subject": _per_subject(outcome, subjects, subject_names),
        "patterns": details.get("patterns", []),
        "stages": stages,
        "failed": [list(layers.indices) for layers in ledger.failed],
        "cut_short": outcome.is_cut_short,
        "usage": _usage(outcome, seconds),
    }


def table(document: Mapping[str, Any]) -> list[str]:
    """The ranking as lines for a person."""
    named = {str(entry["rank"]): entry for entry in document["final_results"]}
    named |= {"base": document["base"], "donor": document.get("donor")}
    rows = {name: entry for name, entry in named.items() if entry}
    cells = [("rank", "estimate", "accuracy", "+-", "questions", "hold-out", "all", "layers")]
    for name, entry in rows.items():
        chose = entry["part"] != HOLDOUT  # the donor is asked the hold-out alone, and so may the base be
        cells.append(
            (
                name,
                _or_dash(entry["estimate"]),
                _or_dash(entry["accuracy"] if chose else None),
                _or_dash(entry["standard_error"] if chose else None),
                str(entry["questions"]) if chose else "-",
                _or_dash(entry["holdout_accuracy"]),
                _or_dash(entry["full_accuracy"]),
                "all" if name == "donor" else str(LayerSet.from_indices(entry["layers"])),
            )
        )
    columns = [column for column in zip(*cells, strict=True) if set(column[1:]) != {"-"}]
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns[:-1]]
    lines = ["  ".join(row) for row in zip(*padded, columns[-1], strict=True)]
    return [*lines, document["ranked_by"], document["conclusion"]]


def _or_dash(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.4f}"


def _usage(outcome: Outcome, seconds: Mapping[str, float]) -> dict[str, Any]:
    stages = {
        stage: {
            "new_layer_sets": usage.sets,
            "question_evaluations": usage.questions,
            "seconds": round(seconds.get(stage, 0.0), 3),
        }
        for stage, usage in outcome.usage.items()
    }
    questions = sum(usage.questions for usage in outcome.usage.values())
    return {
        **stages,
        "in_all": {
            "new_layer_sets": sum(usage.sets for usage in outcome.usage.values()),
            "question_evaluations": questions,
            "full_passes": round(questions / outcome.ledger.num_questions, 3),
            "seconds": round(sum(seconds.values()), 3),
        },
    }


def _candidate(outcome: Outcome, layers: LayerSet) -> dict[str, Any] | None:
    """Scores of one set: on the questions that chose, on the hold-out, on all; None where it has none."""
    return _entry(outcome.ledger, layers, outcome.details.get("estimates", {}).get(str(layers)))


def _entry(ledger: Ledger, layers: LayerSet, estimate: float | None = None) -> dict[str, Any] | None:
    score = ledger.best_score(layers, FINAL, FULL) or ledger.score(layers, HOLDOUT)
    if score is None:  # could not be evaluated
        return None
    return {
        "layers": list(layers.indices),
        **score.as_json(),
        "interval": _interval(score),
        "estimate": None if estimate is None else round(estimate, _DIGITS),
        **_part_score(ledger, layers, HOLDOUT, "holdout"),
        **_part_score(ledger, layers, ALL, "full"),
    }


def _part_score(ledger: Ledger, layers: LayerSet, part: str, name: str) -> dict[str, Any]:
    score = ledger.score(layers, part)
    found: dict[str, Any] = {
        f"{name}_accuracy": None if score is None else round(score.accuracy, _DIGITS),
        f"{name}_standard_error": None if score is None else round(score.standard_error, _DIGITS),
        f"{name}_interval": None if score is None else _interval(score),
        f"{name}_questions": 0 if score is None else score.asked,
    }
    if score is not None and score.goal is not None:
        low, high = (round(score.value + side * Z95 * score.value_error, _DIGITS) for side in (-1, 1))
        found |= {f"{name}_value": round(score.value, _DIGITS), f"{name}_value_interval": [low, high]}
    return found


def _interval(score: Score) -> list[float]:
    return [round(bound, _DIGITS) for bound in score.interval]


def _final(outcome: Outcome, rank: int) -> dict[str, Any]:
    ledger, final = outcome.ledger, outcome.final
    layers = final[rank]
    after = comparisons.find(ledger, layers, final[rank + 1]) if rank + 1 < len(final) else None
    behind = comparisons.find(ledger, final[0], layers) if rank else None
    beside = [finding for finding in (after, behind) if finding is not None]
    return {
        "rank": rank + 1,
        **(_candidate(outcome, layers) or {}),
        # Of paired tests, not corrected; the runner-up is the next in rank.
        "p_value_vs_runner_up": _p_value(after),
        "p_value_vs_best": _p_value(behind),
        "questions_also_chose": any(finding.also_chose for finding in beside),
    }


def _p_value(finding: Finding | None) -> float | None:
    return None if finding is None else float(f"{finding.comparison.p_value:.4g}")


def _by_count(outcome: Outcome) -> dict[str, Any]:
    """The best set of each layer count, what it is beside the best of the next smaller one, and the Pareto front."""
    more, front, found = comparisons.of_each_more_layer(outcome), _pareto_front(outcome), {}
    for size, layers in sorted(outcome.best_per_size.items()):
        entry = _candidate(outcome, layers)
        if entry is not None:
            entry["on_pareto_front"] = size in front
            entry["more_layers"] = more[size].as_json() if size in more else None
        found[str(size)] = entry
    return found


def _pareto_front(outcome: Outcome) -> set[int]:
    """Counts whose best set is better than that of every smaller count, all by the same kind of score."""
    ledger, sets = outcome.ledger, sorted(outcome.best_per_size.items())
    estimates = outcome.details.get("estimates", {})
    values = {size: estimates.get(str(layers)) for size, layers in sets}
    for part in (FINAL, FULL, *reversed(ledger.questions.rungs)):
        if None not in values.values():
            break
        scores = {size: ledger.score(layers, part) for size, layers in sets}
        values = {size: None if score is None else score.value for size, score in scores.items()}
    front, highest = set(), float("-inf")
    for size, value in values.items():
        if value is not None and value > highest:
            front.add(size)
            highest = value
    return front


def _per_subject(outcome: Outcome, subjects: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any] | None:
    """Accuracy of the leader and of the base in each subject, on the questions by which they are compared."""
    ledger, leader = outcome.ledger, outcome.final[0]
    questions, also_chose = comparisons.fair_questions(ledger, leader, BASE)
    right, of_base = (ledger.correct(layers, questions) for layers in (leader, BASE))
    if not len(questions) or right is None or of_base is None:
        return None
    rows = []
    for subject in np.unique(subjects[questions]).tolist():
        at = subjects[questions] == subject
        paired = compare(right[at], of_base[at])
        rows.append(
            {
                "subject": str(names[subject]) if subject < len(names) else subject,
                "questions": int(at.sum()),
                "accuracy": round(float(right[at].mean()), _DIGITS),
                "base_accuracy": round(float(of_base[at].mean()), _DIGITS),
                "gain_standard_error": round(paired.standard_error, _DIGITS),
                "gain_interval": [round(bound, _DIGITS) for bound in paired.interval],
            }
        )
    return {"layers": list(leader.indices), "questions_also_chose": also_chose, "subjects": rows}
