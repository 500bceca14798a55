"""Ask and tell: the three stages behind one interface that never meets a model.

    while request := search.ask():
        search.tell(dict(evaluator.answers(request.batch, request.questions)))

Each stage is a generator that yields requests and reads the ledger when it goes on. Answers are taken in the
order asked, whatever order they arrived in, and all chance comes from one seeded generator, so resuming is
rerunning over an evaluator that remembers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.config import SearchConfig
from genetic_algorithm.errors import SearchError
from genetic_algorithm.evaluator import Answers, Evaluator
from genetic_algorithm.genetic import STAGE as STAGE_1
from genetic_algorithm.genetic import Generation, Genetic
from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.ledger import FAST, FINAL, FULL, HOLDOUT, Ledger, Request, question_parts
from genetic_algorithm.local_search import STAGE as STAGE_3
from genetic_algorithm.local_search import LocalSearch
from genetic_algorithm.patterns import Pattern

STAGE_2, PLAY_OFF, CHECK = "stage 2", "play-off", "hold-out"
STAGES = (STAGE_1, STAGE_2, STAGE_3, PLAY_OFF, CHECK)


@dataclass(slots=True)
class Usage:
    """What a stage was asked for: layer sets newly asked, and question-evaluations."""

    sets: int = 0
    questions: int = 0


@dataclass(slots=True)
class Outcome:
    """What a search found; complete once `ask` has returned None."""

    ledger: Ledger
    usage: dict[str, Usage] = field(default_factory=lambda: {stage: Usage() for stage in STAGES})
    history: list[Generation] = field(default_factory=list)
    patterns: list[Pattern] = field(default_factory=list)
    stage_1: list[LayerSet] = field(default_factory=list)
    """Best by fast score, as many as stage 2 takes."""
    stage_2: list[LayerSet] = field(default_factory=list)
    """Kept by stage 2, best by full score first."""
    paths: list[list[LayerSet]] = field(default_factory=list)
    """Climbs of stage 3, each from its start to where it ended."""
    is_local_optimum: bool = False
    final: list[LayerSet] = field(default_factory=list)
    """The ranking: by score on the final questions, then, for those not asked these, on the full ones."""
    best_per_size: dict[int, LayerSet] = field(default_factory=dict)


class Search:
    """The three stages. `ask` until it returns None, and `tell` each answer.

    Args:
        config: sizes, limits and the seed.
        space: the sets it may propose.
        subjects: subject of each question, int64 [num_questions].
        coarse_from: first of the questions that are there again, for coarse answers; None where none are.
        single_scores: accuracy of each layer alone, by layer; measured first when not given.
        elite: sets to begin with; made of the best single layers when not given.

    Raises:
        SearchError: if an elite set is not in the space or a layer has no score.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: SearchSpace,
        subjects: NDArray[np.int64],
        *,
        coarse_from: int | None = None,
        single_scores: Mapping[int, float] | None = None,
        elite: Sequence[LayerSet] = (),
    ) -> None:
        for layers in elite:
            space.check(layers)
        lacking = [i for i in range(space.num_layers) if single_scores is not None and i not in single_scores]
        if lacking:
            raise SearchError(
                f"the single-layer scores lack layer {lacking[0]}; give all {space.num_layers} layers, or "
                "leave them out and they are measured"
            )
        self.config, self.space = config, space
        parts = question_parts(config, subjects, coarse_from)
        self.ledger = Ledger(parts, coarse_from or len(subjects), len(subjects))
        self.outcome = Outcome(self.ledger)
        self._genetic = Genetic(config, space, self.ledger, np.random.default_rng(config.seed), single_scores, elite)
        self._strategy = self._stages()
        self._pending: Request | None = None
        self._over = False

    def ask(self) -> Request | None:
        """What to evaluate next, the same until it is told; None when the search is over."""
        if self._pending is None and not self._over:
            self._pending = next(self._strategy, None)
            self._over = self._pending is None
        return self._pending

    def tell(self, answers: Mapping[LayerSet, Answers]) -> None:
        """Take the answers to the pending request; a set without any counts as failed.

        Raises:
            SearchError: if nothing was asked, or a set has not one answer per question.
        """
        request = self._pending
        if request is None:
            raise SearchError("nothing was asked; call ask() before tell()")
        usage = self.outcome.usage[request.stage]
        for layers in request.batch:  # in the order asked: arrival cannot matter
            if layers in answers:
                usage.sets += self.ledger.is_new(layers)
                usage.questions += len(request.questions)
                self.ledger.record(layers, request.questions, answers[layers])
            else:
                self.ledger.fail(layers)
        self._pending = None

    def _stages(self) -> Iterator[Request]:
        outcome, config, ledger = self.outcome, self.config, self.ledger
        yield from self._genetic.run()
        outcome.history, outcome.patterns = self._genetic.history, self._genetic.patterns
        ranked = [layers for layers in ledger.scored(FAST) if self.space.contains(layers)]
        outcome.stage_1 = ranked[: config.verified]

        # The best of each size is verified as well, so that the report can compare sizes; so is the base.
        champions = [next((s for s in ranked if len(s) == size), None) for size in self.space.sizes]
        extra = [s for s in champions if s is not None] + [LayerSet(())]
        yield from ledger.wanted([*outcome.stage_1, *extra], FULL, STAGE_2, "full evaluation")
        outcome.stage_2 = self._ranked_full()[: config.kept]

        climb = LocalSearch(config, self.space, ledger, outcome.stage_2[: config.climbs])
        yield from climb.run()
        outcome.paths, outcome.is_local_optimum = climb.paths, climb.is_local_optimum
        yield from ledger.wanted(self._contenders(), FINAL, PLAY_OFF, "final questions")
        ranking = [s for s in ledger.scored(FINAL) if self.space.contains(s)]
        ranking += [s for s in self._ranked_full() if s not in ranking]
        outcome.final = ranking[: config.kept]
        for layers in ranking:
            outcome.best_per_size.setdefault(len(layers), layers)
        if not ranking:
            raise SearchError(
                "no layer set could be evaluated on all the questions; see the warnings above and start again"
            )
        yield from ledger.wanted(outcome.final[: config.holdout_sets], HOLDOUT, CHECK, "hold-out questions")

    def _contenders(self) -> list[LayerSet]:
        """The leader and those that the full questions cannot tell from it; none where it stands alone."""
        ranking, compare = self._ranked_full(), self.ledger.compare
        found = [s for s in ranking if compare(ranking[0], s, FULL).p_value > self.config.doubt]
        return found[: self.config.contenders] if len(found) > 1 else []

    def _ranked_full(self) -> list[LayerSet]:
        return [layers for layers in self.ledger.scored(FULL) if self.space.contains(layers)]


def run(search: Search, evaluator: Evaluator) -> Outcome:
    """Run a search to its end."""
    while request := search.ask():
        search.tell(dict(evaluator.answers(request.batch, request.questions)))
    return search.outcome
