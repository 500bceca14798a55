"""One page of several runs: their convergence together, what each found, what it cost, and which settings differ."""

from __future__ import annotations

from collections.abc import Sequence

from genetic_algorithm.differences import differences
from genetic_algorithm.errors import SearchError
from genetic_algorithm.progress import spell_seconds
from genetic_algorithm.report import plot_progress
from genetic_algorithm.report.page import measure_of, page
from genetic_algorithm.report.reading import RunDocuments, damage_told
from genetic_algorithm.report.sections import CHOSE, figure, flattened
from genetic_algorithm.report.words import (
    NONE,
    Measure,
    count,
    escaped,
    layers_of,
    number,
    plural,
    shortened,
    signed,
    table,
    with_error,
)


def render(runs: Sequence[RunDocuments]) -> str:
    """The page.

    Raises:
        SearchError: if a document is damaged.
    """
    names = labels(runs)
    told = [_damage_named(run) for run in runs]
    title = f"{plural(len(runs), 'search')} compared".replace("searchs", "searches")
    body = f"<section>\n<h2>What was found</h2>\n{_found(runs, names, told)}</section>\n"
    for measure in dict.fromkeys(told):
        drawn = [(run, name) for run, name, of in zip(runs, names, told, strict=True) if of == measure]
        curves = [
            plot_progress.curve(shortened(name), run.data, measure)
            for run, name in drawn
            if run.data and run.data["track"]["points"]
        ]
        if curves:
            caption = (
                "The score of the set that led after so many question-evaluations, on the questions it had answered "
                "then, with 95 % intervals. The best of many flatters; what counts is the hold-out in the table."
            )
            drawing = figure(caption, plot_progress.convergences, curves, measure)
            body += f"<section>\n<h2>Convergence, {escaped(measure.short)}</h2>\n{drawing}</section>\n"
    body += f"<section>\n<h2>Cost</h2>\n{_cost(runs, names)}</section>\n"
    body += f"<section>\n<h2>Settings that differ</h2>\n{_settings(runs, names)}</section>\n"
    head = f'<header>\n<p class="kicker">GA Layer Search</p>\n<h1>{escaped(title)}</h1>\n</header>\n'
    return page(title, f"{head}<main>\n{body}</main>\n")


def labels(runs: Sequence[RunDocuments]) -> list[str]:
    """The folder's name of each run, as much of the path before it as tells them apart, and else a number."""
    depth = 1
    while depth < 6:
        names = ["/".join(run.paths.folder.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return names
        depth += 1
    return [f"{i}: {run.paths.folder.name}" for i, run in enumerate(runs, 1)]


def _damage_named(run: RunDocuments) -> Measure:
    with damage_told(run.paths.folder):
        return measure_of(run)


def _found(runs: Sequence[RunDocuments], names: Sequence[str], measures: Sequence[Measure]) -> str:
    rows = []
    for run, name, measure in zip(runs, names, measures, strict=True):
        with damage_told(run.paths.folder):
            if run.result is None:
                rows.append([escaped(name), "not over", "nothing yet", *[NONE] * 6])
                continue
            best, base = run.result["final_results"][0], run.result["base"]
            held = measure.part(best, "holdout")
            of_base = None if base is None else measure.part(base, "holdout") or measure.chosen(base)
            gain = next((one for one in run.result["comparisons"] if not one["against"]), None)
            rows.append(
                [
                    escaped(name),
                    "over" if run.is_over else "not over",
                    escaped(run.name),
                    layers_of(best["layers"]),
                    f"{with_error(*measure.chosen(best))} ({count(best['questions'])})",
                    f"{with_error(*held)} ({count(best['holdout_questions'])})" if held else NONE,
                    with_error(*(of_base or (None, None))),
                    f"{signed(gain['difference'])} ± {gain['standard_error']:.3f}" if gain else NONE,
                    escaped(measure.short),
                ]
            )
    head = [
        "run",
        "state",
        "of",
        "layers",
        f"{CHOSE} (how many)",
        "hold-out (how many)",
        "base",
        "gain, paired",
        "score",
    ]
    return table(head, rows, words=(0, 1, 2, 3, 8))


def _cost(runs: Sequence[RunDocuments], names: Sequence[str]) -> str:
    rows = []
    for run, name in zip(runs, names, strict=True):
        with damage_told(run.paths.folder):
            usage = run.result["usage"]["in_all"] if run.result else None
            if usage is None:
                done = count(run.data["question_evaluations"]) if run.data else NONE
                rows.append([escaped(name), NONE, done, NONE, NONE])
                continue
            passes, seconds = number(usage["full_passes"], 1), spell_seconds(usage["seconds"])
            sets, evaluations = count(usage["new_layer_sets"]), count(usage["question_evaluations"])
            rows.append([escaped(name), sets, evaluations, passes, seconds])
    return table(["run", "layer sets", "question-evaluations", "passes", "time of evaluation"], rows)


def _settings(runs: Sequence[RunDocuments], names: Sequence[str]) -> str:
    first = runs[0].config["run"]
    differing = dict.fromkeys(name for run in runs[1:] for name, _, _ in differences(first, run.config["run"]))
    if not differing:
        return "<p>None: these runs have the same settings.</p>\n"
    settings = [dict(flattened(run.config["run"])) for run in runs]
    leaves = dict.fromkeys(
        leaf for of in settings for leaf in of if any(leaf == name or leaf.startswith(f"{name}.") for name in differing)
    )
    rows = [[escaped(leaf), *(escaped(of.get(leaf, NONE)) for of in settings)] for leaf in leaves]
    return table(["setting", *map(escaped, names)], rows, words=range(len(runs) + 1))


def check_number(runs: Sequence[RunDocuments]) -> None:
    """Refuse what cannot be drawn on one page.

    Raises:
        SearchError: if a folder is named twice.
    """
    folders = [run.paths.folder for run in runs]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise SearchError(f"{twice} is named twice; name each run once")
