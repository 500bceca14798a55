"""Drawings of which layers matter."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from genetic_algorithm.intervals import Z95
from genetic_algorithm.report.figures import BLUE, INK, MUTED, PAPER, RUST, drawn
from genetic_algorithm.report.plot_progress import BAR
from genetic_algorithm.report.words import plural, signed

Effect = tuple[tuple[int, ...], float, float]
"""Layers, posterior mean and standard deviation."""


def singles(data: dict[str, Any]) -> list[Effect]:
    """Effects of the layers that some set held."""
    return _effects([(i,) for i in range(data["num_layers"])], data["effects"]["singles"])


def pairs(data: dict[str, Any]) -> list[Effect]:
    """Effects of the pairs that some set held."""
    return _effects(list(combinations(range(data["num_layers"]), 2)), data["effects"]["pairs"])


def is_clear(effect: Effect) -> bool:
    """Whether 0 lies outside the 95 % interval."""
    return abs(effect[1]) > Z95 * effect[2]


def strongest(data: dict[str, Any]) -> float:
    """The interaction that is drawn strongest: the largest, but no less than what could be told from 0."""
    effects = pairs(data)
    if not effects:
        return 1.0
    least = Z95 * float(np.median([deviation for _, _, deviation in effects]))
    return max(least, *(abs(mean) for _, mean, _ in effects)) or 1.0


def layers(data: dict[str, Any]) -> str:
    """Above, the effect of each layer alone; below, how often the best sets hold it."""
    effects, frequency, num_layers = singles(data), data["frequency"], data["num_layers"]
    best, asked = max(1, frequency["best"]), max(1, frequency["asked"])

    def draw(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for clear, face, label in ((True, BLUE, "95 % interval without 0"), (False, PAPER, "not told from 0")):
            chosen = [effect for effect in effects if is_clear(effect) == clear]
            at, mean, deviation = (
                ([], [], []) if not chosen else zip(*((e[0][0], e[1], e[2]) for e in chosen), strict=True)
            )
            style = {"marker": "o", "markersize": 4.5, "color": BLUE if clear else MUTED, "markerfacecolor": face}
            upper.errorbar(at, mean, [Z95 * d for d in deviation], label=label, **style, **BAR)
        upper.axhline(0, color=INK, lw=0.8)
        upper.set_ylabel(f"effect alone, {data['effects']['scale']}")
        upper.legend(loc="best", ncols=1, handlelength=1.2)
        share = [100 * n / best for n in frequency["in_best"]]
        lower.bar(range(num_layers), share, color=BLUE, alpha=0.75, label=f"of the {best} best sets")
        of_asked = [100 * n / asked for n in frequency["in_asked"]]
        style = {"linestyle": "none", "marker": "_", "markersize": 7, "color": RUST, "markeredgewidth": 1.6}
        lower.plot(range(num_layers), of_asked, label=f"of all {asked} asked", **style)
        lower.set(xlabel="layer", ylabel="% that hold it", xlim=(-0.7, num_layers - 0.3), ylim=(0, 105))
        lower.legend(loc="best", handlelength=1.2)
        for axes in (upper, lower):
            axes.grid(visible=False, axis="x")
        _tick_layers(lower, num_layers)

    ranked = sorted((effect for effect in effects if is_clear(effect)), key=lambda e: -e[1])
    most = sorted(range(num_layers), key=lambda i: (-frequency["in_best"][i], i))[:5]
    held = ", ".join(f"{i} in {frequency['in_best'][i]}" for i in most if frequency["in_best"][i])
    alt = f"Alone, {_told(ranked[:3], 'help') or 'no layer clearly helps'}; "
    worst = _told([e for e in ranked[::-1] if e[1] < 0][:3], "hurt")
    alt += f"{worst or 'none clearly hurts'} ({data['effects']['scale']}). "
    alt += f"Of the {plural(frequency['best'], 'best set')}, most often held: {held or 'none'}."
    return drawn("layers", alt, 380, draw)


def interactions(data: dict[str, Any]) -> str:
    """What each pair of layers adds beyond its two effects, as a heat map; signs where that is told from 0."""
    effects, num_layers = pairs(data), data["num_layers"]
    largest = strongest(data)
    clear = sorted((effect for effect in effects if is_clear(effect)), key=lambda e: -abs(e[1]))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        cells = np.zeros((num_layers, num_layers, 4))
        for (low, high), mean, _ in effects:
            colour = BLUE if mean > 0 else RUST
            cells[high, low, :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            cells[high, low, 3] = 0.04 + 0.6 * abs(mean) / largest  # signs stay readable on it
        axes.imshow(cells, interpolation="none", origin="upper", aspect="equal")
        unknown = sorted({*combinations(range(num_layers), 2)} - {effect[0] for effect in effects})
        dots = np.array([[(low - 0.02, high), (low + 0.02, high), (np.nan, np.nan)] for low, high in unknown])
        across, down = dots.reshape(-1, 2).T
        axes.plot(across, down, color=MUTED, lw=min(2.0, 40 / num_layers), solid_capstyle="round")
        size = max(2.0, min(9.0, 200 / num_layers))
        for sign, marker in ((1, "+"), (-1, "_")):
            at = [effect[0] for effect in clear if effect[1] * sign > 0]
            style = {"linestyle": "none", "marker": marker, "markersize": size, "markeredgewidth": 1.2, "color": INK}
            axes.plot([low for low, _ in at], [high for _, high in at], **style)
        axes.set(xlabel="layer", ylabel="layer", xlim=(-0.5, num_layers - 0.5), ylim=(num_layers - 0.5, -0.5))
        axes.grid(visible=False)
        _tick_layers(axes, num_layers)
        axes.set_yticks(axes.get_xticks())

    told = ", ".join(f"{low} with {high} {signed(mean, 2)}" for (low, high), mean, _ in clear[:4])
    alt = f"Of {plural(len(effects), 'pair')} that some set held, {len(clear)} have an interaction told from 0"
    alt += f": {told}." if told else "."
    return drawn("interactions", alt, 400, draw)


def _effects(groups: list[tuple[int, ...]], of: dict[str, Any]) -> list[Effect]:
    rows = zip(groups, of["mean"], of["deviation"], strict=True)
    return [(group, float(mean), float(deviation)) for group, mean, deviation in rows if mean is not None]


def _told(effects: list[Effect], verb: str) -> str:
    if not effects or (verb == "help" and effects[0][1] <= 0):
        return ""
    named = [f"{e[0][0]} ({signed(e[1], 2)} ± {e[2]:.2f})" for e in effects if (e[1] > 0) == (verb == "help")]
    return f"{'layer' if len(named) == 1 else 'layers'} {', '.join(named)} {verb}{'s' if len(named) == 1 else ''}"


def _tick_layers(axes: Any, num_layers: int) -> None:
    step = 1 if num_layers <= 16 else 4 if num_layers <= 48 else 10
    axes.set_xticks(range(0, num_layers, step))
    axes.set_xticks(range(num_layers), minor=True)
    axes.tick_params(which="minor", length=1.5)
