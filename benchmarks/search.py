#!/usr/bin/env python
"""How far from the best set each strategy ends, at equal budgets of questions.

    python benchmarks/search.py                                       # everything; hours on few cores, resumable
    python benchmarks/search.py --strategies ga ga-original --passes 8 16 --seeds 5 --landscapes published
    python benchmarks/search.py --coverage 200                        # do the stated intervals hold?

Landscapes: `published`, a replay fitted to measurements of the 8B pair; `drawn`, another one for each seed that the
measurements leave as likely; and `tiny`, the recorded answers of the bundled pair (`python benchmarks/landscape.py
--answers` makes them). Regret is the true accuracy of the best set of one to four layers less that of the set chosen. A
pass is one set on all questions; on MMLU, a full-MMLU unit. Our own strategies pay for their hold-out out of the same
budget only in the rows that say so; outsiders have none.

Every finished run is a line of runs.jsonl in --output-dir, and is not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import outsiders
from landscapes import RecordedPair, ReplayedPair, drawn_pair, noise_floor
from numpy.typing import NDArray
from search_report import plot, tables
from tqdm import tqdm

from evaluation.entry import run_tool
from genetic_algorithm import LayerSet, Score, SearchSpace
from genetic_algorithm.comparisons import LEVEL, RUNNER_UP, of_leader
from genetic_algorithm.config import SearchConfig, full
from genetic_algorithm.intervals import stratified_error, wilson
from genetic_algorithm.questions import HOLDOUT
from genetic_algorithm.run_folder import versions
from genetic_algorithm.search import Search, run
from genetic_algorithm.strategies import STRATEGIES

LANDSCAPES: dict[str, Callable[[int], Any]] = {"published": ReplayedPair, "drawn": drawn_pair, "tiny": RecordedPair}
FAST_LIMITS = {"published": 10, "drawn": 10, "tiny": 24}
HELD_OUT = "ga, a quarter held out"
OUTSIDERS = {"tpe": outsiders.tpe, "deap": outsiders.deap_ga, "outsiders' random": outsiders.random_search}
MAX_LAYERS = 4
MAX_SETS = 1000  # more than the tiny pair has


@dataclass(frozen=True)
class Cell:
    """One run: which strategy on which landscape, with which budget and seed."""

    landscape: str
    strategy: str
    passes: float
    seed: int


def main(argv: list[str] | None = None) -> int:
    """Run what is not there yet, and print the tables; the last line on stdout is one JSON object."""
    names = [*STRATEGIES, HELD_OUT, *OUTSIDERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--landscapes", nargs="+", choices=LANDSCAPES, default=["published", "tiny"])
    parser.add_argument("--strategies", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--passes", nargs="+", type=float, default=[4, 8, 16, 32, 64])
    parser.add_argument("--seeds", type=int, default=20, help="runs of each [%(default)s]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time [%(default)s]")
    parser.add_argument("--output-dir", type=Path, default=Path("results/search_benchmark"))
    parser.add_argument("--coverage", type=int, metavar="RUNS", help="check intervals and p-values over so many runs")
    args = parser.parse_args(argv)

    if args.coverage:
        found = coverage(args.coverage, args.jobs)
        print(json.dumps(found))
        return 0
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "runs.jsonl"
    cells = [
        Cell(landscape, strategy, passes, seed)
        for landscape in args.landscapes
        for seed in range(args.seeds)
        for passes in args.passes
        for strategy in args.strategies
    ]
    done = {tuple(line["cell"].values()): line for line in _lines(path)}
    open_ = [cell for cell in cells if tuple(asdict(cell).values()) not in done]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool, path.open("a", encoding="utf-8") as file:
        for line in tqdm(pool.imap_unordered(measure, open_), total=len(open_), disable=None):
            file.write(json.dumps(line) + "\n")
            file.flush()
            done[tuple(line["cell"].values())] = line
    lines = [done[tuple(asdict(cell).values())] for cell in cells]
    floor = noise_floor(range(args.seeds)) if "published" in args.landscapes else np.zeros(0)
    text = tables(lines, floor)
    (args.output_dir / "tables.md").write_text(text, encoding="utf-8")
    plot(lines, args.output_dir / "regret.png")
    print(text, file=sys.stderr)
    print(json.dumps({"runs": len(lines), "versions": versions(), "tables": str(args.output_dir / "tables.md")}))
    return 0


def measure(cell: Cell) -> dict[str, Any]:
    """Run one cell: regret, passes spent, and the strategy's own seconds and those of its (replayed) answers."""
    evaluator = LANDSCAPES[cell.landscape](cell.seed)
    space = SearchSpace(evaluator.num_layers, 1, MAX_LAYERS)
    started = time.perf_counter()
    timed = _Timed(evaluator)
    if cell.strategy in OUTSIDERS:
        budget = int(cell.passes * evaluator.num_questions)
        steps = OUTSIDERS[cell.strategy](timed, space, budget, cell.seed)
        spent, chosen = steps[-1]
    else:
        search = Search(config_of(cell), space, np.asarray(evaluator.subjects))
        outcome = run(search, timed)
        chosen = outcome.final[0]
        spent = sum(usage.questions for usage in outcome.usage.values())
    seconds = time.perf_counter() - started
    return {
        "cell": asdict(cell),
        "layers": list(chosen.indices),
        "regret": round(evaluator.best()[1] - evaluator.truth(chosen), 6),
        "passes": round(spent / evaluator.num_questions, 3),
        "own_seconds": round(seconds - timed.seconds, 3),
    }


