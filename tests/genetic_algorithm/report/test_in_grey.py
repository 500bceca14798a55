"""Whoever prints the page in grey, or sees no colours, can tell the series of each drawing apart."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from genetic_algorithm.report import compare
from tests.genetic_algorithm.report.runs import Told

LEAST = 0.2
"""Between the luminances of two greys, of 0 to 1, that can be told apart beside each other."""


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was drawn."""
    drawn: list[Any] = []
    real = FigureCanvasSVG.print_svg

    def print_svg(self: Any, *args: Any, **options: Any) -> Any:
        if self.figure not in drawn:  # it is drawn once more to be laid out
            drawn.append(self.figure)
        return real(self, *args, **options)

    monkeypatch.setattr(FigureCanvasSVG, "print_svg", print_svg)
    return drawn


def grey(colour: Any) -> float:
    """Luminance, 0 to 1, as screens and printers weigh it."""
    return sum(part * weight for part, weight in zip(to_rgb(colour), (0.2126, 0.7152, 0.0722), strict=True))


def look(handle: Any) -> tuple[tuple[Any, ...], float]:
    """What of a legend's entry is not its colour, and its grey."""
    handle = handle[0] if isinstance(handle, tuple) else handle  # the line of error bars, the first of bars
    if isinstance(handle, Line2D):
        is_filled = grey(handle.get_markerfacecolor()) < 0.9
        dashes = handle._dash_pattern
        return ("line", handle.get_marker(), handle.get_linestyle(), dashes, is_filled), grey(handle.get_color())
    faces = handle.get_facecolor()
    face = faces[0] if len(faces) and not isinstance(faces[0], float) else faces
    return ("area", handle.get_hatch()), grey(face[:3]) * face[3] + 1 - face[3]


def told_apart(figures: list[Any]) -> int:
    """How many pairs of entries there are in the legends; each differs in more than its colour."""
    pairs = 0
    for figure in figures:
        entries = [entry for axes in figure.axes for entry in zip(*axes.get_legend_handles_labels()[::-1], strict=True)]
        for (one, first), (other, second) in combinations(entries, 2):
            (shape, light), (other_shape, other_light) = look(first), look(second)
            assert shape != other_shape or abs(light - other_light) >= LEAST, (one, other)
            pairs += 1
    return pairs


def test_series_of_a_page_differ_in_more_than_colour(figures: list[Any]) -> None:
    Told().finish().page()
    assert len(figures) == 6
    assert told_apart(figures) >= 8


def test_as_many_runs_as_one_compares_differ_in_more_than_colour(figures: list[Any]) -> None:
    told = Told().finish()
    compare.render([told.documents(is_over=True, folder=Path(f"/runs/{i}")) for i in range(6)])
    assert told_apart(figures) == 15
