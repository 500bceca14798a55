"""Drawings of how a search went: its leader against questions, and what each layer count brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from genetic_algorithm.intervals import Z95
from genetic_algorithm.report.figures import BLUE, GRID, INK, MUTED, PAPER, RUST, drawn
from genetic_algorithm.report.words import Measure, count, layers_of, number, plural, with_error

_STYLES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1)), (0, (3, 1)))
_MARKERS = "osD^vP"
_LETTER = 0.016  # width of a letter of a stage's name, as a share of the axis
BAR = {"capsize": 2.0, "elinewidth": 1.0, "linestyle": "none"}
"""Of every error bar."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The leader of one run after so many question-evaluations, as shown, and the score that ended it."""

    label: str
    done: list[int]
    value: list[float]
    error: list[float]
    last: int
    """Question-evaluations in all."""


def curve(label: str, data: dict[str, Any], measure: Measure) -> Curve:
    """Of the track in `report.json`."""
    points = data["track"]["points"]
    return Curve(
        label,
        [int(point["question_evaluations"]) for point in points],
        [measure.sign * float(point["value"]) for point in points],
        [float(point["error"]) for point in points],
        int(data["question_evaluations"]),
    )


def convergence(data: dict[str, Any], result: dict[str, Any] | None, measure: Measure) -> str:
    """Who led after how many questions: its score then, what all answers say of it now, and the bound of noise."""
    points = data["track"]["points"]
    then = curve("", data, measure)
    known = [data.get("expected", {}).get(layers_of(point["layers"])) for point in points]
    now = None if None in known else [[measure.sign * float(v) for v in row] for row in known if row]
    noise = data["noise"]
    held = measure.part(result["final_results"][0], "holdout") if result else None
    last = now[-1][0] if now else then.value[-1]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        if noise:
            label = f"bound of noise, ±{noise['bound']:.3f}"
            axes.axhspan(last - noise["bound"], last + noise["bound"], color=GRID, alpha=0.55, lw=0, label=label)
        bars = [Z95 * error for error in then.error]
        shown = {"marker": "o", "markersize": 3.5, "markerfacecolor": PAPER, "color": MUTED, **BAR}
        axes.errorbar(then.done, then.value, bars, label="score when it led, 95 %", **shown)
        if now:
            done = [*then.done, then.last]
            rows = [*now, now[-1]]
            axes.fill_between(
                done, [r[1] for r in rows], [r[2] for r in rows], step="post", color=BLUE, alpha=0.18, lw=0
            )
            axes.step(done, [r[0] for r in rows], where="post", color=BLUE, lw=2, label="by all answers since, 95 %")
        if held:
            label = "winner on the hold-out, 95 %"
            axes.errorbar(
                [then.last], [held[0]], [Z95 * held[1]], marker="D", markersize=6, color=RUST, label=label, **BAR
            )
        _name_stages(axes, data["track"]["stages"], then.last)
        in_all = data["questions"]["in_all"]
        axes.set(xlabel=f"question-evaluations (one pass: {count(in_all)})", ylabel=measure.label, xlim=(0, None))
        _thousands(axes)
        figure.legend(loc="outside lower left", ncols=2, columnspacing=1.2, handlelength=1.8)

    first = points[0]
    alt = (
        f"After {plural(first['question_evaluations'], 'question-evaluation')} {layers_of(first['layers'])} led with "
        f"{with_error(then.value[0], then.error[0])}; the lead changed {plural(_changes(points), 'time')}. After "
        f"{count(then.last)}, {layers_of(points[-1]['layers'])} leads with "
        f"{with_error(then.value[-1], then.error[-1])} on {plural(points[-1]['questions'], 'question')}"
    )
    alt += f"; sets within {noise['bound']:.3f} of the best cannot be told from it" if noise else ""
    alt += f"; the winner has {with_error(*held)} on the hold-out." if held else "."
    return drawn("convergence", alt, 320, draw)


