#!/usr/bin/env python
"""How much faster several workers answer than one, and what the cluster layer costs at one worker.

    python benchmarks/cluster.py --mmlu-dir DIR --gpus 0,1           # 8B shapes, generated weights, real MMLU
    python benchmarks/cluster.py --pair tiny --cpu-workers 2         # the bundled pair in float32, one core a worker

The same request, a population of random sets of two to four layers, is asked of an engine in this process, of one
worker and of all, in turn, after one round that does not count. Answers must be the same bits each time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import engine as engine_tool
import numpy as np
import torch
from engine_bench import Bench
from serving import say

from evaluation.cluster.driver import ClusterEvaluator
from evaluation.cluster.options import ClusterOptions, parse_gpus
from evaluation.cluster.ray_pool import RayPool
from evaluation.entry import run_tool
from evaluation.remembering import slices
from genetic_algorithm import Answers, Evaluator, LayerSet, SearchSpace

Ask = Callable[[], Mapping[LayerSet, Answers]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table and one JSON object."""
    args, engine_argv = parse(argv)
    gpus = () if args.gpus is None else parse_gpus(args.gpus)
    count = len(gpus) or args.cpu_workers
    import cluster  # this file under its own name, by which workers can import it

    make = partial(cluster.make_engine, engine_argv, args.threads or (None if gpus else 1))
    about = {
        **engine_tool.machine(torch.device(device_of(engine_argv)), engine_tool.parse(engine_argv)),
        "workers": count,
    }
    say("# Several workers: " + ", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    alone = make()
    sets = population(alone.num_layers, args.population)
    asked = asked_questions(alone, args.limit)
    say(f"{len(sets)} sets, {len(asked)} questions")
    found: dict[str, list[float]] = {}
    first: Mapping[LayerSet, Answers] | None = None
    ways: list[tuple[str, Callable[[], Any]]] = [("one worker", lambda: pool_of(gpus[:1], 1, make))]
    ways.append((f"{count} workers", lambda: pool_of(gpus, count, make)))
    for _ in range(1 + args.repeat):
        first = timed("this process", found, partial(answers_of, alone, sets, asked), first)
    del alone
    if gpus:
        torch.cuda.empty_cache()
    for name, open_pool in ways:
        with ClusterEvaluator(open_pool()) as evaluator:
            while evaluator.ready < (1 if name == "one worker" else count):
                evaluator.wait()
            for _ in range(1 + args.repeat):
                first = timed(name, found, partial(answers_of, evaluator, sets, asked), first)
    seconds = {name: median(times[1:]) for name, times in found.items()}
    one, all_of_them = seconds["one worker"], seconds[f"{count} workers"]
    rows = [f"| {name} | {value:.3f} | {one / value:.3f} |" for name, value in seconds.items()]
    say("\n| asked of | s | times one worker |\n|---|---|---|\n" + "\n".join(rows))
    say(f"\nthe cluster layer at one worker takes {one / seconds['this process'] - 1:+.1%}")
    print(json.dumps({**about, "seconds": seconds, "speed_up": one / all_of_them, "all": found}, default=str))
    return 0


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and those for benchmarks/engine.py in each worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--gpus", help="0,1 or all")
    add("--cpu-workers", type=int, default=2, help="where no GPUs are given [%(default)s]")
    add("--threads", type=int, help="cores of a worker [1 on a CPU]")
    add("--population", type=int, default=40, help="layer sets [%(default)s]")
    add("--limit", type=int, default=10, help="questions per subject [%(default)s]")
    add("--repeat", type=int, default=3, help="timings [%(default)s]")
    add("--pair", help="a pair with weights of its own [generated ones]")
    add("--mmlu-dir", help="local copy of MMLU")
    add("--cache", help="of tokenised questions")
    add("--commit", help="where git cannot tell it")
    args = parser.parse_args(argv)
    given = ["--device", "cuda:0" if args.gpus else "cpu", "--modes", "bf16" if args.gpus else "fp32"]
    for name in ("pair", "mmlu_dir", "cache", "commit"):
        if (value := getattr(args, name)) is not None:
            given += ["--" + name.replace("_", "-"), value]
    return args, given


def device_of(engine_argv: Sequence[str]) -> str:
    """As given."""
    return engine_argv[engine_argv.index("--device") + 1]


def make_engine(engine_argv: Sequence[str], threads: int | None) -> Evaluator:
    """The engine of benchmarks/engine.py."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    bench = Bench(engine_tool.parse(engine_argv))
    bench.write_letters()
    return bench.engine(bench.modes[0])


def pool_of(gpus: Sequence[int], count: int, make: Callable[[], Evaluator]) -> RayPool:
    """A cluster of this host."""
    return RayPool(ClusterOptions(gpus=tuple(gpus), cpu_workers=0 if gpus else count), make)


def population(depth: int, count: int) -> list[LayerSet]:
    """Distinct sets of 2 to 4 layers, the same each time."""
    space, rng = SearchSpace(depth, 2, 4), np.random.default_rng(0)
    return list(dict.fromkeys(space.random(rng) for _ in range(10 * count)))[:count]


def asked_questions(evaluator: Evaluator, limit: int) -> Any:
    """The first of each subject."""
    from genetic_algorithm.evaluator import limit_questions

    return limit_questions(np.asarray(evaluator.subjects), limit)


def answers_of(evaluator: Evaluator, sets: Sequence[LayerSet], asked: Any) -> Mapping[LayerSet, Answers]:
    """In slices, as a search's journal asks."""
    if isinstance(evaluator, ClusterEvaluator):
        shared = slices(asked, least=evaluator.least_questions)
        parts: dict[LayerSet, dict[int, Answers]] = {layers: {} for layers in sets}
        for layers, questions, answers in evaluator.pieces([(list(sets), piece) for piece in shared]):
            parts[layers][int(questions[0])] = answers
        ordered = {layers: [found[key] for key in sorted(found)] for layers, found in parts.items()}
    else:
        ordered = {layers: [] for layers in sets}
        for piece in slices(asked):
            for layers, answers in evaluator.answers(sets, piece):
                ordered[layers].append(answers)
    return {
        layers: Answers(np.concatenate([a.correct for a in each]), np.concatenate([a.margin for a in each]))
        for layers, each in ordered.items()
    }


def timed(
    name: str, found: dict[str, list[float]], ask: Ask, first: Mapping[LayerSet, Answers] | None
) -> Mapping[LayerSet, Answers]:
    """Ask, and compare with the first answers of all."""
    began = time.perf_counter()
    answers = ask()
    found.setdefault(name, []).append(time.perf_counter() - began)
    say(f"{name}: {found[name][-1]:.3f} s")
    if first is not None:
        differ = sum(
            not (
                np.array_equal(answers[s].correct, first[s].correct)
                and np.array_equal(answers[s].margin, first[s].margin)
            )
            for s in first
        )
        if differ:
            say(f"{differ} of {len(first)} sets are answered otherwise than by the first way")
    return first or answers


if __name__ == "__main__":
    sys.exit(run_tool("cluster.py", main))
