#!/usr/bin/env python
"""Does nearness to the donor rank layer sets as accuracy does, and what does it cost?

    python benchmarks/landscape.py --answers benchmarks/data/tiny_answers.npz       # once: records the answers
    python benchmarks/kl_goal.py                                                    # Markdown tables
    python benchmarks/kl_goal.py --donor-cost                   # what asking the donor adds to real searches

On the recorded answers of every set of the tiny pair: sets are ranked by a few questions, the same share of each
subject, and judged by their accuracy on all questions not asked. Then whole searches, `--goal kl` against accuracy at
equal numbers of questions, and searches for accuracy that are not shown margins or divergences.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata
from tqdm import tqdm

from benchmarks.landscapes import RECORDING, RecordedPair
from evaluation.entry import run_tool
from genetic_algorithm import Answers, LayerSet, SearchSpace
from genetic_algorithm.config import GOALS, SearchConfig, full, tiny
from genetic_algorithm.evaluator import Evaluator
from genetic_algorithm.run_folder import versions
from genetic_algorithm.search import Search, run

Floats = NDArray[np.float64]

ASKED = (32, 64, 128, 256, 1024)
BEST, SHORT_LIST, MAX_LAYERS = 40, 10, 4


@dataclass(frozen=True)
class Recording:
    """All answers of all sets; S sets, Q questions."""

    sets: tuple[LayerSet, ...]
    subjects_Q: NDArray[np.int64]
    signals_SQ: Mapping[str, Floats]
    """By name, each the higher the better; `accuracy` is right or wrong."""


@dataclass(frozen=True)
class Ranking:
    """How well one ranking of all sets foretells their accuracies; regrets in points (0.01 of accuracy)."""

    over_all: float
    """Spearman's rank correlation."""
    over_best: float
    """The same over the truly best sets alone."""
    regret: float
    """Of the set ranked best."""
    short_list: float
    """Regret of the best of those ranked highest."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; the last line on stdout is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, default=RECORDING, help="the recording [%(default)s]")
    parser.add_argument("--draws", type=int, default=400, help="draws of the questions asked [%(default)s]")
    parser.add_argument("--seeds", type=int, default=10, help="searches of each kind [%(default)s]")
    parser.add_argument("--passes", nargs="+", type=float, default=[2, 4, 8], help="budgets of a search [%(default)s]")
    parser.add_argument("--donor-cost", action="store_true", help="time real searches on the CPU instead")
    args = parser.parse_args(argv)
    if args.donor_cost:
        print("\n".join(donor_table(args.passes)))
        return 0
    recording = read(args.answers)
    print("\n".join([*whole_table(recording), "", *few_table(recording, args.draws), ""]))
    print("\n".join(search_table(args.answers, args.passes, args.seeds)))
    print(json.dumps({"sets": len(recording.sets), "questions": len(recording.subjects_Q), "versions": versions()}))
    return 0


def read(path: Path) -> Recording:
    """Every set of one to four layers, and each signal of each question."""
    pair = RecordedPair(path=path)
    sets = pair.top(sys.maxsize)
    found = dict(pair.answers(sets, np.arange(pair.num_questions)))
    stacked = {name: np.stack([getattr(found[s], name) for s in sets]).astype(np.float64) for name in Answers._fields}
    margin, divergence = stacked["margin"], stacked["divergence"]
    signals = {
        "accuracy": stacked["correct"],
        "margin": margin,
        "sigmoid(margin)": expit(margin),
        "-KL": -divergence,
        "-√KL": -np.sqrt(np.maximum(divergence, 0)),
    }
    return Recording(tuple(sets), pair.subjects, signals)


def draw(subjects_Q: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` questions, as many of each subject, sorted."""
    names = np.unique(subjects_Q)
    picked = [rng.choice(np.flatnonzero(subjects_Q == name), count // len(names), replace=False) for name in names]
    return np.sort(np.concatenate(picked))


def judge(scores_S: Floats, truth_S: Floats, rng: np.random.Generator) -> Ranking:
    """Compare a ranking with the truth; sets of equal score are ranked at random."""
    best = np.argsort(-truth_S, kind="stable")[:BEST]
    order = np.lexsort((rng.random(len(scores_S)), -scores_S))
    short = truth_S[order[:SHORT_LIST]]
    top = truth_S.max()
    return Ranking(
        _spearman(scores_S, truth_S),
        _spearman(scores_S[best], truth_S[best]),
        100 * float(top - short[0]),
        100 * float(top - short.max()),
    )


def few_table(recording: Recording, draws: int) -> list[str]:
    """Rankings by a few questions, mean over draws with its standard error."""
    lines = [
        f"Ranked by k questions, judged by accuracy on all others; mean of {draws} draws (its standard error)",
        "",
        f"| k | signal | Spearman, all sets | best {BEST} | regret of the first | of the best of {SHORT_LIST} |",
        "|---|---|---|---|---|---|",
    ]
    count = len(recording.subjects_Q)
    for asked in tqdm(ASKED, disable=None):
        found: dict[str, list[Ranking]] = {name: [] for name in recording.signals_SQ}
        for number in range(draws):
            rng = np.random.default_rng([asked, number])
            picked = draw(recording.subjects_Q, asked, rng)
            left = np.setdiff1d(np.arange(count), picked)
            truth = recording.signals_SQ["accuracy"][:, left].mean(axis=1)
            for name, signal in recording.signals_SQ.items():
                found[name].append(judge(signal[:, picked].mean(axis=1), truth, rng))
        for name, rankings in found.items():
            table = np.array([[r.over_all, r.over_best, r.regret, r.short_list] for r in rankings])
            mean, error = table.mean(axis=0), table.std(axis=0, ddof=1) / draws**0.5
            cells = [f"{m:.3f} ({e:.3f})" for m, e in zip(mean, error, strict=True)]
            lines.append(f"| {asked:,} | {name} | " + " | ".join(cells) + " |")
    return lines


def whole_table(recording: Recording) -> list[str]:
    """Rankings by all questions, judged by accuracy on the same: what is left is no noise, but another goal."""
    accuracy = recording.signals_SQ["accuracy"].mean(axis=1)
    lines = [
        f"Ranked by all {len(recording.subjects_Q):,} questions, judged by accuracy on the same",
        "",
        f"| signal | Spearman, all sets | best {BEST} | ranked first | its accuracy | regret "
        f"| of the best of {SHORT_LIST} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, signal in recording.signals_SQ.items():
        scores = signal.mean(axis=1)
        r = judge(scores, accuracy, np.random.default_rng(0))
        first = int(np.argmax(scores))
        lines.append(
            f"| {name} | {r.over_all:.3f} | {r.over_best:.3f} | {recording.sets[first]} | {accuracy[first]:.4f} "
            f"| {r.regret:.2f} | {r.short_list:.2f} |"
        )
    return lines


class Shown:
    """An evaluator whose answers lack what is not named."""

    def __init__(self, inner: RecordedPair, names: Sequence[str]) -> None:
        self._inner, self._names = inner, names
        self.num_layers, self.num_questions, self.subjects = inner.num_layers, inner.num_questions, inner.subjects

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """As `Evaluator` says."""
        for layers, given in self._inner.answers(batch, questions):
            yield layers, Answers(given.correct, **{name: getattr(given, name) for name in self._names})


KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "accuracy": ("accuracy", ("margin", "divergence")),
    "accuracy, no divergences": ("accuracy", ("margin",)),
    "accuracy, right or wrong alone": ("accuracy", ()),
    "kl": ("kl", ("margin", "divergence")),
}


def search_table(path: Path, budgets: Sequence[float], seeds: int) -> list[str]:
    """Regret in accuracy on all questions of the set that a search chooses."""
    lines = [
        f"Strategy ga, nothing held out; regret in points, mean of {seeds} seeds (its standard error; worst)",
        "",
        "| goal | " + " | ".join(f"{passes:g} passes" for passes in budgets) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    best = RecordedPair(path=path).best()[1]
    for kind, (goal, names) in KINDS.items():
        cells = []
        for passes in budgets:
            regrets = np.array([regret(path, config_of(goal, passes, seed), names, best) for seed in range(seeds)])
            error = regrets.std(ddof=1) / seeds**0.5
            cells.append(f"{regrets.mean():.2f} ({error:.2f}; {regrets.max():.2f})")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def config_of(goal: str, passes: float, seed: int) -> SearchConfig:
    """As `benchmarks/search.py` has it for the tiny pair."""
    sizes: dict[str, Any] = {"population": 20, "max_layers": MAX_LAYERS, "fast_limit": 24, "holdout": 0.0}
    return replace(full(), goal=goal, max_passes=passes, seed=seed, **sizes)


def regret(path: Path, config: SearchConfig, names: Sequence[str], best: float) -> float:
    """Points that the set chosen is behind the best one."""
    pair = RecordedPair(config.seed, path)
    search = Search(config, SearchSpace(pair.num_layers, config.min_layers, config.max_layers), pair.subjects)
    outcome = run(search, Shown(pair, names))
    return 100 * (best - pair.truth(outcome.final[0]))


def donor_table(budgets: Sequence[float]) -> list[str]:
    """What part of the processor time of all answers the donor's own pass takes, in searches as they are run."""
    from evaluation.build import build_evaluator  # torch, which recorded answers do not need
    from evaluation.config import EvalConfig
    from evaluation.engine import Engine

    lines = [
        "| goal | budget, passes | asked, passes | questions the donor is asked | its share of the time |",
        "|---|---|---|---|---|",
    ]
    engine = build_evaluator(EvalConfig(pair="tiny"), max_limit=None)
    for goal, passes in product(GOALS, budgets):
        fresh, donor = (Engine(engine.pair, engine.questions, with_divergence=wanted) for wanted in (True, False))
        config = replace(tiny(), goal=goal, max_passes=passes)
        search = Search(config, SearchSpace(engine.num_layers, config.min_layers, config.max_layers), engine.subjects)
        seconds, asked, known = 0.0, 0, np.zeros(engine.num_questions, dtype=np.bool_)
        while request := search.ask():
            took, answers = _timed(fresh, request.batch, request.questions)
            search.tell(answers)
            seconds, asked = seconds + took, asked + request.size
            known[request.questions] = True
        alone, _ = _timed(donor, [LayerSet(tuple(range(engine.num_layers)))], np.flatnonzero(known))
        lines.append(
            f"| {goal} | {passes:g} | {asked / engine.num_questions:.1f} | {known.sum():,} | {alone / seconds:.1%} |"
        )
    return lines


def _timed(
    evaluator: Evaluator, batch: Sequence[LayerSet], questions: NDArray[np.int64]
) -> tuple[float, dict[LayerSet, Answers]]:
    before = time.process_time()
    answers = dict(evaluator.answers(batch, questions))
    return time.process_time() - before, answers


def _spearman(a: Floats, b: Floats) -> float:
    first, second = rankdata(a), rankdata(b)
    if first.std() == 0 or second.std() == 0:  # all alike: nothing is ranked
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


if __name__ == "__main__":
    sys.exit(run_tool("kl_goal.py", main))
