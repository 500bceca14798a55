"""What finished searches found."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .folders import Run, RunError


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
    numbers += [usage["question_evaluations"], usage["seconds"]] if usage else []
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise TypeError("a number is none")
    document.get("search", {}).get("goal")


def spell_result(folder: Path, result: dict[str, Any]) -> str:
    """The ranking of a finished search, with standard errors, and what it establishes."""
    beside = [result[name] | {"rank": name} for name in ("base", "donor") if result.get(name)]
    rows = [("rank", "layers", "estimate", "accuracy", "standard error", "questions", "held out", "all")]
    for entry in [*result["final_results"], *beside]:
        rows.append(
            (
                str(entry["rank"]),
                "all" if entry["rank"] == "donor" else _layers(entry["layers"]),
                _or_dash(entry.get("estimate")),
                f"{entry['accuracy']:.4f}",
                f"{entry['standard_error']:.4f}",
                str(entry["questions"]),
                _or_dash(entry.get("holdout_accuracy")),
                _or_dash(entry.get("full_accuracy")),
            )
        )
    columns = [column for column in zip(*rows, strict=True) if set(column[1:]) != {"-"}]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    table = ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
    said = [result[name] for name in ("ranked_by", "conclusion") if result.get(name)]
    return "\n".join([str(folder), *(f"  {line}" for line in (*table, *said))])


def show_results(runs: Iterable[Run], *, as_json: bool) -> int:
    """Print what finished searches found; the last line is JSON, and with `as_json` the only one."""
    shown, unfinished, is_damaged = [], [], False
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
        best = result["final_results"][0]
        report = str(run.report) if run.report.is_file() else None
        entry = {"run": str(run.folder), "layers": best["layers"], "accuracy": best["accuracy"]}
        if as_json:
            entry |= {
                name: result.get(name)
                for name in ("final_results", "base", "donor", "ranked_by", "conclusion", "usage")
            }
            entry |= {"result": str(run.result), "report": report}
        else:
            print(spell_result(run.folder, result))
            if report:
                print(f"  report: {report}")
        shown.append(entry)
    print(json.dumps({"finished": shown, "unfinished": unfinished}))
    return 2 if is_damaged else 0 if shown else 1


def _layers(layers: Sequence[int]) -> str:
    return "+".join(map(str, layers)) or "none"


def _or_dash(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.4f}"
