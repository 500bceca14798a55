#!/usr/bin/env python
"""Whether 8-bit products rank layer sets as bfloat16 does: one population, the same questions, in three precisions.

    python benchmarks/fp8_ranking.py --device cuda:0                       # the tiny pair: all sets of 1 to 4 layers
    python benchmarks/fp8_ranking.py --base DIR/base --donor DIR/donor --tasks tiny --device cuda:0
    python benchmarks/fp8_ranking.py --limit 4 --random 20 --precisions float32 bfloat16     # a look at the tool

Sets are ranked by accuracy; the mean margin of the same precision breaks ties, and where margins tie, too, sets share
the mean of their places. How far float32 ranks from bfloat16 is the noise floor. A flip is a question that one
precision answers right and the other wrong. Without matrix units for 8 bits the values are still rounded to 8 bits,
but multiplied in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.build import build_evaluator
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.entry import run_tool
from genetic_algorithm import LayerSet, SearchSpace
from genetic_algorithm.evaluator import limit_questions
from genetic_algorithm.run_folder import versions
from model_preparation.sources import add_pair_options, locate, pair_or_tiny

Precision = Literal["float32", "bfloat16", "fp8"]
REFERENCE: Precision = "bfloat16"
MAX_LAYERS = 4
TOP, WITHIN = 10, 15
LEAST_SPEARMAN = 0.98


@dataclass(frozen=True, slots=True)
class Scored:
    """A population's answers in one precision. Suffixes: S sets, Q questions."""

    sets: list[LayerSet]
    correct_SQ: NDArray[np.bool_]
    margin_S: NDArray[np.float64]
    """Mean over the questions."""
    seconds: float

    @property
    def accuracy_S(self) -> NDArray[np.float64]:
        """Share of the questions."""
        return self.correct_SQ.mean(axis=1)

    @property
    def place_S(self) -> NDArray[np.float64]:
        """1 for the best; by accuracy, then mean margin; those that tie in both share the mean of their places."""
        _, in_order = np.unique(np.stack([self.accuracy_S, self.margin_S]), axis=1, return_inverse=True)
        return ranks(-in_order.reshape(-1).astype(np.float64))


def main(argv: Sequence[str] | None = None) -> int:
    """Print two Markdown tables, then one JSON object."""
    args = _parse(argv)
    config = EvalConfig(pair=pair_or_tiny(args).name, tasks=tuple(args.tasks), device=args.device)
    found: dict[Precision, Scored] = {}
    sets: list[LayerSet] = []
    about: dict[str, Any] = {}
    for precision in sorted(args.precisions, key=lambda p: p != REFERENCE):
        engine = engine_for(config, args.limit, precision)
        asked = limit_questions(engine.subjects, args.limit)
        if not sets:
            about = _about(engine, config, args)
            sets = _population(engine, asked, args)
        found[precision] = score(engine, sets, asked, precision)
        del engine
    pairs = [(a, b) for a, b in combinations(("fp8", "bfloat16", "float32"), 2) if a in found and b in found]
    beside = {f"{a} / {b}": compare(found[a], found[b]) for a, b in pairs}
    tops = {p: top(found[REFERENCE], found[p]) for p in found if p != REFERENCE}
    print(_header(about, found))
    print(_table(beside, tops))
    print(_top_table(found, tops))
    seconds = {precision: round(scored.seconds, 2) for precision, scored in found.items()}
    print(json.dumps({**about, "sets": len(sets), "seconds": seconds, "beside": beside, "top": tops}))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair_options(parser, otherwise="tiny")
    add = parser.add_argument
    add("--tasks", nargs="*", default=[], help="lm-eval tasks [the pair's own]")
    add("--limit", type=int, help="questions per subject [all]")
    add("--random", type=int, metavar="N", help="N random sets and all one-swap neighbours of the best of them [all]")
    add("--seed", type=int, default=0, help="of the random sets [%(default)s]")
    add("--precisions", nargs="+", choices=get_args(Precision), default=list(get_args(Precision)))
    add("--device", default="cpu", help="cpu or cuda:N [%(default)s]")
    add("--commit", help="where git cannot tell it")
    args = parser.parse_args(argv)
    if REFERENCE not in args.precisions or len(set(args.precisions)) < 2:
        parser.error(f"--precisions {' '.join(args.precisions)} compares nothing with {REFERENCE}; name it and another")
    for name in ("limit", "random"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)} leaves nothing to rank; give at least 1")
    return args


