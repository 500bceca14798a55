"""Writes reports of searches: of one, `report.html` in its folder; of several, one page that compares them.

python -m genetic_algorithm.report results/mine
python -m genetic_algorithm.report results/seed_0 results/seed_1 --output seeds.html
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # before what follows imports them
    from evaluation.entry import require_packages

    require_packages("report")

from genetic_algorithm import run_folder
from genetic_algorithm.report import compare, page
from genetic_algorithm.report.reading import RunDocuments, paths_of

_EXAMPLES = """examples:
  python -m genetic_algorithm.report results/mine                    (re)writes results/mine/report.html
  python -m genetic_algorithm.report results/mine --output mine.html
  python -m genetic_algorithm.report results/seed_0 results/seed_1   compares them in comparison.html

Reads what the searches wrote, those that still run as well, and needs no models. Exit status 2 where a folder
is not that of a search, has nothing to tell yet or is damaged. The last line is JSON.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write one page; returns the exit code. The last line printed is JSON."""
    from evaluation.entry import Parser

    parser = Parser(
        prog="report",
        description="Write the page that tells what a search found, or one that compares several.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a search")
    text = "where the page goes [report.html in the folder of the run; of several runs, comparison.html here]"
    parser.add_argument("--output", type=Path, metavar="FILE", help=text)
    arguments = parser.parse_args(argv)
    runs = [RunDocuments.read(paths_of(folder)) for folder in arguments.runs]
    one = len(runs) == 1
    output = arguments.output or (runs[0].paths.report if one else Path("comparison.html"))
    output = Path(os.path.abspath(output.expanduser()))
    run_folder.write_text(output, page.render(runs[0]) if one else compare.render(runs))
    print(json.dumps({"report": str(output), "runs": [str(run.paths.folder) for run in runs]}))
    return 0


if __name__ == "__main__":
    from evaluation.entry import run_tool

    sys.exit(run_tool("report", main))
