"""Shows searches.

scripts/monitor_progress.sh runs `python -m run_folders progress`, scripts/check_results.sh `python -m run_folders
results`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from .folders import Run, RunError, find_runs
from .progress import Watch, look_at
from .results import show_results
from .spelling import spell_block, spell_table


class _Parser(argparse.ArgumentParser):
    """Refuses arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists the options\n")


def show_progress(
    find: Callable[[], list[Run]], *, once: bool, interval_s: float, as_json: bool, as_table: bool
) -> int:
    """Print how far searches are, again and again until none runs; `find` is asked anew each time."""
    watches: dict[Run, Watch] = {}
    while True:
        watches = {run: watches.get(run) or Watch(run) for run in find()}
        found = look_at(list(watches.values()))
        if as_json:
            print(json.dumps({"time": round(time.time(), 3), "runs": [asdict(progress) for progress in found]}))
        elif as_table:
            print(spell_table(found))
        else:
            print("\n".join(map(spell_block, found)))
        sys.stdout.flush()
        if once or not any(progress.state == "running" for progress in found):
            return 0
        time.sleep(interval_s)
        if not as_json:
            print(f"--- {time.strftime('%H:%M:%S')}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the scripts say what it is."""
    parser = _Parser(prog="run_folders", description="What searches found, or how far they are.")
    parser.add_argument("what", choices=("results", "progress"))
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of searches [the newest one]")
    parser.add_argument("--dir", type=Path, default=Path("results"), help="where searches lie [%(default)s]")
    parser.add_argument("--all", action="store_true", help="all searches there")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line, for machines")
    parser.add_argument("--once", action="store_true", help="progress: show it once")
    text = "progress: seconds between looks [10]"
    parser.add_argument("--interval", type=_interval, default=10.0, metavar="S", help=text)
    arguments = parser.parse_intermixed_args(argv)  # options may stand between the folders
    if isinstance(sys.stdout, io.TextIOWrapper):  # a result may hold what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")

    def find() -> list[Run]:
        return find_runs(arguments.runs, arguments.dir, is_all=arguments.all)

    try:
        runs = find()
        if arguments.what == "results":
            return show_results(runs, as_json=arguments.json)
        is_fixed = arguments.runs or not arguments.all  # the newest one stays what is watched
        code = show_progress(
            (lambda: runs) if is_fixed else find,
            once=arguments.once,
            interval_s=arguments.interval,
            as_json=arguments.json,
            as_table=arguments.all or len(runs) > 1,
        )
        if not arguments.json:
            show = "scripts/check_results.sh"
            _last_line(f"what was found: {show}", f"查看搜索结果：{show}")
        return code
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        _last_line("stopped watching; the search goes on", "已停止查看，搜索仍在运行")
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _last_line(english: str, chinese: str) -> None:
    """What comes next, in the language that scripts/lib.sh chose by the locale."""
    if language := os.environ.get("GA_LANGUAGE"):
        print(chinese if language == "zh" else english, file=sys.stderr)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 86400")
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())