# --- answers ---------------------------------------------------------------------------------------------------------


def engine_for(config: EvalConfig, limit: int | None, precision: Precision) -> Engine:
    """The engine in a precision; in fp8 it is the one that a search asks in its fast stage."""
    if precision != "fp8":
        return build_evaluator(replace(config, dtype=precision), max_limit=limit, locate=locate)
    exact = build_evaluator(replace(config, dtype="bfloat16", fast_dtype="fp8"), max_limit=limit, locate=locate)
    layers = exact.layers.quantised()
    return Engine(exact.pair, exact.questions, layers=layers, batch_tokens=exact.batch_tokens)


def score(engine: Engine, sets: Sequence[LayerSet], asked: NDArray[np.int64], name: str = "") -> Scored:
    """Every set's answers to the questions `asked`."""
    correct = {layers: np.zeros(len(asked), dtype=np.bool_) for layers in sets}
    margin = dict.fromkeys(sets, 0.0)
    began = time.perf_counter()
    each = -(-len(asked) // 8)
    with tqdm(total=len(asked), desc=name, unit="q", disable=None) as progress:
        for begin in range(0, len(asked), each):
            part = slice(begin, begin + each)
            for layers, answers in engine.answers(sets, asked[part]):
                correct[layers][part] = answers.correct
                assert answers.margin is not None
                margin[layers] += float(answers.margin.sum(dtype=np.float64))
            progress.update(len(asked[part]))
    seconds = time.perf_counter() - began
    margin_S = np.array([margin[layers] for layers in sets]) / len(asked)
    return Scored(list(sets), np.stack([correct[layers] for layers in sets]), margin_S, seconds)


def _population(engine: Engine, asked: NDArray[np.int64], args: argparse.Namespace) -> list[LayerSet]:
    depth = engine.num_layers
    largest = min(MAX_LAYERS, depth)
    if args.random is None:
        return [LayerSet(c) for size in range(1, largest + 1) for c in combinations(range(depth), size)]
    space, rng = SearchSpace(depth, 1, largest), np.random.default_rng(args.seed)
    drawn = list(dict.fromkeys(space.random(rng) for _ in range(8 * args.random)))[: args.random]
    best = drawn[int(score(engine, drawn, asked, "random sets").place_S.argmin())]
    others = [i for i in range(depth) if i not in best]
    return list(dict.fromkeys([*drawn, *(best.swap(old, new) for old in best for new in others)]))


# --- comparisons -----------------------------------------------------------------------------------------------------


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)]


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Correlation of ranks, ties at their mean rank; None where one side is all the same."""
    x, y = (r - r.mean() for r in (ranks(a), ranks(b)))
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm else None


def compare(a: Scored, b: Scored) -> dict[str, float | None]:
    """Rank correlations, flips and differences of `a` beside `b`."""
    difference = a.accuracy_S - b.accuracy_S
    return {
        "spearman_accuracy": spearman(a.accuracy_S, b.accuracy_S),
        "spearman_margin": spearman(a.margin_S, b.margin_S),
        "flips_per_thousand": 1000 * float((a.correct_SQ != b.correct_SQ).mean()),
        "accuracy_difference_mean": float(difference.mean()),
        "accuracy_difference_mean_absolute": float(np.abs(difference).mean()),
        "accuracy_difference_largest": float(np.abs(difference).max()),
    }


def top(reference: Scored, other: Scored) -> list[dict[str, Any]]:
    """Where the best sets of the reference stand in the other's ranking.

    `places` are the best and the worst place that accuracy alone allows among sets that tie in it.
    """
    found = []
    for i in np.argsort(reference.place_S, kind="stable")[:TOP]:
        mine = other.accuracy_S[i]
        first, last = int((other.accuracy_S > mine).sum()) + 1, int((other.accuracy_S >= mine).sum())
        found.append(
            {
                "layers": str(reference.sets[i]),
                "reference": float(reference.accuracy_S[i]),
                "other": float(mine),
                "place": float(other.place_S[i]),
                "places": [first, last],
            }
        )
    return found


# --- report ----------------------------------------------------------------------------------------------------------


def _about(engine: Engine, config: EvalConfig, args: argparse.Namespace) -> dict[str, Any]:
    described = engine.describe()
    known = versions() | ({"commit": args.commit} if args.commit else {})
    return {
        "pair": config.pair,
        "depth": engine.num_layers,
        "width": engine.pair.model.config.d_model,
        "subjects": list(engine.subject_names),
        "questions": len(limit_questions(engine.subjects, args.limit)),
        "device": described["device_name"],
        "kernels": described.get("kernels"),
        "versions": known,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def _header(about: dict[str, Any], found: dict[Precision, Scored]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    first = next(iter(found.values()))
    base_is_in = f"accuracies {first.accuracy_S.min():.3f} to {first.accuracy_S.max():.3f}"
    seconds = ", ".join(f"{name} {scored.seconds:.1f} s" for name, scored in found.items())
    return (
        f"{about['device']}, kernels: {about['kernels']}; {libraries}; {about['date']}.\n"
        f"Pair {about['pair']} ({about['depth']} layers, width {about['width']}): {len(first.sets)} sets x "
        f"{about['questions']} questions ({', '.join(about['subjects'])}), {base_is_in}; {seconds}.\n"
    )


def _table(beside: dict[str, dict[str, float | None]], tops: dict[Precision, list[dict[str, Any]]]) -> str:
    rows = {
        "Spearman of accuracies": ("spearman_accuracy", ".4f"),
        "Spearman of mean margins": ("spearman_margin", ".4f"),
        "flips per thousand questions": ("flips_per_thousand", ".2f"),
        "accuracy difference, mean": ("accuracy_difference_mean", "+.5f"),
        "accuracy difference, mean magnitude": ("accuracy_difference_mean_absolute", ".5f"),
        "accuracy difference, largest": ("accuracy_difference_largest", ".5f"),
    }
    lines = [f"| | {' | '.join(beside)} |", "|---" * (len(beside) + 1) + "|"]
    for title, (key, form) in rows.items():
        cells = ["-" if r[key] is None else format(r[key], form) for r in beside.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    for precision, stand in tops.items():
        inside = sum(entry["place"] <= WITHIN for entry in stand)
        lines.append(f"\nOf the top {len(stand)} of {REFERENCE}, {inside} are in the top {WITHIN} of {precision}.")
    if spoken := beside.get(f"fp8 / {REFERENCE}"):
        rho = spoken["spearman_accuracy"]
        holds = rho is not None and rho >= LEAST_SPEARMAN and all(e["place"] <= WITHIN for e in tops["fp8"])
        wanted = f"Spearman at least {LEAST_SPEARMAN}, the top {TOP} of {REFERENCE} within the top {WITHIN}"
        lines.append(f"Wanted: {wanted}: {'holds' if holds else 'does NOT hold'}.")
    return "\n".join(lines) + "\n"


def _top_table(found: dict[Precision, Scored], tops: dict[Precision, list[dict[str, Any]]]) -> str:
    others = list(tops)
    titles = [f"{p}: accuracy, place (by accuracy alone)" for p in others]
    lines = [f"| layers | {REFERENCE} | {' | '.join(titles)} |", "|---" * (len(others) + 2) + "|"]
    for entries in zip(*tops.values(), strict=True):
        cells = [f"{e['other']:.4f}, {e['place']:g} ({e['places'][0]} to {e['places'][1]})" for e in entries]
        lines.append(f"| {entries[0]['layers']} | {entries[0]['reference']:.4f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_tool("fp8_ranking.py", main))
