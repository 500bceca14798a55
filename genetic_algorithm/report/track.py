"""The way of a search: who led after how many questions."""

from __future__ import annotations

from typing import Any

from genetic_algorithm.evaluator import Score
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Request

_DIGITS = 6


class Track:
    """A point for each change of the leader or of its score, and for the beginning of each stage."""

    def __init__(self) -> None:
        self._points: list[dict[str, Any]] = []
        self._stages: list[dict[str, Any]] = []
        self.leaders: dict[LayerSet, None] = {}
        """All that ever led, in order."""

    def note(self, request: Request, done: int, seconds: float, best: tuple[LayerSet, Score] | None) -> None:
        """A request was answered.

        Args:
            request: what was asked.
            done: question-evaluations so far, this request's with them.
            seconds: of evaluation so far.
            best: the best set on the most questions, and its score.
        """
        if not self._stages or self._stages[-1]["stage"] != request.stage:
            self._stages.append({"stage": request.stage, "question_evaluations": max(0, done - request.size)})
        if best is None:
            return
        layers, score = best
        self.leaders[layers] = None
        point = {
            "layers": list(layers.indices),
            "value": round(score.value, _DIGITS),
            "error": round(score.value_error, _DIGITS),
            "questions": score.asked,
        }
        if not self._points or any(self._points[-1][name] != value for name, value in point.items()):
            self._points.append({"question_evaluations": done, "seconds": round(seconds, 3), **point})

    def as_json(self) -> dict[str, Any]:
        """For `report.json`."""
        return {"stages": self._stages, "points": self._points}
