"""Drawings of the winner beside others: subject by subject beside the base, and beside its rivals."""

from __future__ import annotations

from typing import Any

import numpy as np

from genetic_algorithm.report.figures import BLUE, INK, MUTED, PAPER, drawn
from genetic_algorithm.report.plot_progress import BAR
from genetic_algorithm.report.words import layers_of, plural, shortened, signed


def subjects(per_subject: dict[str, Any]) -> str:
    """Gain of the winner over the base in each subject, the largest first."""
    rows = sorted(per_subject["subjects"], key=lambda row: row["accuracy"] - row["base_accuracy"])
    found = [(row["accuracy"] - row["base_accuracy"], row["gain_interval"], shortened(row["subject"])) for row in rows]
    clear = [gain for gain, (low, high), _ in found if not low <= 0 <= high]
    alt = f"In {sum(g > 0 for g in clear)} of {plural(len(found), 'subject')} the winner is better than the base"
    alt += f" beyond its 95 % interval, in {sum(g < 0 for g in clear)} worse. "
    alt += f"Most: {found[-1][2]} {signed(found[-1][0])}; least: {found[0][2]} {signed(found[0][0])}."
    return _rows("subjects", alt, "gain in accuracy over the base", found)


def rivals(comparisons: list[dict[str, Any]]) -> str:
    """The leader less each rival, on the same questions; the base, far off, only where nothing else is there."""
    chosen = [one for one in comparisons if one["against"]] or comparisons
    found = [
        (one["difference"], one["interval"], f"{layers_of(one['against'])} ({', '.join(one['roles'])})")
        for one in chosen
    ][::-1]
    told = "; ".join(
        f"{name}: {signed(gain)}, 95 % interval {signed(low)} to {signed(high)}"
        for gain, (low, high), name in found[::-1]
    )
    return _rows("rivals", f"The winner less {told}.", "difference (right of 0: the winner is better)", found)


def _rows(name: str, alt: str, label: str, found: list[tuple[float, Any, str]]) -> str:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for is_clear, colour, face in ((True, BLUE, BLUE), (False, MUTED, PAPER)):
            rows = [
                (at, row[0], *row[1]) for at, row in enumerate(found) if (not row[1][0] <= 0 <= row[1][1]) == is_clear
            ]
            if rows:
                at, gain, low, high = np.array(rows, dtype=np.float64).T
                style = {"marker": "o", "markersize": 5, "color": colour, "markerfacecolor": face}
                axes.errorbar(gain, at, xerr=np.maximum([gain - low, high - gain], 0), **style, **BAR)
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_yticks(range(len(found)), [row[2] for row in found], fontsize=8)
        axes.set_xlabel(label, loc="right")  # where names are long, little is left of the axis
        axes.set(ylim=(-0.7, len(found) - 0.3))
        axes.grid(visible=False, axis="y")

    return drawn(name, alt, 58 + 13.5 * max(2, len(found)), draw)