def config_of(cell: Cell) -> SearchConfig:
    """The full preset with small generations and this budget; nothing is held out but where the name says so."""
    config = replace(
        full(),
        strategy="ga" if cell.strategy == HELD_OUT else cell.strategy,
        max_layers=MAX_LAYERS,
        population=20,
        fast_limit=FAST_LIMITS[cell.landscape],
        max_passes=cell.passes,
        seed=cell.seed,
        holdout=0.25 if cell.strategy == HELD_OUT else 0.0,
    )
    if cell.strategy != "ga-original":
        return config
    # It does not look at its budget: as many generations as leave 40 % of it for stages 2 and 3, which rank by 50
    # questions per subject (tiny: 150) where all would leave them a few sets.
    generation = config.population * (0.0406 if cell.landscape != "tiny" else 0.0234)
    generations = int(np.clip((0.6 * cell.passes - 1.65 * generation) / generation - 1, 1, 20))
    limit = None if cell.passes >= 64 else 150 if cell.landscape == "tiny" else 50
    return replace(config, generations=generations, full_limit=limit)


def coverage(runs: int, jobs: int) -> dict[str, Any]:
    """Over runs of the default on the published landscape at 8 passes: how often the report is wrong.

    Once on the questions of the landscape, once on questions that each run draws anew, of which the intervals speak.
    """
    told: dict[str, Any] = {"runs": runs}
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for name, is_drawn in (("published", False), ("published, new questions", True)):
            reports = pool.imap_unordered(partial(_one_report, is_drawn=is_drawn), range(runs))
            found = list(tqdm(reports, total=runs, disable=None))
            told[name] = {
                "intervals_that_cover": _mean(one["covers"] for one in found),
                "of_a_simple_sample": _mean(one["covers_simple"] for one in found),
                "claims_better_than_runner_up": sum(one["claims_better"] for one in found),
                "wrong_claims_of_all_runs": _mean(one["claims_better"] and one["is_worse"] for one in found),
                "mean_regret": _mean(one["regret"] for one in found),
            }
    told["tiny, hold-outs drawn"] = _drawn_holdouts(runs)
    return told


def _drawn_holdouts(draws: int) -> dict[str, float]:
    """Intervals of every tenth set of the tiny pair, on hold-outs of a quarter drawn from its recorded questions.

    They are drawn with replacement within each subject, so that accuracy on all recorded questions is the truth.
    """
    evaluator, rng = RecordedPair(), np.random.default_rng(0)
    subjects, everything = evaluator.subjects, np.arange(evaluator.num_questions)
    covers, simple = [], []
    for layers in evaluator.top(MAX_SETS)[::10]:
        correct = dict(evaluator.answers([layers], everything))[layers].correct
        for _ in range(draws):
            drawn = np.concatenate([rng.choice(of, len(of) // 4) for of in _by_subject(subjects)])
            right = int(correct[drawn].sum())
            score = Score(right, len(drawn), HOLDOUT, accuracy_error=stratified_error(correct[drawn], subjects[drawn]))
            covers.append(_within(correct.mean(), score.interval))
            simple.append(_within(correct.mean(), wilson(right, len(drawn))))
    return {"intervals_that_cover": _mean(covers), "of_a_simple_sample": _mean(simple)}


def _by_subject(subjects: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(subjects == subject) for subject in np.unique(subjects)]


def _within(value: float, interval: tuple[float, float]) -> bool:
    return interval[0] <= value <= interval[1]


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 5)


def _one_report(seed: int, is_drawn: bool) -> dict[str, Any]:
    """What one run states of its winner, and whether that is true."""
    cell = Cell("published", HELD_OUT, 8, seed)
    evaluator = ReplayedPair(seed, is_drawn=is_drawn)
    outcome = run(
        Search(config_of(cell), SearchSpace(evaluator.num_layers, 1, MAX_LAYERS), evaluator.subjects), evaluator
    )
    leader, runner_up = outcome.final[:2]
    truth = evaluator.truth(leader)
    held = outcome.ledger.score(leader, HOLDOUT)
    assert held is not None
    found = next(finding for finding in of_leader(outcome) if RUNNER_UP in finding.roles)
    raw = found.comparison.p_value < LEVEL and found.comparison.difference > 0
    return {
        "covers": _within(truth, held.interval),
        "covers_simple": _within(truth, wilson(held.correct, held.asked)),
        "claims_better": raw,  # before Holm's correction, which only makes claims rarer
        "is_worse": truth <= evaluator.truth(runner_up),
        "regret": evaluator.best()[1] - truth,
    }


class _Timed:
    """Passes an evaluator on, and sums up how long its answers take: they are simulated, a search's own time is not."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.seconds = inner, 0.0
        self.num_layers, self.num_questions, self.subjects = inner.num_layers, inner.num_questions, inner.subjects

    def answers(self, batch: Any, questions: Any) -> Iterator[tuple[LayerSet, Any]]:
        since = time.perf_counter()
        found = list(self._inner.answers(batch, questions))
        self.seconds += time.perf_counter() - since
        yield from found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


if __name__ == "__main__":
    sys.exit(run_tool("search.py", main))
