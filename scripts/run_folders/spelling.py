"""Progress for a person: a block for one search, a table for several, in 80 columns."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .progress import Best, Progress

_UNKNOWN = "not known yet"
_LEADS = "best of those asked most"  # until the search is over, sets that were asked less may have higher scores
_HEADINGS = ("run", "state", "stage", "best", "score", "done", "q/s", "left", "workers", "failed")
_LEFT_ALIGNED = 4  # columns of words; numbers stand right


def spell_seconds(seconds: float) -> str:
    """`45 s`, `3 min`, `2 h 05 min`, `3 d 4 h`: as rough as a forecast is."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def spell_layers(layers: Sequence[int]) -> str:
    """`11+13+17`, or `none`."""
    return "+".join(map(str, layers)) or "none"


def spell_count(count: int, noun: str) -> str:
    """`1 set`, `2,304 sets`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def spell_block(progress: Progress) -> str:
    """A few lines about one search."""
    expected, pace, workers = progress.question_evaluations_expected, progress.questions_per_second, progress.workers
    is_over = progress.state == "finished"
    about = f" of about {expected:,}" if expected is not None and not is_over else ""
    sets = spell_count(progress.layer_sets, "set")
    stage = ", ".join(filter(None, (progress.stage, progress.label))) or _UNKNOWN
    rows = [
        *([] if is_over else [("stage", stage)]),
        ("best" if is_over else _LEADS, _UNKNOWN if progress.best is None else _spell_best(progress.best)),
        ("question-evaluations", f"{progress.question_evaluations:,}{about} on {sets}"),
    ]
    if pace is not None:
        rows.append(("pace", f"{_spell_pace(pace)} questions per second"))
    if not is_over:
        rows.append(("time left", _spell_left(progress)))
        if progress.state == "running":
            lost = f", {workers.lost} lost" if workers.lost else ""
            rows.append(("workers", f"{workers.alive} of {workers.of} alive{lost}"))
    if progress.failures:
        rows.append(("failures", f"{spell_count(progress.failures, 'set')} could not be evaluated"))
    rows += [("note", note) for note in progress.notes]
    if progress.state in ("stopped", "failed"):
        rows.append(("to go on", "give the same command, with --output-dir and this folder"))
    if progress.log is not None:
        rows.append(("log", progress.log))
    return "\n".join(
        [f"{progress.run}: {progress.state}", *(f"  {name:<{len(_LEADS)}}  {text}" for name, text in rows)]
    )


def spell_table(found: Sequence[Progress], width: int | None = None) -> str:
    """A line for each search, and what is unusual below; columns in which nothing is said are left out."""
    width = shutil.get_terminal_size().columns if width is None else width
    rows = [_row(progress) for progress in found]
    kept = [i for i in range(len(_HEADINGS)) if {row[i] for row in rows} - {"", "1/1", "0/1", "0"}]
    cells = [[row[i] for i in kept] for row in [_HEADINGS, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - len(gap) * (len(widths) - 1)))
    lines = []
    for row in cells:
        padded = [_end_of(row[0], widths[0]).ljust(widths[0])]
        for i, cell, size in list(zip(kept, row, widths, strict=True))[1:]:
            padded.append(cell.ljust(size) if i < _LEFT_ALIGNED else cell.rjust(size))
        lines.append(gap.join(padded).rstrip())
    lines += [f"{Path(progress.run).name}: {note}" for progress in found for note in progress.notes]
    return "\n".join(lines)


def _row(progress: Progress) -> tuple[str, ...]:
    best, expected, workers = progress.best, progress.question_evaluations_expected, progress.workers
    is_running = progress.state == "running"
    done = "" if not expected else f"{100 * progress.question_evaluations / expected:.0f}%"
    left = progress.seconds_left if is_running else None
    return (
        Path(progress.run).name,
        progress.state,
        progress.stage or "",
        "" if best is None else spell_layers(best.layers),
        "" if best is None else f"{best.score:.4f}",
        done,
        "" if progress.questions_per_second is None else _spell_pace(progress.questions_per_second),
        "" if left is None else spell_seconds(left),
        f"{workers.alive}/{workers.of}",
        str(progress.failures),
    )


def _spell_best(best: Best) -> str:
    measure = "" if best.measure == "accuracy" else f"{best.measure} "
    score = f"{best.score:.4f} +- {best.standard_error:.4f}"
    return f"{spell_layers(best.layers)} {measure}{score} ({spell_count(best.questions, 'question')})"


def _spell_left(progress: Progress) -> str:
    if progress.seconds_left is not None:
        return f"about {spell_seconds(progress.seconds_left)}"
    return progress.left.replace(" left", "") if progress.left else _UNKNOWN


def _spell_pace(pace: float) -> str:
    return f"{pace:,.0f}" if pace >= 10 else f"{pace:.1f}"


def _end_of(text: str, size: int) -> str:
    """The last part of a name, which tells runs apart by their time."""
    return text if len(text) <= size else "~" + text[len(text) - size + 1 :]
