#!/usr/bin/env python
"""Our engine beside lm-eval's own HFLM: the same hybrids, the same questions, the same run.

    python benchmarks/against_lm_eval.py                              # 20 random sets, the tiny pair's questions
    python benchmarks/against_lm_eval.py --tasks mmlu --mmlu-dir DIR --limit 10 --sets 1

lm-eval is used the way searches use it: models built once, layers swapped in place, tasks loaded once, then
`simple_evaluate` for each candidate. Decisions are compared question by question; both ways are timed in turn,
`--repeat` times, and the median is taken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from evaluation.build import build_evaluator, task_source
from evaluation.config import EvalConfig
from evaluation.entry import run_tool
from evaluation.reference import LmEval, disagreements
from genetic_algorithm import LayerSet, SearchSpace
from genetic_algorithm.evaluator import limit_questions
from model_preparation.sources import add_pair_options, locate, pair_or_tiny
from models.tokenizer import load_tokenizer


def main(argv: list[str] | None = None) -> int:
    """Print a table, then one JSON object; exit 1 where a decision differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair_options(parser, otherwise="tiny")
    parser.add_argument("--tasks", nargs="*", default=[], help="lm-eval tasks [the pair's own]")
    parser.add_argument("--mmlu-dir", type=Path, help="local copy of MMLU")
    parser.add_argument("--limit", type=int, default=32, help="questions per subject [%(default)s]")
    parser.add_argument("--sets", type=int, default=20, help="candidates [%(default)s]")
    parser.add_argument(
        "--batch-size", type=int, nargs="+", default=[16, 64], help="rows per pass of lm-eval %(default)s"
    )
    parser.add_argument("--repeat", type=int, default=3, help="timings of each way, in turn [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the candidates [%(default)s]")
    args = parser.parse_args(argv)

    pair = pair_or_tiny(args)
    config = EvalConfig(pair=pair.name, tasks=tuple(args.tasks), mmlu_dir=args.mmlu_dir, question_order="dataset")
    engine = build_evaluator(config, max_limit=args.limit, locate=locate)
    space, rng = SearchSpace(engine.num_layers, 1, 4), np.random.default_rng(args.seed)
    sets = list(dict.fromkeys(space.random(rng) for _ in range(4 * args.sets)))[: args.sets]
    asked = limit_questions(engine.subjects, args.limit)

    tokenizer, source = load_tokenizer(locate(pair, "base"), locate(pair, "donor")), task_source(config)
    lm_evals = {size: LmEval(tokenizer, source, batch_size=size) for size in args.batch_size}
    for lm_eval in lm_evals.values():  # warms up
        lm_eval.answers(engine.pair.assemble(()), limit=1)
    list(engine.answers([LayerSet(())], asked))

    ours, theirs, differ = [], {size: [] for size in lm_evals}, 0
    for _ in range(args.repeat):
        began = time.perf_counter()
        list(engine.answers(sets, asked))
        ours.append((time.perf_counter() - began) / len(sets))
        for size, lm_eval in lm_evals.items():
            began = time.perf_counter()
            expected = {s: lm_eval.answers(engine.pair.assemble(s.indices), limit=args.limit) for s in sets}
            theirs[size].append((time.perf_counter() - began) / len(sets))
            differ += sum(len(disagreements(engine, layers, expected[layers])) for layers in sets)
    engine_seconds = median(ours)
    seconds = {f"batch {size}": median(times) for size, times in theirs.items()}
    result = {
        "sets": len(sets),
        "questions": len(asked),
        "decisions_differ": differ,
        "engine_seconds_per_set": engine_seconds,
        "lm_eval_seconds_per_set": seconds,
        "speed_up": {name: taken / engine_seconds for name, taken in seconds.items()},
        "device": engine.describe()["device_name"],
        "threads": engine.describe()["threads"],
        "versions": engine.fingerprint["versions"],
    }
    print(f"{len(sets)} sets x {len(asked)} questions: {differ} decisions differ", file=sys.stderr)
    print(f"{'engine':<18}{engine_seconds:8.3f} s per set", file=sys.stderr)
    for name, taken in seconds.items():
        line = f"{'lm-eval, ' + name:<18}{taken:8.3f} s per set, {taken / engine_seconds:.1f} times as long"
        print(line, file=sys.stderr)
    print(json.dumps(result))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(run_tool("against_lm_eval.py", main))
