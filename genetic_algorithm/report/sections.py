"""The parts of the page of one run, each a function of its documents; one that has nothing to say is empty."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from genetic_algorithm.progress import spell_seconds
from genetic_algorithm.report import plot_beside, plot_layers, plot_progress
from genetic_algorithm.report.reading import RunDocuments
from genetic_algorithm.report.words import (
    MINUS,
    NONE,
    Measure,
    count,
    escaped,
    layers_of,
    number,
    p_value,
    plural,
    sentence,
    signed,
    table,
    with_error,
)

_MOST_LETTERS = 300  # of a setting
_PARTS = {"fast": "fast look", "full": "full", "final": "final"}
CHOSE = "questions that chose"


def figure(caption: str, draw: Callable[..., str], *arguments: Any) -> str:
    """A drawing with its caption, which is HTML; without matplotlib, a line in its place."""
    try:
        drawing = draw(*arguments)
    except ImportError:
        drawing = "<p class=missing>No drawing: matplotlib is not installed here.</p>"
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>\n"


def asked(run: RunDocuments, measure: Measure) -> str:
    """What was asked, in words."""
    search, data = run.search, run.data
    aim = f"{'highest' if measure.sign > 0 else 'least'} {measure.short}"
    said = [f"Which layers of <b>{escaped(run.name)}</b> should run the donor's block for the {aim}?"]
    if data:
        low, high = data["layer_counts"]
        counts = plural(low, "layer") if low == high else f"{low} to {high} layers"
        said.append(
            f"Sets of {counts} out of {data['num_layers']} were allowed: {count(data['possible_sets'])} in all."
        )
        for name, verb in (("must_include", "Every set holds"), ("forbidden", "No set holds")):
            if data[name]:
                said.append(f"{verb} {escaped(', '.join(map(str, data[name])))}.")
    budget = [
        f"{count(search[name])} {unit}"
        for name, unit in (("max_questions", "question-evaluations"), ("max_hours", "hours"))
        if search.get(name)
    ]
    if search.get("max_passes"):
        budget.insert(0, f"{search['max_passes']:g} passes over all questions")
    said.append(
        f"Strategy <b>{escaped(search['strategy'])}</b>, seed {escaped(search['seed'])}, "
        f"{'at most ' + ' and '.join(budget) if budget else 'no budget'}."
    )
    sizes = (data or run.result or {})["questions"]
    held = sizes["holdout"]
    told = f"{count(held)} of them held out, which never choose" if held else "none of them held out"
    said.append(
        f"There are {count(sizes['in_all'])} questions, {told}; a first look takes {count(sizes['fast'])}, "
        f"the ranking {count(max(sizes['full'], sizes['final']))}."
    )
    if data:
        evaluations = data["question_evaluations"]
        passes = evaluations / max(1, sizes["in_all"])
        said.append(
            f"{plural(data['asked_sets'], 'set')} {'was' if data['asked_sets'] == 1 else 'were'} asked, in "
            f"{count(evaluations)} question-evaluations ({passes:.1f} passes)."
        )
    return f"<p>{' '.join(said)}</p>\n"


def found(run: RunDocuments, measure: Measure) -> str:
    """What was found: the ranking, and how it is made."""
    result = run.result
    if result is None:
        return "<p>No layer set is ranked yet.</p>\n"
    entries = [*result["final_results"], *([result["base"] | {"rank": "base"}] if result["base"] else [])]
    has_estimates = any(entry.get("estimate") is not None for entry in entries)
    head = ["rank", "layers", *(["estimate"] if has_estimates else []), f"{measure.short}, {CHOSE}", "on"]
    head += [f"{measure.short}, hold-out", f"{measure.short}, all", "p against the best"]
    rows = []
    for entry in entries:
        parts = [measure.part(entry, name) for name in ("holdout", "full")]
        estimate = entry.get("estimate")
        p_best = entry.get("p_value_vs_best")
        rows.append(
            [
                escaped(entry["rank"]),
                f"<b>{layers_of(entry['layers'])}</b>" if entry["rank"] == 1 else layers_of(entry["layers"]),
                *([number(None if estimate is None else measure.sign * estimate)] if has_estimates else []),
                with_error(*measure.chosen(entry)),
                f"{count(entry['questions'])} {escaped(_PARTS.get(entry['part'], entry['part']))}",
                *(with_error(*(part or (None, None))) for part in parts),
                NONE if p_best is None else p_value(p_best),
            ]
        )
    note = (
        f"<p class=note>{sentence(result['ranked_by'])} Scores on the {CHOSE} flatter the best sets a little; those on "
        " different numbers of questions do not compare. The hold-out took no part in the choice; all: on every "
        "question there is. p-values are of paired tests, here not corrected for their number, on the hold-out, or "
        "where that was not asked of both on all questions that both answered.</p>"
    )
    return table(head, rows, words=(0, 1)) + note


def convergence(run: RunDocuments, measure: Measure) -> str:
    """Who led after how many questions."""
    data = run.data
    if not data or not data["track"]["points"]:
        return ""
    caption = (
        "The best set on the most questions, after so many question-evaluations. Circles: its score as it was then, on "
        "the questions it had answered then; being the best of many, such scores flatter, most of all at the "
        "beginning. Line: what a model of all answers given since expects of the set that led then."
    )
    if noise := data["noise"]:
        caption += (
            f" Grey: within {noise['bound']:.3f} (1.96 paired standard errors of the two best, "
            f"{count(noise['questions'])} questions that chose) sets cannot be told from the leader."
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
        f"The best set of each layer count, with 95 % intervals: on the {CHOSE} (circles, which flatter a little) and, "
        "where it was asked, on the hold-out (diamonds). The line joins counts whose best set is better than that of "
        "every smaller count. Bars: all sets of that count on the fast look, range, middle half and median."
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
    head += ["p, corrected", "questions of p", "on the front"]
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
        f"Above: what each layer adds to the base alone, in {means}; from a Gaussian process over sets, fitted to all "
        "answers of the questions that chose, with 95 % intervals of its posterior. Open circles cannot be told from "
        f"0; layers that no set held are left out. Below: how many of the {data['frequency']['best']} best sets "
        "hold it, and, as dashes, how many of all that were asked."
    )
    heat = (
        f"What two layers add together beyond what each adds alone, in {scale}, from the same model. "
        f"The darker the larger, up to {plot_layers.darkest(data):.2f}; blue for more and rust for less than the sum. "
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
    head = ["layers", "held by, of the best quarter", "sets with them beside the average set", f"alone, {scale}"]
    note = (
        "<p class=note>Layers that the best quarter of the sets share, on the fast look. The third column is a mean "
        "over the sets the search chose to ask, so it has no standard error; the last is the model's, with its own.</p>"
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


def cost(run: RunDocuments, measure: Measure) -> str:
    """Time and questions per stage."""
    usage = run.result["usage"] if run.result else {}
    rows = []
    for stage, of in usage.items():
        evaluations, seconds = of["question_evaluations"], of["seconds"]
        pace = f"{evaluations / seconds:,.0f}" if seconds else NONE
        name = "in all" if stage == "in_all" else stage
        rows.append([escaped(name), count(of["new_layer_sets"]), count(evaluations), spell_seconds(seconds), pace])
    if not rows:
        return ""
    head = ["stage", "new layer sets", "question-evaluations", "time of evaluation", "questions per second"]
    return table(head, rows)


def failures(run: RunDocuments, measure: Measure) -> str:
    """Sets that could not be evaluated."""
    failed = (run.data or run.result or {}).get("failed", [])
    if not failed:
        return ""
    named = ", ".join(layers_of(layers) for layers in failed[:20]) + (", …" if len(failed) > 20 else "")
    one = len(failed) == 1
    return (
        f"<p>{plural(len(failed), 'layer set')} could not be evaluated and {'was' if one else 'were'} left out: "
        f"{named}. The log says why; with <code>--retry-failed</code> the search asks again.</p>\n"
    )


def checkpoint(run: RunDocuments, measure: Measure) -> str:
    """The command that makes the model."""
    if not run.is_over or run.result is None:
        return "<p>When the search is over, the command that makes the checkpoint stands here.</p>\n"
    if not run.evaluator.get("pair"):
        return (
            "<p>The search asked an evaluator of your own, so there is no pair of models to make a checkpoint of.</p>\n"
        )
    size = len(run.result["final_results"][0]["layers"])
    result = shlex.quote(str(run.paths.result))
    lines = [
        "cd model_preparation/",
        f"python create_replaced_model_checkpoint.py --from_result {result} "
        f"--output_dir ../model_checkpoints/best_{size}layer",
        f"python test_checkpoint.py --checkpoint ../model_checkpoints/best_{size}layer --full_eval --limit 100",
    ]
    text = "\n".join(map(escaped, lines))
    return f"<p>In the folder of the project, this makes the checkpoint and tests it:</p>\n{_code(text)}"


def configuration(run: RunDocuments, measure: Measure) -> str:
    """All that remakes the search."""
    command = [str(part) for part in run.config.get("command", [])]
    text = shlex.join(["python", "-m", f"genetic_algorithm.{command[0]}", *command[1:]]) if command else ""
    versions = (run.result or {}).get("versions") or run.config.get("versions") or {}
    conditions = (run.result or {}).get("conditions")
    return (
        (_code(escaped(text)) if text else "")
        + _leaves("what", "version", versions)
        + f"<details><summary>Every setting</summary>{_leaves('setting', 'value', run.config['run'])}</details>"
        + f"<details><summary>What shapes an answer</summary>{_leaves('condition', 'value', conditions)}</details>"
    )


def _leaves(name: str, value: str, document: Any) -> str:
    rows = [[escaped(key), escaped(of)] for key, of in flattened(document)]
    return table([name, value], rows, words=(0, 1), is_wide=True)


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and JSON value of each leaf, long ones cut short."""
    if isinstance(value, dict) and value:
        for key, of in value.items():
            yield from flattened(of, f"{name}.{key}" if name else str(key))
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    yield name, text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"


def _code(text: str) -> str:
    return f'<div class="scroll" tabindex="0"><pre><code>{text}</code></pre></div>\n'
