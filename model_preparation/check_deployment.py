"""Judges what DEPLOY_TEST.sh found: is it good, and was the checkpoint tested. The first line says so, the others why.

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

from evaluation.entry import Parser, in_language
from models.errors import ModelError
from models.pairs import Pair, get_pair

TOLERANCE = 0.01
"""How far, in accuracy, the found set may be behind the best of all sets."""
Line = tuple[str, str]
"""In English and in Chinese."""


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
        tested = "+".join(map(str, test["layers"]))
        raise ModelError(f"the checkpoint has layers {tested}, the search found {layers}")
    pair = get_pair(arguments.pair)
    if pair.landscape is None:
        good, (told, in_chinese), lines = _against_base(result)
    else:
        good, (told, in_chinese), lines = _against_landscape(_read(pair.landscape), pair.name, layers, result)
    word, took, passed = ("PASSED", "", "通过") if good else ("FAILED", "", "未通过")
    if arguments.seconds is not None:
        took, passed = f" in {arguments.seconds} s", f"{passed}，用时 {arguments.seconds} 秒"
    lines = [
        (
            f"{word}{took}: layers {layers} of the pair {pair.name}, {told}",
            f"{word}（{passed}）：pair {pair.name} 的层组合 {layers}，{in_chinese}",
        ),
        *lines,
        _of_checkpoint(pair, evaluation),
        (f"the checkpoint: {arguments.checkpoint}", f"checkpoint：{arguments.checkpoint}"),
    ]
    print("\n  ".join(in_language(*line) for line in lines))
    return 0 if good else 1


def _against_landscape(
    landscape: dict[str, Any], pair: str, layers: str, result: dict[str, Any]
) -> tuple[bool, Line, list[Line]]:
    """Whether a set is within the tolerance of the best of all, that in words, and lines with the figures."""
    sets, questions = landscape["sets"], landscape["questions"]
    within = {name: right for name, right in sets.items() if name.count("+") < result["search"]["max_layers"]}
    best = max(within, key=within.__getitem__)
    if layers not in sets:
        raise ModelError(f"the landscape has no set {layers}; search with --max-layers 4 or fewer")
    found, top = sets[layers] / questions, within[best] / questions
    lines = [
        (
            f"known accuracy of {layers}: {found:.4f} on {questions:,} questions, from a table of all sets that comes "
            f"with {pair}",
            f"{layers} 的已知准确率：{found:.4f}（{questions:,} 题；取自 {pair} 自带的全部组合准确率表）",
        ),
        (
            f"known accuracy of the best of all sets, {best}: {top:.4f}, from the same table",
            f"最优组合 {best} 的已知准确率：{top:.4f}（同一张表）",
        ),
    ]
    entry = result["final_results"][0]
    if entry.get("holdout_accuracy") is not None:
        count, score = entry["holdout_questions"], _spell(entry, "holdout_")
        lines.append(
            (
                f"measured by the search: {score} on {count:,} of these questions, which took no part in the choice",
                f"搜索实测：{score}（其中未参与选择的 {count:,} 题）",
            )
        )
    if sets[layers] >= within[best]:
        return True, ("the best of all sets", "在全部组合中最优"), lines
    if (within[best] - sets[layers]) / questions <= TOLERANCE:
        told = f"within {TOLERANCE} of the best of all sets", f"与全部组合中最优者相差不超过 {TOLERANCE}"
        return True, told, lines
    told = f"more than {TOLERANCE} below the best of all sets", f"比全部组合中最优者低 {TOLERANCE} 以上"
    return False, told, lines


def _against_base(result: dict[str, Any]) -> tuple[bool, Line, list[Line]]:
    """Whether the set found is better than the base, that in words, and a line with the figures of both.

    They are compared on the same questions where answers to these are known.
    """
    best, base = result["final_results"][0], result["base"] or {"accuracy": 0.0}
    held_out = None not in (best.get("holdout_accuracy"), base.get("holdout_accuracy"))
    part = "holdout_" if held_out else ""
    for compared in result.get("comparisons", ()):
        if "base" in compared["roles"]:
            better = compared["difference"] > 0
            break
    else:
        better = best[f"{part}accuracy"] > base[f"{part}accuracy"]
    where, in_chinese = (
        ("questions that took no part in the choice", "未参与选择的题目")
        if held_out
        else ("questions by which it was chosen", "参与选择的题目")
    )
    score, of_base = _spell(best, part), _spell(base, part)
    line = (
        f"measured by the search: {score}, the base {of_base}, on {where}",
        f"搜索实测：{score}，base 为 {of_base}（{in_chinese}）",
    )
    return (
        better,
        ("better than its base", "优于 base") if better else ("no better than its base", "不优于 base"),
        [line],
    )


def _of_checkpoint(pair: Pair, evaluation: dict[str, Any]) -> Line:
    score, count, tasks = _spell(evaluation), evaluation["questions"], "+".join(evaluation["tasks"])
    is_unseen = set(evaluation["tasks"]) <= set(pair.unseen_tasks)
    return (
        f"measured of the checkpoint: {score} on {count:,} {'other ' if is_unseen else ''}questions, of {tasks}",
        f"checkpoint 实测：{score}（{tasks} 的{'另外' if is_unseen else ''} {count:,} 题）",
    )


def _spell(entry: dict[str, Any], part: str = "") -> str:
    """Accuracy and, where it is known, its standard error."""
    accuracy, error = entry[f"{part}accuracy"], entry.get(f"{part}standard_error")
    return f"{accuracy:.4f}" if error is None else f"{accuracy:.4f} +- {error:.4f}"


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
