"""The result of a search as a JSON document: what was found, how sure it is and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genetic_algorithm.evaluator import Score
from genetic_algorithm.genetic import STAGE as STAGE_1
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import FAST, FINAL, FULL, HOLDOUT, Ledger
from genetic_algorithm.local_search import STAGE as STAGE_3
from genetic_algorithm.search import STAGE_2, Outcome

FORMAT = 1
_DIGITS = 6


def best_score(ledger: Ledger, layers: LayerSet) -> Score | None:
    """The score on the most questions that the ranking uses."""
    return ledger.score(layers, FINAL) or ledger.score(layers, FULL)


def document(outcome: Outcome, *, run: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """Build the document.

    Args:
        outcome: of a search that is over.
        run: what the run folder knows: config, versions, timestamp.
        seconds: evaluation time by stage, from all sittings of this run.
    """
    ledger = outcome.ledger
    base = LayerSet(())
    parts = {name: len(questions) for name, questions in ledger.parts.items()}
    return {
        "format": FORMAT,
        **run,
        "questions": {"in_all": ledger.num_questions, **parts},
        "note": "The ranking chose among these scores, so the best of them flatters its set a little; the "
        "hold-out accuracy, where there is one, played no part in the choice.",
        "final_results": [_final(outcome, rank) for rank in range(len(outcome.final))],
        "base": _candidate(ledger, base, best_score(ledger, base)),
        "best_per_layer_count": {
            str(size): _candidate(ledger, layers, best_score(ledger, layers))
            for size, layers in sorted(outcome.best_per_size.items())
        },
        "patterns": [
            {
                "layers": list(pattern.layers.indices),
                "frequency": round(pattern.frequency, _DIGITS),
                "gain": round(pattern.gain, _DIGITS),
                "weight": round(pattern.weight, _DIGITS),
            }
            for pattern in outcome.patterns
        ],
        "stages": {
            STAGE_1: {
                "candidates": [_candidate(ledger, s, ledger.score(s, FAST)) for s in outcome.stage_1],
                "generations": [
                    {
                        "generation": line.number,
                        "new_sets": line.new_sets,
                        "best": list(line.best.indices),
                        "best_accuracy": round(line.best_accuracy, _DIGITS),
                        "mean_accuracy": round(line.mean_accuracy, _DIGITS),
                    }
                    for line in outcome.history
                ],
            },
            STAGE_2: {"candidates": [_candidate(ledger, s, ledger.score(s, FULL)) for s in outcome.stage_2]},
            STAGE_3: {
                "local_optimum": outcome.is_local_optimum,
                "climbs": [[list(layers.indices) for layers in path] for path in outcome.paths],
                "candidates": [_candidate(ledger, path[-1], ledger.score(path[-1], FULL)) for path in outcome.paths],
            },
        },
        "failed": [list(layers.indices) for layers in ledger.failed],
        "usage": _usage(outcome, seconds),
    }


def table(document: Mapping[str, Any]) -> list[str]:
    """The ranking as lines for a person."""
    lines = ["rank  accuracy  +-      questions  hold-out  layers"]
    for entry in document["final_results"]:
        holdout = "-" if entry["holdout_accuracy"] is None else f"{entry['holdout_accuracy']:.4f}"
        lines.append(
            f"{entry['rank']:>4}  {entry['accuracy']:.4f}    {entry['standard_error']:.4f}  "
            f"{entry['questions']:>9}  {holdout:>8}  {entry['layers']}"
        )
    if document["base"] is not None:
        base = document["base"]
        lines.append(f"base  {base['accuracy']:.4f}    {base['standard_error']:.4f}  {base['questions']:>9}")
    return lines


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


def _candidate(ledger: Ledger, layers: LayerSet, score: Score | None) -> dict[str, Any] | None:
    if score is None:  # could not be evaluated
        return None
    return {
        "layers": list(layers.indices),
        "accuracy": round(score.accuracy, _DIGITS),
        "standard_error": round(score.standard_error, _DIGITS),
        "correct": score.correct,
        "questions": score.asked,
        "part": score.part,
    }


def _final(outcome: Outcome, rank: int) -> dict[str, Any]:
    ledger, layers = outcome.ledger, outcome.final[rank]
    holdout = ledger.score(layers, HOLDOUT)
    after = outcome.final[rank + 1] if rank + 1 < len(outcome.final) else None
    candidate = _candidate(ledger, layers, best_score(ledger, layers)) or {}
    return {
        "rank": rank + 1,
        **candidate,
        "holdout_accuracy": None if holdout is None else round(holdout.accuracy, _DIGITS),
        "holdout_standard_error": None if holdout is None else round(holdout.standard_error, _DIGITS),
        "holdout_questions": 0 if holdout is None else holdout.asked,
        # Exact paired tests on questions that both sets answered; the runner-up is the next in rank.
        "p_value_vs_runner_up": None if after is None else _p_value(ledger, layers, after),
        "p_value_vs_best": None if rank == 0 else _p_value(ledger, outcome.final[0], layers),
    }


def _p_value(ledger: Ledger, first: LayerSet, second: LayerSet) -> float:
    both = ledger.score(first, FINAL) is not None and ledger.score(second, FINAL) is not None
    return float(f"{ledger.compare(first, second, FINAL if both else FULL).p_value:.4g}")
