"""Says what a search would run on here: which path each part takes, what is missing, how long a candidate takes.

python -m evaluation.doctor
python -m evaluation.doctor --pair llamba-8b --gpu 0 --json

Needs neither GPU nor network. Exit code 0 where a search of the pair can run; 1 where it cannot, and the last line says
why. scripts/verify_setup.sh runs it, before any set-up as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

if __name__ == "__main__":  # before what follows imports them
    from evaluation.entry import require_packages

    require_packages("doctor")

from evaluation.config import DType, Memory
from evaluation.surroundings import look

_EXAMPLES = """\
examples:
  python -m evaluation.doctor                             the bundled tiny pair, measured
  python -m evaluation.doctor --pair llamba-8b            a forecast; downloads nothing
  python -m evaluation.doctor --pair llamba-8b --mmlu-dir mmlu --measure      loads both models and runs them
  python -m evaluation.doctor --gpu cpu --json            one JSON object

Exit code 0 where a search can run, 1 where it cannot.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table or, with --json, one JSON object."""
    from evaluation.entry import Parser
    from model_preparation import readiness  # entry points wire the packages, late
    from model_preparation.sources import ROOT, add_pair_options, locate, pair_or_tiny

    parser = Parser(
        prog="doctor",
        description="Say what a search would run on here, what is missing, and how long a candidate takes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_pair_options(parser, otherwise="tiny")
    parser.add_argument("--gpu", default="auto", metavar="N|cpu|auto", help="device [auto: GPU 0 where there is one]")
    parser.add_argument("--dtype", choices=get_args(DType), help="[bfloat16 on a GPU, float32 on a CPU]")
    parser.add_argument(
        "--memory", choices=get_args(Memory), default="auto", help="where the donor's layers are [auto]"
    )
    parser.add_argument("--mmlu-dir", type=Path, metavar="DIR", help="local folder of cais/mmlu, for --measure")
    parser.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        help="load the models and time them; else a forecast [measured for the tiny pair]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args(argv)
    pair = pair_or_tiny(args)
    from evaluation.examination import examine  # late, as it imports torch for seconds

    report = examine(
        pair,
        args.gpu,
        partial(locate, download=False),
        dtype=args.dtype,
        memory=args.memory,
        mmlu_dir=args.mmlu_dir,
        measure=pair.name == "tiny" if args.measure is None else args.measure,
    )
    found = [*readiness.look(pair, ROOT, args.mmlu_dir), *look(ROOT)]
    needed = [one.problem for one in found if one.problem and one.name != "lm_eval"]  # which the report has
    report = replace(report, surroundings=found, problems=[*report.problems, *needed])
    print(json.dumps(report.document()) if args.json else report.text())
    return 1 if report.problems else 0


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("doctor", main)
