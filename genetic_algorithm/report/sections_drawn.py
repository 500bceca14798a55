"""The parts of the page of one run that have drawings, each a function of its documents; empty where none is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from genetic_algorithm.report import plot_beside, plot_layers, plot_progress
from genetic_algorithm.report.reading import RunDocuments
from genetic_algorithm.report.words import (
    CHOSE,
    MINUS,
    NONE,
    Measure,
    count,
    escaped,
    layers_of,
    number,
    p_value,
    plural,
    signed,
    table,
    with_error,
)


def figure(caption: str, draw: Callable[..., str], *arguments: Any) -> str:
    """A drawing with its caption, which is HTML; without matplotlib, a line in its place."""
    try:
        drawing = draw(*arguments)
    except ImportError:
        drawing = "<p class=missing>No drawing: matplotlib is not installed here.</p>"
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>\n"


def convergence(run: RunDocuments, measure: Measure) -> str:
    """Who led after how many questions."""
    data = run.data
    if not data or not data["track"]["points"]:
        return ""
    caption = (
        "The set with the highest score of those asked most, after so many question-evaluations; dotted lines: where "
        "another stage of the search begins. Circles: its score as it was then, on the questions it had answered then; "
        "being the best of many, such scores flatter, most of all at the "
        "beginning. Line: what a model of all answers given since expects of the set that led then."
    )
    if noise := data["noise"]:
        caption += (
            f" Grey: within {noise['bound']:.3f} (1.96 paired standard errors of the two best, "
            f"{plural(noise['questions'], 'question')} that chose) sets cannot be told from the leader."
        )
    if run.result and measure.part(run.result["final_results"][0], "holdout"):
        caption += " The diamond is of other questions, which may be harder or easier."
    return figure(caption, plot_progress.convergence, data, run.result, measure)


def layer_counts(run: RunDocuments, measure: Measure) -> str:
    """What more layers bring."""
    result = run.result
    best = {int(size): entry for size, entry in result["best_per_layer_count"].items() if entry} if result else {}
    if result is None or not best:
        return ""
    caption = (
        f"The best set that the search found of each layer count, with 95 % intervals: on the {CHOSE} (circles, which "
        "flatter a little) and, where it was asked, on the hold-out (diamonds). The line joins counts whose best set "
        "is better than that of every smaller count. Bars: all sets of that count on the fast look, range, middle "
        "half and median; a dash alone is of one set. A bar may reach beyond its circle: the best set is the first in"
        " the ranking, which need not be the one with the best score on the few questions of the fast look."
    )
    rows = []
    for size, entry in sorted(best.items()):
        more = entry.get("more_layers")
        rows.append(
            [
                str(size),
                layers_of(entry["layers"]),
                with_error(*measure.chosen(entry)),
                with_error(*(measure.part(entry, "holdout") or (None, None))),
                f"{signed(measure.sign * more['difference'])} ± {more['standard_error']:.3f}" if more else NONE,
                p_value(more["p_value_corrected"]) if more else NONE,
                NONE if not more else "hold-out" if not more["questions_also_chose"] else "also chose",
                "yes" if entry.get("on_pareto_front") else "no",
            ]
        )
    head = ["layers", "best set", f"{measure.short}, {CHOSE}", "hold-out", "more than the next smaller count"]
    head += ["p, corrected", "questions of p", "on the line"]
    drawing = figure(caption, plot_progress.layer_counts, run.data, result, measure)
    return drawing + table(head, rows, words=(1, 6))


def layers(run: RunDocuments, measure: Measure) -> str:
    """Which layers matter, by the model and by count."""
    data = run.data
    if not data or "effects" not in data:
        return ""
    scale = data["effects"]["scale"]
    means = (
        "log-odds of a right answer: +0.4 lifts an accuracy of 0.50 to 0.60"
        if scale == "log-odds"
        else "the square root of nats by which the divergence falls"
    )
    caption = (
        f"Above: what each layer by itself adds to the base, in {means}; from a Gaussian process over sets, fitted to "
        "all answers of the questions that chose, with 95 % intervals of its posterior. Open circles cannot be told "
        f"from 0; layers that no set held are left out. Below: how many of the {data['frequency']['best']} best sets "
        "hold it, and, as dashes, how many of all that were asked."
    )
    heat = (
        f"What two layers add together beyond what each adds alone, in {scale}, from the same model. "
        f"The stronger the colour the larger, up to {plot_layers.strongest(data):.2f}; blue for more, rust for less. "
        f"+ and {MINUS} mark those whose 95 % interval leaves 0 out; all others cannot be told from 0. Effects are "
        "drawn together by their common prior, which guards against chance finds among many. A dot: never asked "
        "together."
    )
    drawings = figure(caption, plot_layers.layers, data) + figure(heat, plot_layers.interactions, data)
    clear = sorted((e for e in plot_layers.pairs(data) if plot_layers.is_clear(e)), key=lambda e: -abs(e[1]))[:12]
    rows = [[layers_of(pair), with_error_signed(mean, deviation)] for pair, mean, deviation in clear]
    listed = table(["pair", f"beyond the sum, {scale}"], rows) if rows else ""
    told = "The clearest pairs" if rows else "No pair of layers has an interaction that is told from 0."
    singles = [[layers_of(one), with_error_signed(mean, sd)] for one, mean, sd in plot_layers.singles(data)]
    every = table(["layer", f"effect alone, {scale}"], singles)
    return (
        drawings
        + (f"<h3>{told}</h3>{listed}" if rows else f"<p>{told}</p>")
        + f"<details><summary>Every layer in figures</summary>{every}</details>"
    )


def with_error_signed(value: float, error: float) -> str:
    """`+0.31 ± 0.05`."""
    return f"{signed(value, 2)} ± {error:.2f}"


def patterns(run: RunDocuments, measure: Measure) -> str:
    """Groups of layers that good sets share."""
    data = run.data
    if not data or not data["patterns"]:
        return ""
    best = data["frequency"]["best"]
    gains = data.get("effects", {}).get("patterns") or [None] * len(data["patterns"])
    rows = [
        [
            layers_of(pattern["layers"]),
            f"{100 * pattern['frequency']:.0f} %",
            signed(pattern["gain"]),
            NONE if gain is None else with_error_signed(*gain),
        ]
        for pattern, gain in zip(data["patterns"], gains, strict=True)
    ]
    scale = data.get("effects", {}).get("scale", "")
    head = ["layers", f"held by, of the {best} best sets", f"gain in {measure.short} of sets with them"]
    head += [f"added to the base, {scale}"]
    least = data.get("patterns_least", 2)
    note = (
        f"<p class=note>One to three layers that the {best} best sets share, the heaviest first: by share times gain. "
        f"Those that fewer than {least} of these sets hold are left out. Gain: the mean of all asked sets that hold "
        "them less that of all, on the fast look; the search chose whom to ask, so it has no standard error. The last "
        "column is what the model expects these layers, and no others, to add to the base.</p>"
    )
    return table(head, rows) + note


def subjects(run: RunDocuments, measure: Measure) -> str:
    """The winner beside the base, subject by subject."""
    per_subject = run.result["per_subject"] if run.result else None
    if not per_subject or any("gain_interval" not in row for row in per_subject["subjects"]):
        return ""
    where = "that also chose" if per_subject["questions_also_chose"] else "of the hold-out"
    caption = (
        f"Accuracy of {layers_of(per_subject['layers'])} less that of the base in each subject, on questions {where}, "
        "with 95 % intervals of paired answers. Open circles cannot be told from 0. Of many subjects, one in twenty "
        "lies outside its interval by chance."
    )
    rows = [
        [
            escaped(row["subject"]),
            count(row["questions"]),
            number(row["base_accuracy"]),
            number(row["accuracy"]),
            f"{signed(row['accuracy'] - row['base_accuracy'])} ± {row['gain_standard_error']:.3f}",
        ]
        for row in per_subject["subjects"]
    ]
    every = table(["subject", "questions", "base", "winner", "gain"], rows)
    drawing = figure(caption, plot_beside.subjects, per_subject)
    return drawing + f"<details><summary>Every subject in figures</summary>{every}</details>"


def rivals(run: RunDocuments, measure: Measure) -> str:
    """The paired comparisons of the finalists."""
    compared = run.result["comparisons"] if run.result else []
    if not compared:
        return ""
    caption = (
        "The winner less each rival on the same questions, with 95 % intervals. Open circles cannot be told from 0."
    )
    if len(compared) > 1:
        caption += " The base, far off, is in the table."
    rows = []
    for one in compared:
        low, high = one["interval"]
        rows.append(
            [
                f"{layers_of(one['against'])} ({escaped(', '.join(one['roles']))})",
                f"{signed(one['difference'])} ± {one['standard_error']:.3f}",
                f"{signed(low)} to {signed(high)}",
                p_value(one["p_value"]),
                p_value(one["p_value_corrected"]),
                "better" if one["established"] else "not established",
                f"{count(one['questions'])} {'that also chose' if one['questions_also_chose'] else 'of the hold-out'}",
            ]
        )
    head = ["against", "difference", "95 % interval", "p", "p, corrected", "the winner is", "questions"]
    more = " of minus the divergence" if measure.sign < 0 else ""
    note = (
        f"<p class=note>Differences{more} of paired answers; p-values of paired tests, corrected by Holm's "
        "method for all of this list together.</p>"
    )
    return figure(caption, plot_beside.rivals, compared) + table(head, rows, words=(0, 5, 6)) + note
