#!/usr/bin/env python
"""How fast the engine answers, beside lm-eval's HFLM and beside its own matrix products run alone.

    python benchmarks/engine.py --mmlu-dir DIR                       # one GPU of 80 GB: 8B shapes, generated weights
    python benchmarks/engine.py --mmlu-dir DIR --parts one-limit10 rate profile --modes bf16
    python benchmarks/engine.py --pair tiny --device cpu             # a real pair: the bundled one, in float32
    python benchmarks/engine.py --mmlu-dir DIR --shapes small --device cpu --limit 1 --full 2    # a look at the tool

Questions are those of MMLU as lm-eval renders them, or a pair's own. Each part prints its result as it ends; a table of
all follows, and one JSON object. Times are of whole requests, after one that does not count. The plan of a request's
batches is made at its first time and then kept, so planning is in none of the times, but for a CPU's first time of more
questions than --limit. A candidate's operations are counted twice: as run, with what questions and candidates share run
once; and as asked, with every token of every question through every layer of every candidate.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from engine_bench import Bench
from engine_parts import PARTS
from serving import attempt, say

from evaluation.config import default_cache_dir
from evaluation.entry import run_tool
from evaluation.errors import EvaluationError
from genetic_algorithm.run_folder import versions

DEFAULT = [part for part in PARTS if part not in ("pairs", "hflm-five-shot", "slices")]
GOALS = {
    "one-full": (43.0, None),
    "one-limit10": (1.6, 1.0),
    "population": (1.12, 0.70),
    "neighbours": (0.72, 0.45),
    "pairs": (0.60, 0.38),
}
"""Of one H200 at 8B shapes, in seconds per candidate: bf16, fp8."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print each part's result as it ends, a Markdown table of all, then one JSON object."""
    args = parse(argv)
    deadline = time.monotonic() + args.budget
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    for noisy in ("transformers", "lm_eval", "datasets"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    about = machine(torch.device(args.device), args)
    say("# The engine: " + ", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    with torch.no_grad():
        bench = Bench(args)
        start(bench)
        for name, part in PARTS.items():
            if name in args.parts and time.monotonic() > deadline:
                say(f"[{name}: skipped, the budget is spent]")
            elif name in args.parts:
                began = time.monotonic()
                with attempt(name, deadline):
                    part(bench)
                say(f"[{name}: {time.monotonic() - began:.1f} s; {deadline - time.monotonic():.0f} s left]\n")
    say(summary(bench.results, about, args.shapes == "8b" and not args.pair))
    print(json.dumps({**about, **bench.results}, default=str))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", nargs="+", choices=[*PARTS, "all"], default=DEFAULT, metavar="PART", help=f"of {', '.join(PARTS)}")
    add("--modes", nargs="+", choices=["bf16", "fp32", "fp8"], help="dtypes of the products [those that there are]")
    add("--pair", metavar="NAME", help="a pair with weights of its own [generated ones]")
    add("--shapes", choices=["8b", "small"], default="8b", help="of generated weights [%(default)s]")
    add("--device", default="cuda:0", help="cpu or cuda:N [%(default)s]")
    add("--dtype", choices=["bfloat16", "float32"], help="of the weights [bfloat16 on a GPU, float32 on a CPU]")
    add("--mmlu-dir", type=Path, help="local copy of MMLU")
    add("--tokenizer", type=Path, metavar="FILE", help="made where it is missing [benchmark_tokenizer.json in --cache]")
    add("--cache", type=Path, default=default_cache_dir(), help="folder of tokenised questions [%(default)s]")
    add("--limit", type=int, help="questions per subject of the limited parts [10; of a pair's own on a CPU 64]")
    add("--pairs-limit", type=int, help="the same of the part pairs [--limit]")
    add("--full", type=int, metavar="N", help="questions per subject of the full parts [all]")
    add("--hflm-full", action="store_true", help="lm-eval on the full questions as well")
    add("--hflm-batch", type=int, nargs="+", default=[16, 64, 4], help="rows per pass; the first is timed %(default)s")
    add("--batch-tokens", type=int, help="most tokens of the engine's batches [what suits the device]")
    add("--repeat", type=int, default=3, help="timings of what takes below 10 s [%(default)s]")
    add("--rate-seconds", type=float, default=4.0, help="for which products run alone [%(default)s]")
    add("--budget", type=float, default=540, help="seconds, then the rest is skipped [%(default)s]")
    add("--commit", help="where git cannot tell it")
    args = parser.parse_args(argv)
    args.limit = args.limit or (64 if args.pair and args.device == "cpu" else 10)
    args.parts = list(PARTS) if "all" in args.parts else args.parts
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    if not args.pair and args.mmlu_dir is None:
        raise EvaluationError("generated weights know no questions of their own; give --mmlu-dir, or --pair")
    return args


def machine(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions and date."""
    cuda = device.type == "cuda" and torch.cuda.is_available()
    name = torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    about = {"device": name, "date": f"{datetime.now():%Y-%m-%d}", **versions()}
    about["commit"] = args.commit or about["commit"]
    for package in ("triton", "lm_eval", "flash-linear-attention"):
        try:
            about[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {key: value for key, value in about.items() if value}


def start(bench: Bench) -> None:
    """Questions and first answers, and how long all took until then."""
    began = time.perf_counter()
    questions = bench.questions(0)
    bench.results["seconds_to_questions"] = time.perf_counter() - began
    began = time.perf_counter()
    bench.write_letters()
    bench.results["seconds_to_letters"] = time.perf_counter() - began
    began = time.perf_counter()
    engine = bench.engine(bench.modes[0])
    list(engine.answers([bench.candidate], bench.asked(1)))
    bench.results["seconds_to_first_answers"] = time.perf_counter() - began
    told = {
        key[11:].replace("_", " "): round(bench.results[key], 2) for key in bench.results if key[:11] == "seconds_to_"
    }
    bench.results["kernels"] = engine.layers.kernels.name
    say(
        f"{len(questions):,} questions, {len(questions.tokens_N):,} tokens; kernels: {engine.layers.kernels.name}; "
        f"{engine.batch_tokens:,} tokens at a time; modes: {', '.join(bench.modes)}\nseconds to "
        + ", ".join(f"{name} {value}" for name, value in told.items())
        + f"; since the process began {process_seconds():.1f}\n"
    )


def process_seconds() -> float:
    """Since this process began, imports and all; as Linux tells it."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    return up - ticks / os.sysconf("SC_CLK_TCK")


def summary(results: Mapping[str, Any], about: Mapping[str, Any], has_goals: bool) -> str:
    """All rows as one Markdown table."""
    limited, full = results.get("hflm_limited_seconds"), results.get("hflm_full_seconds")
    theirs = {"one-limit10": limited, "population": limited, "neighbours": limited, "pairs": limited, "one-full": full}
    theirs |= {"five-shot-one-limit10": results.get("hflm_five_shot_seconds")}
    lines = [
        ", ".join(f"{name} {value}" for name, value in about.items()),
        "",
        "| work | dtype | lm-eval, s | s each | goal | TFLOP each, as run | TFLOP/s | products alone, s | share | "
        "share, as asked | peak GB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        goals = GOALS.get(row["work"], (None, None))
        goal = goals[row["mode"] == "fp8"] if has_goals and row["mode"] != "streamed" else None
        cells = [
            row["told"],
            row["mode"],
            _number(theirs.get(row["work"]), 2),
            _number(row["seconds_each"], 4),
            _number(goal, 2),
            _number(row["tflop_run"], 3),
            _number(row["tflops_run"], 3),
            _number(row["products_alone_seconds"], 4),
            _number(row["share"], 3),
            _number(row["share_asked"], 3),
            _number(row["peak_gb"], 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for mode, rates in results["sustained"].items():
        lines += ["", f"Products alone, {mode}: {', '.join(f'{rate / 1e12:.3f}' for rate in rates)} TFLOP/s."]
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(run_tool("engine.py", main))
