"""What finished searches found."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .folders import Run, RunError
from .spelling import spell_layers

_ACCURACY = (
    "accuracy: on questions by which sets were chosen, so that it flatters the best a little; hold-out: on questions "
    "that took no part in the choice. +- is one standard error."
)


def read_result(run: Run) -> dict[str, Any] | None:
    """The result of a search; None where it has none yet.

    Raises:
        RunError: it is damaged.
    """
    try:
        document = json.loads(run.result.read_text(encoding="utf-8"))
        spell_result(run.folder, document)  # what cannot be told is damaged
        _check_numbers(document)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{run.result} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
        what = f"{run.result} is damaged ({type(error).__name__})"
        raise RunError(f"{what}; delete it and run the search again") from error
    return dict(document)


def _check_numbers(document: dict[str, Any]) -> None:
    """Raise one of several errors where what is calculated with is no number."""
    best, usage = document["final_results"][0], document.get("usage", {}).get("in_all", {})
    numbers = [best["accuracy"], best["standard_error"], best["questions"], *best["layers"]]
    numbers += [best["value"], best["value_error"]] if "value" in best else []
    numbers += [usage["question_evaluations"], usage["seconds"], usage.get("new_layer_sets", 0)] if usage else []
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise TypeError("a number is none")
    document.get("search", {}).get("goal")
    document.get("evaluator", {}).get("pair")


def spell_result(folder: Path, result: dict[str, Any], *, with_notes: bool = True) -> str:
    """The ranking of a finished search, with standard errors, what it establishes and how to read it."""
    beside = [result[name] | {"rank": name} for name in ("base", "donor") if result.get(name)]
    rows = [("rank", "layers", "estimate", "accuracy", "questions", "hold-out", "all")]
    for entry in [*result["final_results"], *beside]:
        chose = entry.get("part") != "holdout"  # the donor is asked the hold-out alone
        rows.append(
            (
                str(entry["rank"]),
                "all" if entry["rank"] == "donor" else spell_layers(entry["layers"]),
                _or_dash(entry.get("estimate")),
                _with_error(entry) if chose else "-",
                f"{entry['questions']:,}" if chose else "-",
                _with_error(entry, "holdout_"),
                _with_error(entry, "full_"),
            )
        )
    columns = [column for column in zip(*rows, strict=True) if set(column[1:]) != {"-"}]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    table = ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
    said = [*(_notes(result) if with_notes else ()), *([result["conclusion"]] if result.get("conclusion") else [])]
    return "\n".join([str(folder), *(f"  {line}" for line in (*table, *said))])


def _notes(result: dict[str, Any]) -> list[str]:
    """How to read the ranking; most often the same of all searches."""
    has_holdout = any(entry.get("holdout_accuracy") is not None for entry in result["final_results"])
    ranked_by = result.get("ranked_by")
    return [*([_ACCURACY] if has_holdout else []), *([str(ranked_by)] if ranked_by else [])]


def show_results(runs: Sequence[Run], *, as_json: bool) -> int:
    """Print what finished searches found: for people, or with `as_json` all of it as one line of JSON."""
    shown: list[dict[str, Any]] = []
    notes: dict[str, list[str]] = {}  # of which runs each is
    unfinished, is_damaged = [], False
    for run in runs:
        try:
            result = read_result(run)
        except RunError as error:
            print(f"error: {error}", file=sys.stderr)
            is_damaged = True
            continue
        if result is None:
            unfinished.append(str(run.folder))
            if not as_json:
                print(f"{run.folder}: no result yet; scripts/monitor_progress.sh shows how far it is")
            continue
        shown.append(_entry(run, result))
        if not as_json:
            for note in _notes(result):
                notes.setdefault(note, []).append(str(run.folder))
            told = spell_result(run.folder, result, with_notes=len(runs) == 1)
            print("\n".join([told, *_what_comes_next(run, result)]))
    if as_json:
        print(json.dumps({"finished": shown, "unfinished": unfinished}))
    elif len(runs) > 1:
        for note, folders in notes.items():
            print(note if len(folders) == len(shown) else f"{', '.join(folders)}: {note}")
    return 2 if is_damaged else 0 if shown else 1


def _entry(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """What --json says of a finished search."""
    best = result["final_results"][0]
    entry: dict[str, Any] = {"run": str(run.folder), "result": str(run.result)}
    entry["report"] = str(run.report) if run.report.is_file() else None
    scores = ("accuracy", "standard_error", "questions")
    for name in ("layers", *scores, *(f"holdout_{name}" for name in scores)):
        entry[name] = best.get(name)
    told = ("final_results", "base", "donor", "ranked_by", "conclusion", "usage")
    return entry | {name: result.get(name) for name in told}


def _what_comes_next(run: Run, result: dict[str, Any]) -> list[str]:
    """Lines with the command that makes the best set's checkpoint, where there are models, and the report's path."""
    is_chinese = os.environ.get("GA_LANGUAGE") == "zh"  # as scripts/lib.sh chose by the locale
    lines = []
    if result.get("evaluator", {}).get("pair"):
        result_file = shlex.quote(str(run.result))
        command = f"scripts/create_checkpoint.sh --from_result {result_file} --output_dir model_checkpoints/best"
        lines.append(f"  {'生成 checkpoint：' if is_chinese else 'make its checkpoint with: '}{command}")
    if run.report.is_file():
        lines.append(f"  {'报告：' if is_chinese else 'report: '}{run.report}")
    return lines


def _or_dash(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.4f}"


def _with_error(entry: dict[str, Any], part: str = "") -> str:
    """`0.9473 +- 0.0068`, with the standard error where it is known."""
    error = entry.get(f"{part}standard_error")
    return _or_dash(entry.get(f"{part}accuracy")) + ("" if error is None else f" +- {error:.4f}")
