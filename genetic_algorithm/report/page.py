"""The page of one run: one HTML file without scripts, without anything that is loaded from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from genetic_algorithm.progress import spell_seconds
from genetic_algorithm.report import sections, sections_drawn
from genetic_algorithm.report.reading import RunDocuments, damage_told
from genetic_algorithm.report.style import STYLE
from genetic_algorithm.report.words import CHOSE, Measure, count, escaped, layers_of, plural, signed, with_error

RELOAD_S = 60
"""After which a page of a search that goes on loads itself anew."""
_SECTIONS: tuple[tuple[str, Callable[[RunDocuments, Measure], str]], ...] = (
    ("What was asked", sections.asked),
    ("What was found", sections.found),
    ("Convergence", sections_drawn.convergence),
    ("What more layers bring", sections_drawn.layer_counts),
    ("Which layers matter", sections_drawn.layers),
    ("Patterns that good sets share", sections_drawn.patterns),
    ("Subject by subject", sections_drawn.subjects),
    ("The winner beside its rivals", sections_drawn.rivals),
    ("Time and questions", sections.cost),
    ("Sets that failed", sections.failures),
    ("The checkpoint", sections.checkpoint),
    ("Configuration and versions", sections.configuration),
)


def render(run: RunDocuments) -> str:
    """The page.

    Raises:
        SearchError: if a document of the run is damaged.
    """
    with damage_told(run.paths.folder):
        measure = measure_of(run)
        parts = [(title, section(run, measure)) for title, section in _SECTIONS]
        body = "".join(f"<section>\n<h2>{title}</h2>\n{text}</section>\n" for title, text in parts if text)
        title = f"{run.name}: {_winner(run)}"
        return page(
            title, _header(run, measure) + f"<main>\n{body}</main>\n", reload_s=None if run.is_over else RELOAD_S
        )


def page(title: str, body: str, *, runs: str = "RUN", reload_s: int | None = None) -> str:
    """A whole document around its body, which is HTML; the title is text.

    Args:
        title: of the document.
        body: what stands in it above the footer.
        runs: arguments of the command that makes such a page.
        reload_s: seconds after which the page loads itself anew; None where it never does.
    """
    body = body.replace("95 %", "95&nbsp;%")
    again = f'<meta http-equiv="refresh" content="{reload_s}">\n' if reload_s else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'{again}<link rel="icon" href="data:,">\n'
        f"<title>{escaped(title)} - GA Layer Search</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}"
        "<footer><p>Made by GA Layer Search. ± is one standard error, for new questions of the same subjects; "
        f"intervals are of 95 %. <code>python -m genetic_algorithm.report {runs}</code> makes this page anew.</p>"
        "</footer>\n"
        "</body>\n</html>\n"
    )


def measure_of(run: RunDocuments) -> Measure:
    """What the run's scores are."""
    goal = run.search["goal"]
    is_weighted = run.result is not None and "value" in run.result["final_results"][0]
    return Measure.of(goal, is_weighted)


def _conclusion(result: dict[str, Any]) -> str:
    """The result's own sentences, set as a page can set them."""
    text = escaped(result["conclusion"].replace(" +- ", " ± "))
    return re.sub(r"\bp (=|&lt;) ", r"p&nbsp;\1&nbsp;", text)


def _spelled(timestamp: str) -> str:
    """`20261127_210601` as `2026-11-27 21:06`; anything else as it is."""
    day, _, time = timestamp.partition("_")
    if len(day) == 8 and len(time) == 6 and (day + time).isdigit():
        return f"{day[:4]}-{day[4:6]}-{day[6:]} {time[:2]}:{time[2:4]}"
    return timestamp


def _winner(run: RunDocuments) -> str:
    return layers_of(run.result["final_results"][0]["layers"]) if run.result else "no set ranked yet"


def _header(run: RunDocuments, measure: Measure) -> str:
    result = run.result
    begun = escaped(_spelled(run.paths.timestamp))
    said = [
        f'<p class="kicker">GA Layer Search · {escaped(run.name)} · begun {begun}</p>',
        f"<h1>{'Best layers' if run.is_over else 'Leading'}: {_winner(run)}</h1>",
    ]
    if not run.is_over:
        done = count(run.data["question_evaluations"]) if run.data else "no"
        said.append(
            f'<p class="state">This search is not over: {done} question-evaluations are done, and what follows is '
            "what they say so far. Its scores and p-values are of questions by which it still chooses.</p>"
        )
    if result:
        said.append(f'<p class="lead">{_conclusion(result)}</p>')
        said.append(_facts(run, measure))
    said.append(f'<p class="kicker folder">{escaped(run.paths.folder)}</p>')
    return f"<header>\n{chr(10).join(said)}\n</header>\n"


def _facts(run: RunDocuments, measure: Measure) -> str:
    """The few figures that are looked for first."""
    assert run.result is not None
    best, base, usage = run.result["final_results"][0], run.result["base"], run.result["usage"]["in_all"]
    facts = []
    for name, entry in (("best set", best), ("base", base)):
        if entry is None:
            continue
        held = measure.part(entry, "holdout")
        if held:
            where = f"hold-out, {plural(entry['holdout_questions'], 'question')}"
        else:
            where = f"{count(entry['questions'])} {CHOSE}"
        facts.append((f"{measure.short} of the {name}", with_error(*(held or measure.chosen(entry))), where))
    versus = [one for one in run.result["comparisons"] if not one["against"]]
    for one in versus:
        where = "that also chose" if one["questions_also_chose"] else "of the hold-out"
        facts.append(
            (
                "gain over the base" if measure.sign > 0 else "less divergence than the base",
                f"{signed(one['difference'])} ± {one['standard_error']:.3f}",
                f"paired, {plural(one['questions'], 'question')} {where}",
            )
        )
    passes = f"{usage['full_passes']:.1f} passes over all questions"
    facts.append(("question-evaluations", count(usage["question_evaluations"]), passes))
    facts.append(("time of evaluation", spell_seconds(usage["seconds"]), "all sittings together"))
    rows = (f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in facts)
    return f"<dl>{''.join(rows)}</dl>"
