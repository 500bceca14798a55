"""Tables and a plot of what benchmarks/search.py measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Groups = dict[str, dict[str, dict[float, list[Mapping[str, Any]]]]]


def tables(lines: Sequence[Mapping[str, Any]], floor: NDArray[np.float64]) -> str:
    """Markdown: per landscape, mean regret, its standard error and the worst, by strategy and budget.

    Args:
        lines: runs, as `benchmarks.search.measure` returns them.
        floor: regrets of scoring the truly best sets on all questions, float64 [seeds]; none where not measured.
    """
    text = []
    for landscape, strategies in _grouped(lines).items():
        budgets = sorted({passes for cells in strategies.values() for passes in cells})
        seeds = max(len(runs) for cells in strategies.values() for runs in cells.values())
        text += [
            f"### {landscape}, {seeds} seeds: mean regret in points (its standard error; 90th percentile; worst)",
            "",
        ]
        text += ["| strategy | " + " | ".join(f"{passes:g} passes" for passes in budgets) + " | own s at most |"]
        text += ["|---" * (len(budgets) + 2) + "|"]
        for name, cells in strategies.items():
            row = [_told([run["regret"] for run in cells[passes]]) if passes in cells else "" for passes in budgets]
            own = max(run["own_seconds"] for runs in cells.values() for run in runs)
            text.append(f"| {name} | " + " | ".join(row) + f" | {own:.1f} |")
        if landscape == "published" and len(floor):
            text.append(f"| noise floor, 400 passes | {_told(floor)} |" + " |" * len(budgets))
        text += _beside_default(strategies)
        text.append("")
    return "\n".join(text)


def plot(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Median (line) and 90th percentile (dashes) of the regret against passes spent, a panel per landscape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = _grouped(lines)
    names = list(dict.fromkeys(name for strategies in groups.values() for name in strategies))
    figure, panels = pyplot.subplots(1, len(groups), figsize=(6.5 * len(groups), 5), squeeze=False)
    for panel, (landscape, strategies) in zip(panels[0], groups.items(), strict=True):
        for name, cells in strategies.items():
            index = names.index(name)  # one colour in all panels
            budgets = sorted(cells)
            regrets = [np.array([run["regret"] for run in cells[passes]]) * 100 for passes in budgets]
            colour, width = f"C{index % 10}", 2.5 if name == "ga" else 1.0
            style = "o" if index < 10 else "s"
            middle, high = ([float(np.quantile(of, q)) for of in regrets] for q in (0.5, 0.9))
            panel.plot(budgets, middle, color=colour, marker=style, markersize=4, linewidth=width, label=name)
            panel.plot(budgets, high, color=colour, linestyle=":", linewidth=width * 0.7)
        panel.set(xscale="log", xlabel="passes over all questions", ylabel="regret, points", title=landscape)
        panel.set_yscale("symlog", linthresh=0.1)
        panel.set_ylim(bottom=-0.01)
        ticks = sorted({passes for cells in strategies.values() for passes in cells})
        panel.set_xticks(ticks, labels=[f"{passes:g}" for passes in ticks], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    curves = {curve.get_label(): curve for panel in panels[0] for curve in panel.get_legend_handles_labels()[0]}
    panels[0][-1].legend(
        handles=[curves[name] for name in names],
        fontsize=8,
        title="median (dotted: 90th percentile)",
        title_fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1, 1),
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _grouped(lines: Sequence[Mapping[str, Any]]) -> Groups:
    groups: Groups = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for line in lines:
        cell = line["cell"]
        groups[cell["landscape"]][cell["strategy"]][cell["passes"]].append(line)
    return groups


def _beside_default(strategies: Mapping[str, Mapping[float, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """A line per strategy: regret less that of `ga`, mean and standard error over the seeds that both have run."""
    lines = []
    for name, cells in strategies.items():
        for passes, runs in cells.items():
            regrets, default = (
                {run["cell"]["seed"]: 100 * run["regret"] for run in of}
                for of in (runs, strategies.get("ga", {}).get(passes, []))
            )
            differences = np.array([regrets[seed] - default[seed] for seed in regrets if seed in default])
            if name != "ga" and len(differences) > 1:
                error = differences.std(ddof=1) / np.sqrt(len(differences))
                mean = differences.mean()
                lines.append(f"{name} less ga, {passes:g} passes, {len(differences)} pairs: {mean:+.3f} ({error:.3f})")
    return lines


def _told(regrets: Sequence[float] | NDArray[np.float64]) -> str:
    values = 100 * np.asarray(regrets)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.2f} ({error:.2f}; {np.quantile(values, 0.9):.2f}; {values.max():.2f})"
