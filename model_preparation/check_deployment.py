"""Judges what DEPLOY_TEST.sh found: is it good, and was the checkpoint tested. Its last line says so.

DEPLOY_TEST.sh calls it; `python -m model_preparation.check_deployment --help` tells what it reads.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the project is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.entry import Parser
from models.errors import ModelError
from models.pairs import get_pair

TOLERANCE = 0.01
"""How far, in accuracy, the found set may be behind the best of all sets."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file. Exit code 1 where what was found is not good enough."""
    arguments = _parse(argv)
    result, test = _read(arguments.result), _read(arguments.checkpoint_test)
    best = result["final_results"][0]
    layers = "+".join(map(str, best["layers"]))
    evaluation = test.get("evaluation") or {}
    if "accuracy" not in evaluation:
        raise ModelError(f"{arguments.checkpoint_test} holds no accuracy on held-out questions; test again")
    if test["layers"] != best["layers"]:
        raise ModelError(f"the checkpoint has layers {test['layers']}, the search found {best['layers']}")
    tested = f"{evaluation['accuracy']:.4f} +- {evaluation['standard_error']:.4f}"
    tested += f" on {evaluation['questions']} questions of {'+'.join(evaluation['tasks'])}"
    landscape = get_pair(arguments.pair).landscape
    if landscape is not None:
        good, compared = _against_landscape(_read(landscape), layers, max_layers=result["search"]["max_layers"])
        if best.get("holdout_accuracy") is not None:
            compared += f"; {best['holdout_accuracy']:.4f} on those of them that the search held out"
    else:
        good, compared = _against_base(result)
    took = "" if arguments.seconds is None else f" in {arguments.seconds} s"
    print(
        f"{'PASSED' if good else 'FAILED'}{took}: layers {layers} of the pair {arguments.pair}; {compared}; "
        f"its checkpoint, asked others: {tested}; it is {arguments.checkpoint}, "
        f"the search {arguments.result.parent}"
    )
    return 0 if good else 1


def _against_landscape(landscape: dict[str, Any], layers: str, *, max_layers: int) -> tuple[bool, str]:
    """Whether a set is within the tolerance of the best, and a phrase that says how far it is."""
    sets, questions = landscape["sets"], landscape["questions"]
    within = {name: right for name, right in sets.items() if name.count("+") < max_layers}
    best = max(within, key=within.__getitem__)
    if layers not in sets:
        raise ModelError(f"the landscape has no set {layers}; search with --max-layers 4 or fewer")
    behind = (within[best] - sets[layers]) / questions
    accuracy, top = sets[layers] / questions, within[best] / questions
    text = f"{accuracy:.4f} on all {questions} questions of the search, the best of all sets ({best}) {top:.4f}"
    return behind <= TOLERANCE, text


def _against_base(result: dict[str, Any]) -> tuple[bool, str]:
    """Whether the set found is better than the base, and a phrase that says so; on the same questions where known."""
    best, base = result["final_results"][0], result["base"] or {"accuracy": 0.0}
    name = "accuracy" if None in (best.get("holdout_accuracy"), base.get("holdout_accuracy")) else "holdout_accuracy"
    where = "in the search" if name == "accuracy" else "on questions that took no part in the choice"
    for compared in result.get("comparisons", ()):
        if "base" in compared["roles"]:
            better = compared["difference"] > 0
            break
    else:
        better = best[name] > base[name]
    return better, f"{best[name]:.4f} {where}, the base {base[name]:.4f}"


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}); the step that writes it failed") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} does not hold an object; the step that writes it failed")
    return document


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="check_deployment.py",
        description=(__doc__ or "").split("\n", 1)[0],
        examples=(
            "python -m model_preparation.check_deployment --pair tiny --result R --checkpoint D --checkpoint_test T",
        ),
    )
    add = parser.add_argument
    add("--pair", required=True, metavar="NAME", help="that was searched")
    add("--result", type=Path, required=True, metavar="FILE", help="search_result_*.json")
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of the checkpoint")
    add("--checkpoint_test", type=Path, required=True, metavar="FILE", help="last line of test_checkpoint.py")
    add("--seconds", type=int, metavar="S", help="time it all took, to be told")
    return parser.parse_args(argv)


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("check_deployment.py", main)
