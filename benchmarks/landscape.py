#!/usr/bin/env python
"""Score every set of up to four donor layers on all questions of a pair: the exhaustive landscape.

    python benchmarks/landscape.py                      # the tiny pair: models/tiny_pair/landscape.json
    python benchmarks/landscape.py --device cuda:0      # the same on a GPU
    python benchmarks/landscape.py --max-layers 2 --output /tmp/small.json

The tests of the search and `DEPLOY_TEST.sh` measure what was found against this file. It is written by the same
engine that the search uses, questions outer and the tree of sets inner, so 794 sets cost about 160 passes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.build import build_evaluator
from evaluation.config import EvalConfig
from evaluation.entry import run_tool
from genetic_algorithm import LayerSet
from model_preparation.sources import add_pair_options, locate, pair_or_tiny


def main(argv: list[str] | None = None) -> int:
    """Write the landscape; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair_options(parser, otherwise="tiny")
    parser.add_argument("--max-layers", type=int, default=4, help="largest sets [%(default)s]")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N [%(default)s]")
    parser.add_argument("--slice", type=int, default=256, help="questions between progress steps [%(default)s]")
    parser.add_argument("--output", type=Path, help="[the landscape that comes with the pair]")
    args = parser.parse_args(argv)

    pair = pair_or_tiny(args)
    output = args.output or pair.landscape
    if output is None:
        parser.error(f"the pair {pair.name} has no landscape of its own; name the file with --output")
    engine = build_evaluator(EvalConfig(pair=pair.name, device=args.device), max_limit=None, locate=locate)
    depth, count = engine.num_layers, engine.num_questions
    sets = [LayerSet(c) for size in range(args.max_layers + 1) for c in combinations(range(depth), size)]
    right = {layers: np.zeros(len(engine.subject_names), dtype=np.int64) for layers in sets}
    started = time.monotonic()
    for begin in tqdm(range(0, count, args.slice), unit_scale=args.slice, unit="q", disable=None):
        asked = np.arange(begin, min(begin + args.slice, count))
        for layers, answers in engine.answers(sets, asked):
            np.add.at(right[layers], engine.subjects[asked], answers.correct.astype(np.int64))
    seconds = time.monotonic() - started
    landscape = {
        "pair": pair.name,
        "evaluator": engine.fingerprint,
        "questions": count,
        "subjects": list(engine.subject_names),
        "sets": {str(layers): int(right[layers].sum()) for layers in sets},
        "by_subject": {str(layers): right[layers].tolist() for layers in sets},
    }
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.write_text(json.dumps(landscape, separators=(",", ":")).replace('],"', '],\n"') + "\n")
    os.replace(temporary, output)
    best = max(sets, key=lambda s: int(right[s].sum()))
    accuracy = right[best].sum() / count
    print(f"{len(sets)} sets x {count} questions in {seconds:.0f} s", file=sys.stderr)
    print(json.dumps({"best": str(best), "accuracy": accuracy, "seconds": round(seconds, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(run_tool("landscape.py", main))
