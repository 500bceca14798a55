#!/usr/bin/env python
"""Score every set of up to four donor layers on all questions of a pair: the exhaustive landscape.

    python benchmarks/landscape.py                      # the tiny pair: models/tiny_pair/landscape.json
    python benchmarks/landscape.py --device cuda:0      # the same on a GPU
    python benchmarks/landscape.py --max-layers 2 --output /tmp/small.json
    python benchmarks/landscape.py --answers benchmarks/data/tiny_answers.npz      # every answer, for landscapes.py

The tests of the search and `DEPLOY_TEST.sh` measure what was found against this file. It is written by the same
engine that the search uses, questions outer and the tree of sets inner, so 794 sets cost about 160 passes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.build import build_evaluator
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.entry import run_tool
from genetic_algorithm import Answers, LayerSet
from model_preparation.sources import add_pair_options, locate, pair_or_tiny


def main(argv: Sequence[str] | None = None) -> int:
    """Write the landscape, or every answer; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair_options(parser, otherwise="tiny")
    parser.add_argument("--max-layers", type=int, default=4, help="largest sets [%(default)s]")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N [%(default)s]")
    parser.add_argument("--slice", type=int, default=256, help="questions between progress steps [%(default)s]")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--output", type=Path, help="[the landscape that comes with the pair]")
    target.add_argument("--answers", type=Path, help="write every answer to this .npz file instead of a landscape")
    args = parser.parse_args(argv)

    pair = pair_or_tiny(args)
    output = args.answers or args.output or pair.landscape
    if output is None:
        parser.error(f"the pair {pair.name} has no landscape of its own; name the file with --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    engine = build_evaluator(EvalConfig(pair=pair.name, device=args.device), max_limit=None, locate=locate)
    sets = [LayerSet(c) for size in range(args.max_layers + 1) for c in combinations(range(engine.num_layers), size)]
    started = time.monotonic()
    walk = _walk(engine, sets, args.slice)
    temporary = output.with_name(f".{os.getpid()}.{output.name}")  # its suffix stays: savez would add its own
    write = _record if args.answers else _score
    right = write(engine, sets, walk, temporary)
    os.replace(temporary, output)
    seconds, count = time.monotonic() - started, engine.num_questions
    best = max(sets, key=right.__getitem__)
    print(f"{len(sets)} sets x {count} questions in {seconds:.0f} s", file=sys.stderr)
    print(json.dumps({"best": str(best), "accuracy": right[best] / count, "seconds": round(seconds, 1)}))
    return 0


def _walk(engine: Engine, sets: Sequence[LayerSet], step: int) -> Iterator[tuple[NDArray[np.int64], LayerSet, Answers]]:
    """All answers, `step` questions at a time: the questions asked, a set and its answers to them."""
    count = engine.num_questions
    for begin in tqdm(range(0, count, step), unit_scale=step, unit="q", disable=None):
        asked = np.arange(begin, min(begin + step, count))
        for layers, answers in engine.answers(sets, asked):
            yield asked, layers, answers


def _score(
    engine: Engine,
    sets: Sequence[LayerSet],
    walk: Iterator[tuple[NDArray[np.int64], LayerSet, Answers]],
    output: Path,
) -> dict[LayerSet, int]:
    """Write how many questions each set has right, in all and by subject; return the former."""
    by_subject = {layers: np.zeros(len(engine.subject_names), dtype=np.int64) for layers in sets}
    for asked, layers, answers in walk:
        np.add.at(by_subject[layers], engine.subjects[asked], answers.correct.astype(np.int64))
    right = {layers: int(by_subject[layers].sum()) for layers in sets}
    landscape = {
        "pair": engine.fingerprint["pair"],
        "evaluator": engine.fingerprint,
        "questions": engine.num_questions,
        "subjects": list(engine.subject_names),
        "sets": {str(layers): right[layers] for layers in sets},
        "by_subject": {str(layers): by_subject[layers].tolist() for layers in sets},
    }
    output.write_text(json.dumps(landscape, separators=(",", ":")).replace('],"', '],\n"') + "\n")
    return right


def _record(
    engine: Engine,
    sets: Sequence[LayerSet],
    walk: Iterator[tuple[NDArray[np.int64], LayerSet, Answers]],
    output: Path,
) -> dict[LayerSet, int]:
    """Write every answer; return how many questions each set has right.

    The file holds `sets` (spelled, [S]), `correct` (bool [S, Q]), `margin` and `divergence` (nats, float16 [S, Q]),
    `subjects` (int64 [Q]), `subject_names`, and `fingerprint` (JSON: what answered).
    """
    shape = (len(sets), engine.num_questions)
    correct_SQ = np.zeros(shape, dtype=np.bool_)
    margin_SQ, divergence_SQ = (np.full(shape, np.nan, dtype=np.float16) for _ in range(2))
    row = {layers: i for i, layers in enumerate(sets)}
    for asked, layers, answers in walk:
        correct_SQ[row[layers], asked] = answers.correct
        margin_SQ[row[layers], asked] = answers.margin
        divergence_SQ[row[layers], asked] = answers.divergence
    np.savez(
        output,
        sets=np.array([str(layers) for layers in sets]),
        correct=correct_SQ,
        margin=margin_SQ,
        divergence=divergence_SQ,
        subjects=engine.subjects,
        subject_names=np.array(engine.subject_names),
        fingerprint=np.array(json.dumps(engine.fingerprint)),
    )
    return dict(zip(sets, correct_SQ.sum(axis=1).tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(run_tool("landscape.py", main))
