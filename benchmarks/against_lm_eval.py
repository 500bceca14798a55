#!/usr/bin/env python
"""Our engine beside lm-eval's own HFLM: the same hybrids, the same questions, the same run.

    python benchmarks/against_lm_eval.py                              # 20 random sets, the tiny pair's questions
    python benchmarks/against_lm_eval.py --tasks mmlu --mmlu-dir DIR --limit 10 --sets 1

lm-eval is used the way searches use it: models built once, layers swapped in place, tasks loaded once, then
`simple_evaluate` for each candidate. Decisions are compared question by question.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from evaluation.build import build_evaluator, load_tokenizer, task_source
from evaluation.config import EvalConfig
from evaluation.entry import run_tool
from evaluation.reference import LmEval
from genetic_algorithm import LayerSet, SearchSpace
from genetic_algorithm.evaluator import limit_questions
from models.pairs import get_pair


def main(argv: list[str] | None = None) -> int:
    """Print a table, then one JSON object; exit 1 where a decision differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="tiny", help="base and donor; local folders only [%(default)s]")
    parser.add_argument("--tasks", nargs="*", default=[], help="lm-eval tasks [the pair's own]")
    parser.add_argument("--mmlu-dir", type=Path, help="local copy of MMLU")
    parser.add_argument("--limit", type=int, default=32, help="questions per subject [%(default)s]")
    parser.add_argument("--sets", type=int, default=20, help="candidates [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per pass of lm-eval [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the candidates [%(default)s]")
    args = parser.parse_args(argv)

    config = EvalConfig(pair=args.pair, tasks=tuple(args.tasks), mmlu_dir=args.mmlu_dir, question_order="dataset")
    engine = build_evaluator(config, max_limit=args.limit)
    pair = get_pair(args.pair)
    space, rng = SearchSpace(engine.num_layers, 1, 4), np.random.default_rng(args.seed)
    sets = list(dict.fromkeys(space.random(rng) for _ in range(4 * args.sets)))[: args.sets]
    asked = limit_questions(engine.subjects, args.limit)

    lm_eval = LmEval(load_tokenizer(Path(pair.base)), task_source(config), batch_size=args.batch_size)
    lm_eval.answers(engine.pair.assemble(()), limit=1)  # warms up
    list(engine.answers([LayerSet(())], asked))

    began = time.perf_counter()
    ours = dict(engine.answers(sets, asked))
    our_seconds = (time.perf_counter() - began) / len(sets)
    began, differ = time.perf_counter(), 0
    theirs = {s: lm_eval.answers(engine.pair.assemble(s.indices), limit=args.limit) for s in sets}
    their_seconds = (time.perf_counter() - began) / len(sets)
    for layers in sets:
        of_subject = [theirs[layers][name].correct for name in engine.subject_names]
        differ += int((np.concatenate(of_subject) != ours[layers].correct).sum())
    result = {
        "sets": len(sets),
        "questions": len(asked),
        "decisions_differ": differ,
        "engine_seconds_per_set": our_seconds,
        "lm_eval_seconds_per_set": their_seconds,
        "speed_up": their_seconds / our_seconds,
        "device": engine.describe()["device_name"],
        "threads": engine.describe()["threads"],
        "versions": engine.fingerprint["versions"],
    }
    print(f"{len(sets)} sets x {len(asked)} questions: {differ} decisions differ", file=sys.stderr)
    print(
        f"engine {our_seconds:.3f} s per set, lm-eval {their_seconds:.3f}: {result['speed_up']:.1f} times faster",
        file=sys.stderr,
    )
    print(json.dumps(result))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(run_tool("against_lm_eval.py", main))
