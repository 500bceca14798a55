"""What the report shows of a search beside its result: JSON values, from a search that goes on or is over."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from genetic_algorithm.intervals import Z95
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Ledger
from genetic_algorithm.questions import FAST, FINAL, FULL, HOLDOUT
from genetic_algorithm.report import effects
from genetic_algorithm.report.track import Track
from genetic_algorithm.search import Outcome, Search
from genetic_algorithm.strategies.patterns import mine

FORMAT = 1
_MOST_BEST = 20  # sets that count as the best ones, or a quarter of all, where that is less
_LEAST_HOLDING = 3  # of these, or a quarter, where that is more: a pattern that fewer hold may well be chance
_QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_DIGITS = 6


def collect(search: Search, track: Track, told: Callable[[Outcome], dict[str, Any]] | None) -> dict[str, Any]:
    """Read a search, which it leaves as it is.

    Args:
        search: that goes on, or is over.
        track: of who led.
        told: makes a result document of an outcome, for a search that goes on; None where it is over and has one.
    """
    ledger, space = search.ledger, search.space
    ranking = search.strategy.ranking()
    best = ranking[: min(_MOST_BEST, max(1, len(ranking) // 4))]
    least = max(_LEAST_HOLDING, math.ceil(len(best) / 4))
    patterns = _patterns(search, best, least)
    found: dict[str, Any] = {
        "format": FORMAT,
        "is_over": told is None,
        "num_layers": space.num_layers,
        "layer_counts": [space.min_layers, space.max_layers],
        "must_include": list(space.must_include),
        "forbidden": list(space.forbidden),
        "possible_sets": space.size,
        "asked_sets": len(ledger.known),
        "failed": [list(layers.indices) for layers in ledger.failed],
        "question_evaluations": sum(usage.questions for usage in search.outcome.usage.values()),
        "questions": {
            "in_all": ledger.num_questions,
            **{p: len(ledger.parts[p]) for p in (FAST, FULL, FINAL, HOLDOUT)},
            "rungs": [len(ledger.parts[rung]) for rung in ledger.questions.rungs],
        },
        "track": track.as_json(),
        "noise": _noise(ledger, ranking),
        "by_count": _by_count(search),
        "frequency": _frequency(ledger, best, space.num_layers),
        "patterns": patterns,
        "patterns_least": least,
        "result": None if told is None or not ranking else told(_so_far(search, ranking)),
    }
    if model := effects.fitted(ledger, space.num_layers):
        found["effects"] = effects.of_layers(model, ledger, space.num_layers)
        found["effects"]["patterns"] = effects.of_patterns(model, patterns)
        found["expected"] = effects.expected(model, ledger, list(track.leaders))
    return found


def _so_far(search: Search, ranking: Sequence[LayerSet]) -> Outcome:
    """The outcome, were the search over now."""
    best_per_size: dict[int, LayerSet] = {}
    for layers in ranking:
        best_per_size.setdefault(len(layers), layers)
    outcome, final = search.outcome, list(ranking[: search.config.kept])
    details = search.strategy.details()
    for of_stage in details.values():  # how exhaustive the whole search was, it says when it is over
        if isinstance(of_stage, dict):
            of_stage.pop("statement", None)
    return Outcome(search.ledger, outcome.usage, final, best_per_size, details, outcome.is_cut_short)


def _noise(ledger: Ledger, ranking: Sequence[LayerSet]) -> dict[str, Any] | None:
    """How far apart the two best must be to be told apart by the questions that both have answered."""
    if len(ranking) < 2:
        return None
    first, second = ranking[:2]
    for part in (FINAL, FULL, *reversed(ledger.questions.rungs)):
        if ledger.score(first, part) and ledger.score(second, part):
            error = ledger.compare(first, second, part).standard_error
            return {
                "layers": list(first.indices),
                "against": list(second.indices),
                "standard_error": round(error, _DIGITS),
                "bound": round(Z95 * error, _DIGITS),
                "questions": len(ledger.parts[part]),
            }
    return None


def _by_count(search: Search) -> list[dict[str, Any]]:
    """How the sets of each layer count did on the fast look: how many, and the quartiles of their values."""
    values: dict[int, list[float]] = {}
    for layers in search.ledger.known:
        score = search.ledger.score(layers, FAST)
        if score is not None and search.space.contains(layers):
            values.setdefault(len(layers), []).append(score.value)
    return [
        {
            "layer_count": size,
            "sets": len(of_size),
            "quartiles": np.round(np.quantile(of_size, _QUARTILES), _DIGITS).tolist(),
        }
        for size, of_size in sorted(values.items())
    ]


def _frequency(ledger: Ledger, best: Sequence[LayerSet], num_layers: int) -> dict[str, Any]:
    """In how many of the best sets, and of all that were asked, each layer is."""
    in_best, in_asked = (Counter(i for layers in sets for i in layers) for sets in (best, ledger.known))
    return {
        "best": len(best),
        "asked": len(ledger.known),
        "in_best": [in_best[i] for i in range(num_layers)],
        "in_asked": [in_asked[i] for i in range(num_layers)],
    }


def _patterns(search: Search, best: Sequence[LayerSet], least: int) -> list[Mapping[str, Any]]:
    """What at least so many of the best sets share; their gains are of all sets on the fast look."""
    scores = ((layers, search.ledger.score(layers, FAST)) for layers in search.ledger.known)
    values = {layers: score.value for layers, score in scores if score and search.space.contains(layers)}
    return [pattern.as_json() for pattern in mine(values, good=[s for s in best if s in values], least=least)]
