#!/usr/bin/env python
"""What sharing lower layers saves: layer calls and wall time, shared and one at a time in the same run.

    python benchmarks/sharing.py                       # the tiny pair on the CPU
    python benchmarks/sharing.py --limit 256 --repeat 5

Two batches of layer sets: a random population of 40, and all one-swap neighbours of a set of four. Both ways are
timed in turn, `--repeat` times, and the median is taken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from statistics import median

import numpy as np

from evaluation.build import build_evaluator
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.entry import run_tool
from genetic_algorithm import LayerSet, SearchSpace
from genetic_algorithm.evaluator import limit_questions
from model_preparation.sources import add_pair_options, locate, pair_or_tiny


def main(argv: list[str] | None = None) -> int:
    """Print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair_options(parser, otherwise="tiny")
    parser.add_argument("--limit", type=int, default=32, help="questions per subject [%(default)s]")
    parser.add_argument("--repeat", type=int, default=3, help="timings of each way [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the random population [%(default)s]")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N [%(default)s]")
    args = parser.parse_args(argv)

    config = EvalConfig(pair=pair_or_tiny(args).name, device=args.device)
    engine = build_evaluator(config, max_limit=args.limit, locate=locate)
    space = SearchSpace(engine.num_layers, 1, 4)
    rng = np.random.default_rng(args.seed)
    population: dict[LayerSet, None] = {}
    while len(population) < 40:
        population[space.random(rng)] = None
    middle = LayerSet((0, 2, 4, 5))
    others = set(range(engine.num_layers)) - set(middle.indices)
    neighbours = [middle.swap(old, new) for old in middle.indices for new in sorted(others)]
    rows = {
        "random population": measure(engine, list(population), args.limit, args.repeat),
        "one-swap neighbours": measure(engine, neighbours, args.limit, args.repeat),
    }
    print(f"{'batch':<22}{'sets':>5}{'calls':>9}{'ratio':>7}{'shared s/set':>14}{'alone s/set':>13}{'ratio':>7}")
    for name, r in rows.items():
        print(
            f"{name:<22}{r['sets']:>5}{r['calls']:>9}{r['call_ratio']:>7.3f}"
            f"{r['shared_seconds']:>14.4f}{r['alone_seconds']:>13.4f}{r['time_ratio']:>7.3f}"
        )
    print(json.dumps({"device": engine.describe()["device_name"], **rows}))
    return 0


def measure(engine: Engine, sets: list[LayerSet], limit: int, repeat: int) -> dict[str, float]:
    """Calls and seconds per set, both ways; refuses to report where the answers differ."""
    asked = limit_questions(engine.subjects, limit)
    calls, seconds = {}, {}
    list(engine.answers(sets[:1], asked))  # warms up, and asks the donor, which is no part of either way
    for way, batches in (("shared", [sets]), ("alone", [[s] for s in sets])) * repeat:
        before, began = engine.layer_calls, time.perf_counter()
        answers = {s: a for batch in batches for s, a in engine.answers(batch, asked)}
        seconds.setdefault(way, []).append(time.perf_counter() - began)
        calls[way] = engine.layer_calls - before
        right = {s: a.correct.tobytes() for s, a in answers.items()}
        if calls.setdefault("right", right) != right:
            raise RuntimeError("both ways must give the same answers")
    shared, alone = (median(seconds[way]) / len(sets) for way in ("shared", "alone"))
    return {
        "sets": len(sets),
        "questions": len(asked),
        "calls": calls["shared"],
        "call_ratio": calls["shared"] / calls["alone"],
        "shared_seconds": shared,
        "alone_seconds": alone,
        "time_ratio": shared / alone,
    }


if __name__ == "__main__":
    sys.exit(run_tool("sharing.py", main))
