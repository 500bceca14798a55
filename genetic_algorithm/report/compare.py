"""One page of several runs: their convergence together, what each found, what it cost, and which settings differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genetic_algorithm.errors import SearchError
from genetic_algorithm.progress import spell_seconds
from genetic_algorithm.report import plot_progress
from genetic_algorithm.report.page import measure_of, page
from genetic_algorithm.report.reading import RunDocuments, damage_told
from genetic_algorithm.report.sections import flattened
from genetic_algorithm.report.sections_drawn import figure
from genetic_algorithm.report.words import (
    CHOSE,
    NONE,
    Measure,
    count,
    escaped,
    layers_of,
    number,
    shortened,
    signed,
    table,
    with_error,
)

_FOUND = ("run", "state", "of", "layers", f"{CHOSE} (how many)", "hold-out (how many)", "base", "gain, paired", "score")
_COST = ("run", "layer sets", "question-evaluations", "passes", "time of evaluation")


@dataclass(frozen=True, slots=True)
class _Compared:
    """What the page says of one run: cells are HTML, settings text by dotted name."""

    measure: Measure
    curve: plot_progress.Curve | None
    found: list[str]
    cost: list[str]
    settings: dict[str, str]


def render(runs: Sequence[RunDocuments]) -> str:
    """The page.

    Raises:
        SearchError: if a run is named twice, or a document is damaged.
    """
    folders = [run.paths.folder for run in runs]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise SearchError(f"{twice} is named twice; name each run once")
    names = labels(runs)
    told = [_compared(run, name) for run, name in zip(runs, names, strict=True)]
    sections = [("What was found", table(_FOUND, [of.found for of in told], words=(0, 1, 2, 3, 8)))]
    for measure in dict.fromkeys(of.measure for of in told):
        if curves := [of.curve for of in told if of.curve and of.measure == measure]:
            caption = (
                "The score of the set that led after so many question-evaluations, on the questions it had answered "
                "then, with 95 % intervals. The best of many flatters; what counts is the hold-out in the table."
            )
            drawing = figure(caption, plot_progress.convergences, f"convergences{len(sections)}", curves, measure)
            sections.append((f"Convergence, {measure.short}", drawing))
    sections.append(("Cost", table(_COST, [of.cost for of in told])))
    sections.append(("Settings that differ", _settings([of.settings for of in told], names)))
    body = "".join(f"<section>\n<h2>{title}</h2>\n{text}</section>\n" for title, text in sections)
    title = f"{len(runs)} searches compared"
    head = f'<header>\n<p class="kicker">GA Layer Search</p>\n<h1>{title}</h1>\n</header>\n'
    return page(title, f"{head}<main>\n{body}</main>\n", runs="RUN RUN...")


def labels(runs: Sequence[RunDocuments]) -> list[str]:
    """The folder's name of each run, with as much of the path before it as tells them apart."""
    deepest = max(len(run.paths.folder.parts) for run in runs)
    for depth in range(1, deepest + 1):
        names = ["/".join(run.paths.folder.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            break
    return names


def _compared(run: RunDocuments, name: str) -> _Compared:
    with damage_told(run.paths.folder):
        measure = measure_of(run)
        has_track = bool(run.data and run.data["track"]["points"])
        curve = plot_progress.curve(shortened(name), run.data, measure) if run.data and has_track else None
        settings = dict(flattened(run.config["run"]))
        return _Compared(measure, curve, _found(run, name, measure), _cost(run, name), settings)


def _found(run: RunDocuments, name: str, measure: Measure) -> list[str]:
    state, result = "over" if run.is_over else "not over", run.result
    row = [escaped(name), state, escaped(run.name)]
    if result is None:
        return [*row, "none yet", *[NONE] * 4, escaped(measure.short)]
    best, base = result["final_results"][0], result["base"]
    held = measure.part(best, "holdout")
    of_base = None if base is None else measure.part(base, "holdout") or measure.chosen(base)
    gain = next((one for one in result["comparisons"] if not one["against"]), None)
    return [
        *row,
        layers_of(best["layers"]),
        f"{with_error(*measure.chosen(best))} ({count(best['questions'])})",
        f"{with_error(*held)} ({count(best['holdout_questions'])})" if held else NONE,
        with_error(*(of_base or (None, None))),
        f"{signed(gain['difference'])} ± {gain['standard_error']:.3f}" if gain else NONE,
        escaped(measure.short),
    ]


def _cost(run: RunDocuments, name: str) -> list[str]:
    if run.result is None:
        return [escaped(name), NONE, count(run.data["question_evaluations"]) if run.data else NONE, NONE, NONE]
    usage = run.result["usage"]["in_all"]
    sets, evaluations = count(usage["new_layer_sets"]), count(usage["question_evaluations"])
    return [escaped(name), sets, evaluations, number(usage["full_passes"], 1), spell_seconds(usage["seconds"])]


def _settings(settings: Sequence[dict[str, str]], names: Sequence[str]) -> str:
    every = dict.fromkeys(name for of in settings for name in of)
    differing = [name for name in every if len({of.get(name) for of in settings}) > 1]
    if not differing:
        return "<p>None: these runs have the same settings.</p>\n"
    rows = [[escaped(name), *(escaped(of.get(name, NONE)) for of in settings)] for name in differing]
    return table(["setting", *map(escaped, names)], rows, words=range(len(settings) + 1), is_wide=True)
