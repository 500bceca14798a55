"""What a search would cost, told without beginning it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from genetic_algorithm.evaluator import Evaluator
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.progress import spell_seconds
from genetic_algorithm.questions import FAST, FINAL, FULL, HOLDOUT
from genetic_algorithm.search import Search
from genetic_algorithm.strategies import StageForecast


def tell(evaluator: Evaluator, search: Search) -> int:
    """Print the forecast of a search that has not begun; the last line is JSON. Returns the exit code."""
    about: Mapping[str, Any] = getattr(evaluator, "describe", dict)()
    pace = getattr(evaluator, "seconds_per_question", None)
    in_all, parts = search.ledger.num_questions, search.ledger.parts
    budget = None if search.ledger.budget is None else search.ledger.budget + search.hold_out_cost
    stages = search.forecast()
    unheld, mostly = (sum(getattr(stage, name) for stage in stages) for name in ("questions", "typical"))
    most = unheld if budget is None else min(unheld, budget)
    total = StageForecast("in all", sum(stage.sets for stage in stages), most, mostly)
    beside = "" if search.space.contains(LayerSet(())) else ", and the base"
    print(f"Dry run: {search.space.size:,} possible layer sets{beside}; no run is begun.")
    for line in _setting(search, budget):
        print(f"  {line}")
    for name, value in about.items():
        print(f"  {_spell_name(str(name))}: {value}")
    print("Evaluations are answers of one set to one question; passes and time are of what searches mostly ask.")
    width = max(10, *(len(stage.stage) + 1 for stage in stages))
    print(f"{'':<{width}}{'sets at most':>14}{'evaluations at most':>21}{'mostly':>12}{'passes':>9}{'time':>14}")
    for stage in (*stages, total):
        time = "unknown" if pace is None else spell_seconds(stage.typical * pace)
        passes = f"{stage.typical / in_all:.1f}"
        print(f"{stage.stage:<{width}}{stage.sets:>14,}{stage.questions:>21,}", end="")
        print(f"{stage.typical:>12,}{passes:>9}{time:>14}")
    if most < unheld:
        print(f"The budget holds all stages together to {most:,} evaluations, less than their rows add up to.")
    for stage in stages:
        if stage.shared_passes is not None:
            told = f"{stage.shared_passes:,.0f} passes of one model where sets share their lower layers"
            print(f"{stage.stage}: at most {told}")
    document = {
        "dry_run": True,
        "strategy": search.config.strategy,
        "goal": search.config.goal,
        "layer_sets": search.space.size,
        "questions": {"in_all": in_all, **{name: len(parts[name]) for name in (FAST, FULL, FINAL, HOLDOUT)}},
        "budget": budget,
        "max_hours": search.config.max_hours,
        "stages": [dataclasses.asdict(stage) for stage in stages],
        "question_evaluations_at_most": total.questions,
        "question_evaluations": total.typical,
        "full_passes": round(total.typical / in_all, 3),
        "seconds": None if pace is None else round(total.typical * pace, 1),
        **{str(name): value for name, value in about.items()},
    }
    print(json.dumps(document, default=str))
    return 0


def _spell_name(name: str) -> str:
    """`peak memory in GiB` of `peak_memory_gib`."""
    return name.replace("_gib", " in GiB").replace("_", " ")


def _setting(search: Search, budget: int | None) -> list[str]:
    """Strategy, questions and budget, in words."""
    config, ledger = search.config, search.ledger
    in_all = ledger.num_questions
    sizes = {name: len(ledger.parts[name]) for name in (FAST, FULL, FINAL) if len(ledger.parts[name])}
    parts = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    ladder = ", ".join(f"{len(ledger.parts[rung]):,}" for rung in ledger.questions.rungs)
    held = len(ledger.parts[HOLDOUT])
    without = sum(stage.questions for stage in search.strategy.forecast()) + search.hold_out_cost
    unlimited = f"{without:,} question-evaluations at most ({without / in_all:,.1f} passes)"
    lines = [
        f"strategy: {config.strategy}, for {config.goal}",
        f"questions: {in_all:,}, one pass: {parts}, held out {held:,}; ladder {ladder}",
    ]
    if budget is None:
        lines.append(f"budget: none; {unlimited}")
    else:
        lines.append(f"budget: {budget:,} question-evaluations ({budget / in_all:.1f} passes); without it {unlimited}")
    if config.max_hours is not None:
        lines.append(f"time: at most {spell_seconds(3600 * config.max_hours)} of evaluation")
    return lines
