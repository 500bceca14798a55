"""Reads the folders of searches for check_results.sh and monitor_progress.sh; needs nothing but Python.

python scripts/run_folders.py results [--dir DIR] [RUN...]
python scripts/run_folders.py progress [--once] [--interval SECONDS] [--dir DIR] [RUN...]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_TOLD = re.compile(r"best (?P<best>.+?); (?P<left>.* left.*)$")


class RunError(Exception):
    """A folder that cannot be shown; the message is one line that says what to do."""


@dataclass(frozen=True)
class Progress:
    """How far one search is."""

    folder: Path
    state: str
    """`finished`, `running` or `stopped`."""
    best: str
    question_evaluations: int
    layer_sets: int
    failures: int
    left: str
    log: Path | None


def find_runs(named: Sequence[Path], results: Path) -> list[Path]:
    """The folders named, else all searches below `results`, oldest first.

    Raises:
        RunError: there is none, or a named one is no search.
    """
    for folder in named:
        if not (folder / "config.json").is_file():
            raise RunError(f"{folder} is not the folder of a search: it has no config.json")
    if named:
        return list(named)
    found = [path.parent for path in results.glob("*/config.json")]
    if not found:
        raise RunError(f"there is no search in {results}; start one with scripts/quick_test_real.sh")
    return sorted(found, key=lambda folder: (folder / "config.json").stat().st_mtime)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a search; None where it has none yet.

    Raises:
        RunError: it is damaged.
    """
    for path in sorted(folder.glob("search_result_*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            _candidate(document["final_results"][0])
            spell_result(folder, document)  # what cannot be told is damaged
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise RunError(f"{path} is damaged ({type(error).__name__}); delete it and run the search again") from error
        return dict(document)
    return None


def read_progress(folder: Path) -> Progress:
    """How far a search is, from its journal, its log and its result."""
    result = read_result(folder)
    logs = sorted(folder.glob("search_log_*.txt"))
    best, left = "not known yet", "not known yet"
    for line in reversed(_lines(logs[-1]) if logs else []):
        if told := _TOLD.search(line):
            best, left = told["best"], told["left"]
            break
    if result is not None:
        best, left = _candidate(result["final_results"][0]), "none"
    sets, questions, failures = _count_answers(folder / "journal.jsonl")
    state = "finished" if result is not None else "running" if _is_locked(folder / "config.json") else "stopped"
    return Progress(folder, state, best, questions, sets, failures, left, logs[-1] if logs else None)


def spell_progress(progress: Progress) -> str:
    """A few lines for a person."""
    failed = f", {progress.failures} failed" if progress.failures else ""
    lines = [
        f"{progress.folder}: {progress.state}",
        f"  best so far           {progress.best}",
        f"  question-evaluations  {progress.question_evaluations:,} on {progress.layer_sets:,} sets{failed}",
        f"  time left             {progress.left}",
    ]
    if progress.state == "stopped":
        lines.append("  it goes on when the same command is given again with --output-dir and this folder")
    if progress.log is not None:
        lines.append(f"  log                   {progress.log}")
    return "\n".join(lines)


def spell_result(folder: Path, result: dict[str, Any]) -> str:
    """The ranking of a finished search, with standard errors, and what it establishes."""
    base = result.get("base")
    rows = [("rank", "layers", "estimate", "accuracy", "standard error", "questions", "held out", "all")]
    for entry in [*result["final_results"], *([base | {"rank": "base"}] if base else [])]:
        rows.append(
            (
                str(entry["rank"]),
                _layers(entry["layers"]),
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


def show_results(runs: Iterable[Path]) -> int:
    """Print what finished searches found; the last line is JSON."""
    shown = []
    for folder in runs:
        result = read_result(folder)
        if result is None:
            print(f"{folder}: no result yet; scripts/monitor_progress.sh shows how far it is")
            continue
        print(spell_result(folder, result))
        best = result["final_results"][0]
        shown.append({"run": str(folder), "layers": best["layers"], "accuracy": best["accuracy"]})
    print(json.dumps({"finished": shown}))
    return 0 if shown else 1


def show_progress(runs: Sequence[Path], *, once: bool, interval_s: float) -> int:
    """Print how far searches are, again and again until none runs."""
    while True:
        states = [read_progress(folder) for folder in runs]
        print("\n".join(map(spell_progress, states)), flush=True)
        if once or not any(progress.state == "running" for progress in states):
            return 0
        time.sleep(interval_s)
        print(f"--- {time.strftime('%H:%M:%S')}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(prog="run_folders.py", description="What searches found, or how far they are.")
    parser.add_argument("what", choices=("results", "progress"))
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of searches [the newest one]")
    parser.add_argument("--dir", type=Path, default=ROOT / "results", help="where searches lie [%(default)s]")
    parser.add_argument("--all", action="store_true", help="all searches there")
    parser.add_argument("--once", action="store_true", help="progress: show it once")
    parser.add_argument(
        "--interval", type=float, default=10.0, metavar="S", help="progress: seconds between looks [10]"
    )
    arguments = parser.parse_intermixed_args(argv)  # options may stand between the folders
    try:
        runs = find_runs(arguments.runs, arguments.dir)
        if not arguments.runs and not arguments.all:
            runs = runs[-1:]
        if arguments.what == "results":
            return show_results(runs)
        return show_progress(runs, once=arguments.once, interval_s=arguments.interval)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _count_answers(journal: Path) -> tuple[int, int, int]:
    """Layer sets, question-evaluations and failures in a journal; a line that is cut off is passed over."""
    sets, questions, failures = set(), 0, 0
    for line in _lines(journal)[1:]:
        try:
            entry = json.loads(line)
            if entry["status"] == "failed":
                failures += 1
                continue
            runs = [run.partition("-") for run in entry["questions"].split(",")]
            questions += sum(int(high or low) - int(low) + 1 for low, _, high in runs)
            sets.add(entry["set"])
        except (ValueError, KeyError, TypeError):
            continue
    return len(sets), questions, failures


def _is_locked(path: Path) -> bool:
    """Whether a running search holds the folder. It is asked for a moment only, and shared."""
    try:
        import fcntl
    except ImportError:  # no locks on this system, so nobody can tell
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _layers(layers: Sequence[int]) -> str:
    return "+".join(map(str, layers)) or "none"


def _or_dash(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.4f}"


def _candidate(entry: dict[str, Any]) -> str:
    accuracy, error = entry["accuracy"], entry["standard_error"]
    return f"{_layers(entry['layers'])} {accuracy:.4f} +- {error:.4f} ({entry['questions']} questions)"


if __name__ == "__main__":
    raise SystemExit(main())