def convergences(name: str, curves: Sequence[Curve], measure: Measure) -> str:
    """The leaders of several runs against questions, on one drawing."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for i, one in enumerate(curves):
            done, value = [*one.done, one.last], [*one.value, one.value[-1]]
            error = [*one.error, one.error[-1]]
            colour = (BLUE, RUST, INK, MUTED)[i % 4]
            low, high = ([v + side * Z95 * e for v, e in zip(value, error, strict=True)] for side in (-1, 1))
            axes.fill_between(done, low, high, step="post", color=colour, alpha=0.1, lw=0)
            style = {"linestyle": _STYLES[i % len(_STYLES)], "marker": _MARKERS[i % len(_MARKERS)], "markevery": [-1]}
            axes.step(done, value, where="post", color=colour, label=one.label, **style)
        axes.set(xlabel="question-evaluations", ylabel=measure.label, xlim=(0, None))
        _thousands(axes)
        figure.legend(loc="outside lower left", ncols=1)

    told = [f"{c.label} ends after {count(c.last)} at {with_error(c.value[-1], c.error[-1])}" for c in curves]
    alt = f"Score of the leader against question-evaluations: {'; '.join(told)}."
    return drawn(name, alt, 300 + 15 * len(curves), draw)


def layer_counts(data: dict[str, Any] | None, result: dict[str, Any], measure: Measure) -> str:
    """The best set of each layer count, beside all sets of that count, the base and the donor."""
    best = {int(size): entry for size, entry in result["best_per_layer_count"].items() if entry}
    lines = [
        (name, style, *(measure.part(entry, "holdout") or measure.chosen(entry)))
        for name, style, entry in (("base", "--", result["base"]), ("donor", "-.", result.get("donor")))
        if entry
    ]
    rows = (data or {}).get("by_count", [])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for i, row in enumerate(rows):
            low, quarter, middle, three, high = (measure.sign * float(v) for v in row["quartiles"])
            at, label = row["layer_count"], "all sets asked, fast look: range, middle half" if i == 0 else None
            axes.plot([at, at], [low, high], color=MUTED, lw=0.8)
            axes.plot([at, at], [quarter, three], color=GRID, lw=11, solid_capstyle="butt", label=label)
            axes.plot([at - 0.1, at + 0.1], [middle, middle], color=MUTED, lw=1)
        scores = {size: measure.chosen(entry) for size, entry in best.items()}
        front = [size for size in scores if best[size].get("on_pareto_front")]
        axes.plot([s - 0.16 for s in front], [scores[s][0] for s in front], color=BLUE, lw=1.2)
        _bars(axes, scores, -0.16, marker="o", color=BLUE, label="best of its count, questions that chose")
        held = {size: found for size, entry in best.items() if (found := measure.part(entry, "holdout"))}
        _bars(axes, held, 0.16, marker="D", color=RUST, label="the same on the hold-out")
        for line, style, value, _ in lines:
            axes.axhline(value, color=INK, lw=1, linestyle=style, label=f"{line}, {number(value)}")
        sizes = sorted({*best, *(row["layer_count"] for row in rows)})
        axes.set(xlabel="layers replaced", ylabel=measure.label, xlim=(min(sizes) - 0.6, max(sizes) + 0.6))
        axes.set_xticks(sizes if len(sizes) <= 12 else sizes[:: len(sizes) // 8])
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside lower left", ncols=1)

    told = [
        f"{plural(size, 'layer')} {layers_of(entry['layers'])} {with_error(*measure.chosen(entry))}"
        + ("" if entry.get("on_pareto_front") else " (no better than fewer)")
        for size, entry in sorted(best.items())
    ]
    alt = f"Best set of each layer count: {'; '.join(told) or 'none yet'}"
    alt += "".join(f". The {line} has {with_error(value, error)}" for line, _, value, error in lines) + "."
    return drawn("layer-counts", alt, 330, draw)


def _bars(axes: Any, scores: dict[int, tuple[float, float]], shift: float, **style: Any) -> None:
    if scores:
        values, errors = zip(*scores.values(), strict=True)
        at = [size + shift for size in scores]
        axes.errorbar(at, values, [Z95 * error for error in errors], markersize=5, **style, **BAR)


def _name_stages(axes: Any, stages: Sequence[dict[str, Any]], last: int) -> None:
    starts = [int(stage["question_evaluations"]) for stage in stages]
    ends: list[float] = []  # of the last name in each row, the lowest first: names that would collide stand higher
    for stage, start in zip(stages, starts, strict=True):
        width = _LETTER * (len(stage["stage"]) + 1) * last
        is_last = start + width > 1.05 * last  # its name would leave the drawing
        left = start - width if is_last else start
        row = next((i for i, end in enumerate(ends) if end <= left), len(ends))
        ends[row : row + 1] = [left + width]
        if start:
            axes.axvline(start, color=MUTED, lw=0.8, linestyle=":")
        where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        beside = {"xytext": (-3 if is_last else 3, 3 + 10 * row), "ha": "right" if is_last else "left"}
        axes.annotate(stage["stage"], (start, 1.0), color=MUTED, fontsize=8, **where, **beside)


def _thousands(axes: Any) -> None:
    axes.xaxis.set_major_locator(_locator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, integer=True)


def _changes(points: Sequence[dict[str, Any]]) -> int:
    return sum(a["layers"] != b["layers"] for a, b in pairwise(points))
