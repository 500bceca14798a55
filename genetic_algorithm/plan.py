"""What a search will cost at most, before it begins and while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.config import SearchConfig
from genetic_algorithm.genetic import STAGE as STAGE_1
from genetic_algorithm.layer_set import SearchSpace
from genetic_algorithm.ledger import FAST, FINAL, FULL, HOLDOUT
from genetic_algorithm.local_search import STAGE as STAGE_3
from genetic_algorithm.search import CHECK, PLAY_OFF, STAGE_2, STAGES


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Layer sets that a stage looks at, and question-evaluations: at most, and as searches mostly go."""

    stage: str
    sets: int
    questions: int
    typical: int


def make_plan(
    config: SearchConfig,
    space: SearchSpace,
    parts: Mapping[str, NDArray[np.int64]],
    *,
    measure_singles: bool,
) -> list[StagePlan]:
    """The cost of a search by stage. The sum is an upper bound; most searches stay well below it."""
    fast, full, final = (len(parts[name]) for name in (FAST, FULL, FINAL))
    rest = len(np.setdiff1d(parts[FULL], parts[FAST]))  # coarse answers are no part of the full ones
    singles = space.num_layers + 1 if measure_singles else 0
    per_generation = max(1, config.population - config.elitism)
    first = min(space.size, config.population + config.generations * per_generation)
    early = min(space.size, config.population + min(config.generations, config.no_improve + 3) * per_generation)
    verified = min(space.size, config.verified + len(space.sizes)) + 1

    near = max((_neighbourhood(space, size) for size in space.sizes), default=0)
    climbs = min(config.climbs, space.size)
    screened = min(space.size - first, climbs * config.rounds * near)  # none was looked at in stage 1
    checked = min(space.size, config.verifications, climbs * config.rounds * config.verified_per_round)
    contenders = min(config.contenders, space.size) if final else 0
    more = max(0, final - full)
    finalists = min(config.holdout_sets, config.kept, space.size) * len(parts[HOLDOUT])
    base = 0 if measure_singles else full - rest
    return [
        StagePlan(STAGE_1, singles + first, (singles + first) * fast, (singles + early) * fast),
        StagePlan(STAGE_2, verified, verified * rest + base, verified * rest + base),
        StagePlan(
            STAGE_3,
            screened,
            screened * fast + checked * rest,
            min(screened, climbs * near // 2) * fast + checked // 4 * rest,
        ),
        StagePlan(PLAY_OFF, contenders, contenders * more, contenders // 2 * more),
        StagePlan(CHECK, config.holdout_sets if finalists else 0, finalists, finalists),
    ]


def remaining(plan: list[StagePlan], used: Mapping[str, int], stage: str) -> tuple[int, int]:
    """Question-evaluations left from `stage` on, as searches mostly go and at most; `used` is by stage."""
    later = [item for item in plan if item.stage in STAGES[STAGES.index(stage) :]]
    typical = sum(max(0, item.typical - used.get(item.stage, 0)) for item in later)
    return typical, sum(max(0, item.questions - used.get(item.stage, 0)) for item in later)


def _neighbourhood(space: SearchSpace, size: int) -> int:
    outside = space.num_layers - size
    add = outside if size < space.max_layers else 0
    return size * outside + add + (size if size > space.min_layers else 0)
