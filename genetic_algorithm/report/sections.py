"""The parts of the page of one run that are words and tables, each a function of its documents."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from genetic_algorithm.progress import spell_seconds
from genetic_algorithm.report.reading import RunDocuments
from genetic_algorithm.report.words import (
    CHOSE,
    NONE,
    Measure,
    count,
    escaped,
    layers_of,
    number,
    p_value,
    plural,
    sentence,
    table,
    verbatim,
    with_error,
)

_MOST_LETTERS = 300  # of a setting
_LONGEST_COMMAND = 100


def asked(run: RunDocuments, measure: Measure) -> str:
    """What was asked, in words."""
    search, data = run.search, run.data
    aim = f"{'highest' if measure.sign > 0 else 'least'} {measure.short}"
    said = [f"Which layers of <b>{escaped(run.name)}</b> should be replaced by the donor's for the {aim}?"]
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
        plural(search[name], *units)
        for name, *units in (
            ("max_passes", "pass over all questions", "passes over all questions"),
            ("max_questions", "question-evaluation"),
            ("max_hours", "hour"),
        )
        if search.get(name)
    ]
    said.append(
        f"Strategy <b>{escaped(search['strategy'])}</b>, seed {escaped(search['seed'])}, "
        f"{'at most ' + ' and '.join(budget) if budget else 'no budget'}."
    )
    sizes = (data or run.result or {})["questions"]
    said.append(_questions(sizes, has_final=search["strategy"] == "ga-original"))
    if data:
        evaluations = data["question_evaluations"]
        passes = evaluations / max(1, sizes["in_all"])
        base = ", the base among them," if run.result and run.result["base"] else ""
        said.append(
            f"{plural(data['asked_sets'], 'set')}{base} {'was' if data['asked_sets'] == 1 else 'were'} asked, in "
            f"{plural(evaluations, 'question-evaluation')} (each one question answered by one set), "
            f"as many as {passes:.1f} passes over all questions."
        )
    return f"<p>{' '.join(said)}</p>\n"


def _questions(sizes: dict[str, Any], *, has_final: bool) -> str:
    """How many questions there are, and how many of them a set answers."""
    held = sizes["holdout"]
    told = f"{count(held)} of them held out, which never choose" if held else "none of them held out"
    said = [f"There are {plural(sizes['in_all'], 'question')}, {told}."]
    first, *more = dict.fromkeys(map(count, sizes.get("rungs") or (sizes["fast"], sizes["full"])))
    others = "the others" if held else "them"
    if more:
        ladder = f"{', '.join(more[:-1])} and at most {more[-1]}" if more[1:] else f"at most {more[-1]}"
        said.append(
            f"A set first answers {first} of {others} (the fast look), and more where it is promising: {ladder}."
        )
    else:
        said.append(f"A set answers {first} of {others}.")
    if has_final and sizes["final"]:
        said.append(f"Leaders that these cannot tell apart answer {count(sizes['final'])}.")
    return " ".join(said)


def found(run: RunDocuments, measure: Measure) -> str:
    """What was found: the ranking, and how it is made."""
    result = run.result
    if result is None:
        return "<p>No layer set is ranked yet.</p>\n"
    beside = {name: result.get(name) for name in ("base", "donor")}
    entries = [*result["final_results"], *(entry | {"rank": name} for name, entry in beside.items() if entry)]
    has_estimates = any(entry.get("estimate") is not None for entry in entries)
    shown = {
        name: title
        for name, title in (("holdout", "hold-out"), ("full", "all questions"))
        if any(measure.part(entry, name) for entry in entries)
    }
    head = ["rank", "layers", *(["estimate"] if has_estimates else []), f"{measure.short}, {CHOSE}", "how many"]
    head += [*(f"{measure.short}, {title}" for title in shown.values()), "p against the best"]
    of_base = next((one["p_value"] for one in result["comparisons"] if not one["against"]), None)
    rows = []
    for entry in entries:
        parts = [measure.part(entry, name) for name in shown]
        has_chosen = entry["part"] != "holdout"  # the donor is asked the hold-out alone
        estimate = entry.get("estimate")
        p_best = of_base if entry["rank"] == "base" else entry.get("p_value_vs_best")
        rows.append(
            [
                escaped(entry["rank"]),
                _named(entry),
                *([number(None if estimate is None else measure.sign * estimate)] if has_estimates else []),
                with_error(*measure.chosen(entry)) if has_chosen else NONE,
                count(entry["questions"]) if has_chosen else NONE,
                *(with_error(*(part or (None, None))) for part in parts),
                NONE if p_best is None else p_value(p_best),
            ]
        )
    who = "the two best, the best of each smaller count, the base and the donor"
    held = f" The hold-out took no part in the choice; only {who} answer it." if "holdout" in shown else ""
    note = (
        f"<p class=note>{sentence(result['ranked_by'])} Scores on the {CHOSE} flatter the best sets a little; those on "
        f" different numbers of questions do not compare.{held} p-values are of paired tests, here not corrected for "
        "their number, on the hold-out, or where that was not asked of both on all questions that both answered; the "
        "donor is not tested.</p>"
    )
    return table(head, rows, words=(0, 1)) + note


def _named(entry: dict[str, Any]) -> str:
    """The layers of a row; the winner's stand out, and the donor's are all there are."""
    if entry["rank"] == "donor":
        return "all"
    return f"<b>{layers_of(entry['layers'])}</b>" if entry["rank"] == 1 else layers_of(entry["layers"])


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
    donor = run.result and run.result.get("donor")
    note = "<p class=note>What the donor itself was asked, when the search was over, is not counted.</p>\n"
    return table(head, rows) + (note if donor else "")


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
    made = f"../model_checkpoints/best_of_{run.paths.result.parent.name}"
    create = ["create_replaced_model_checkpoint.py", "--from_result", str(run.paths.result), "--output_dir", made]
    test = ["test_checkpoint.py", "--checkpoint", made, "--full_eval", "--limit", "100"]
    text = "\n".join(["cd model_preparation/", *(_command(["python", *words]) for words in (create, test))])
    where = "In the folder of the project and the environment that its set-up made"
    return f"<p>{where}, this makes the checkpoint and tests it:</p>\n{_code(text)}"


def configuration(run: RunDocuments, measure: Measure) -> str:
    """All that remakes the search."""
    command = [str(part) for part in run.config.get("command", [])]
    text = _command(["python", "-m", f"genetic_algorithm.{command[0]}", *command[1:]]) if command else ""
    versions = (run.result or {}).get("versions") or run.config.get("versions") or {}
    conditions = (run.result or {}).get("conditions")
    return (
        (_code(text) if text else "")
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


def _command(words: Sequence[str]) -> str:
    """A command to be pasted; a long one has a line for each option."""
    text = shlex.join(words)
    if len(text) <= _LONGEST_COMMAND:
        return text
    lines = [""]
    for word in words:
        if word.startswith("--"):
            lines.append("   ")
        lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines).lstrip()


def _code(text: str) -> str:
    return f"<pre><code>{verbatim(text)}</code></pre>\n"
