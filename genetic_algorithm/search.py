"""Ask and tell: a search behind one interface that never meets a model.

    while request := search.ask():
        search.tell(dict(evaluator.answers(request.batch, request.questions)))

A strategy is a generator that yields requests and reads the ledger when it goes on; when it is done, the finalists are
asked the questions that were held out. Answers are taken in the order asked, whatever order they arrived in, and all
chance comes from one seeded generator, so resuming is rerunning over an evaluator that remembers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from genetic_algorithm.config import SearchConfig
from genetic_algorithm.errors import SearchError
from genetic_algorithm.evaluator import Answers, Evaluator, limit_questions
from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.ledger import Ledger, Request
from genetic_algorithm.questions import ALL, FAST, HOLDOUT, divide
from genetic_algorithm.strategies import Setting, StageForecast, Strategy, make_strategy
from genetic_algorithm.strategies.contract import check_request

CHECK = "hold-out"
_FIRST_SHARE = 0.2  # of a budget, for the first look at each layer alone
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Usage:
    """What a stage was asked for: layer sets newly asked, and question-evaluations."""

    sets: int = 0
    questions: int = 0


@dataclass(slots=True)
class Outcome:
    """What a search found; complete once `ask` has returned None."""

    ledger: Ledger
    usage: dict[str, Usage]
    final: list[LayerSet] = field(default_factory=list)
    """The ranking, best first."""
    best_per_size: dict[int, LayerSet] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """What the strategy says of its stages: JSON values by stage, and `patterns`."""
    is_cut_short: bool = False
    """Whether the time allowed was over before the strategy was done."""
    donor: Ledger | None = None
    """Answers of the donor itself, all its layers, where it was asked."""


class Search:
    """One search. `ask` until it returns None, and `tell` each answer.

    Args:
        config: sizes, limits, budget and the seed.
        space: the sets it may propose.
        subjects: subject of each question, int64 [num_questions].
        coarse_from: first of the questions that are there again, for coarse answers; None where none are.
        weights: of each question in a score, float64 [num_questions]; all alike when None.
        single_scores: accuracy of each layer alone, by layer; measured first when not given.
        elite: sets to begin with; made of the best single layers when not given.

    Raises:
        SearchError: if an elite set is not in the space, a layer has no score, or the budget is too small to be of use.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: SearchSpace,
        subjects: NDArray[np.int64],
        *,
        coarse_from: int | None = None,
        weights: NDArray[np.float64] | None = None,
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
        self.space = space
        self._total = _budget(config, len(subjects[:coarse_from]))
        self.config = config = _affordable(config, space, subjects[:coarse_from], self._total)
        questions = divide(config, subjects, coarse_from, weights)
        self.ledger = Ledger(questions, goal=config.goal, layer_cost=config.layer_cost)
        rng = np.random.default_rng(config.seed)
        setting = Setting(config, space, self.ledger, rng, single_scores, elite)
        self.strategy: Strategy = make_strategy(config.strategy, setting)
        self._set_budget(setting)
        self.stages = (*self.strategy.stages, CHECK)
        self.outcome = Outcome(self.ledger, {stage: Usage() for stage in self.stages})
        self._requests = self._all_requests()
        self._threads = ThreadpoolController()
        self._pending: Request | None = None
        self._over = False
        self._asked: dict[LayerSet, None] = {}

    @property
    def hold_out_cost(self) -> int:
        """Question-evaluations of the finalists' last check, at most: leader, runner-up, best per count, base."""
        sets = min(2, self.space.size) + max(0, len(self.space.sizes) - 1) + 1
        return sets * len(self.ledger.parts[HOLDOUT])

    def forecast(self) -> list[StageForecast]:
        """The cost by stage, the hold-out included; a budget that is less than it is shared out in proportion."""
        stages, left = self.strategy.forecast(), self.ledger.left
        share = min(1.0, left / max(1, sum(stage.typical for stage in stages)))
        looks = left // max(1, len(self.ledger.parts[FAST]))
        found = [
            replace(
                stage,
                sets=int(min(stage.sets, looks)),
                questions=int(min(stage.questions, left)),
                typical=int(stage.typical * share),
            )
            for stage in stages
        ]
        check = self.hold_out_cost
        sets = check // max(1, len(self.ledger.parts[HOLDOUT]))
        return [*found, StageForecast(CHECK, sets, check, check)]

    def ask(self) -> Request | None:
        """What to evaluate next, the same until it is told; None when the search is over."""
        if self._pending is None and not self._over:
            # Small matrices: threads would spend their time waiting for one another, or for cores that are busy.
            with self._threads.limit(limits=1, user_api="blas"):
                self._pending = next(self._requests, None)
            self._over = self._pending is None
        return self._pending

    def tell(self, answers: Mapping[LayerSet, Answers]) -> None:
        """Take the answers to the pending request; a set without any, or with NaN among them, counts as failed.

        Raises:
            SearchError: if nothing was asked, a set has not one answer per question, or too many sets fail.
        """
        request = self._pending
        if request is None:
            raise SearchError("nothing was asked; call ask() before tell()")
        usage = self.outcome.usage[request.stage]
        for layers in request.batch:  # in the order asked: arrival cannot matter
            self._asked[layers] = None
            if layers in answers and not _has_nan(answers[layers]):
                usage.sets += self.ledger.is_new(layers)
                usage.questions += len(request.questions)
                self.ledger.record(layers, request.questions, answers[layers])
                continue
            if layers in answers:
                _log.warning("%s has NaN among its answers: it is left out", layers)
            self.ledger.fail(layers)
        self._pending = None
        failed = len(self.ledger.failed)
        if failed > max(3, self.config.max_failed * len(self._asked)):
            raise SearchError(
                f"{failed} of {len(self._asked)} layer sets could not be evaluated, more than --max-failed "
                f"{self.config.max_failed} allows; see the warnings above. Finished work is kept: put the cause right "
                "and give the same command again with --retry-failed"
            )

    def stop(self) -> None:
        """Let the strategy ask for nothing more: the time allowed is over. The hold-out is still asked.

        What is pending is left out, too, as if there were no budget for it.
        """
        if self._pending is not None and self._pending.stage == CHECK:
            return
        self.ledger.budget = self.ledger.spent
        self.outcome.is_cut_short = True
        self._pending = None

    def _all_requests(self) -> Iterator[Request]:
        outcome, ledger = self.outcome, self.ledger
        for request in self.strategy.run():
            if not outcome.is_cut_short:  # it may have been made before the search was stopped
                yield self._checked(request)
        ranking = self.strategy.ranking()
        outcome.details = self.strategy.details()
        if not ranking:
            raise SearchError(self._why_nothing())
        outcome.final = ranking[: self.config.kept]
        for layers in ranking:
            outcome.best_per_size.setdefault(len(layers), layers)
        ledger.budget = None  # what this costs was set aside
        yield from ledger.wanted(self.finalists(), HOLDOUT, CHECK, "finalists")

    def _checked(self, request: Request) -> Request:
        """Hold a strategy, which may be a user's own, to what it may ask."""
        try:
            check_request(request, self.strategy.stages, self.space, self.ledger)
        except SearchError as error:
            raise SearchError(f"strategy {self.config.strategy}: {error}") from None
        return request

    def _why_nothing(self) -> str:
        """Why nothing is ranked, and the next step."""
        if self.ledger.failed:
            return "no layer set could be evaluated on all the questions; see the warnings above and start again"
        if self.outcome.is_cut_short:
            return "the time allowed was over before a layer set had its score; raise --max-hours and start again"
        asked = [layers for layers in self.ledger.known if len(layers)]
        if asked and not any(map(self.space.contains, asked)):
            return (
                f"strategy {self.config.strategy} ended with no set of the space asked, of {self.space.min_layers} to "
                f"{self.space.max_layers} layers; smaller ones serve to measure from, and no ranking takes them"
            )
        return (
            f"strategy {self.config.strategy} ended without a set in its ranking, though none failed; end `run` with "
            "`yield from verify(self.setting)`, which asks the sets that it has looked at the full questions"
        )

    def finalists(self) -> list[LayerSet]:
        """Sets that are asked the hold-out: leader, runner-up, the best of each smaller count, the base."""
        leader, smaller = self.outcome.final[0], sorted(self.outcome.best_per_size.items())
        best = [layers for size, layers in smaller if size < len(leader)]
        return list(dict.fromkeys([*self.outcome.final[:2], *reversed(best), LayerSet(())]))

    def _set_budget(self, setting: Setting) -> None:
        """Give the strategy what is left when the hold-out has been paid for."""
        if self._total is None:
            return
        budget = self._total - self.hold_out_cost
        looks = min(self.space.size, self.config.population // 2) + len(setting.singles)
        least = looks * len(self.ledger.parts[FAST])
        if budget < least:
            raise SearchError(
                f"a budget of {self._total:,} questions is below the least useful one here, "
                f"{least + self.hold_out_cost:,} ({(least + self.hold_out_cost) / len(self.ledger.parts[ALL]):.1f} "
                "passes): raise it, or lower --fast-limit, --population or --holdout"
            )
        self.ledger.budget = budget


def _budget(config: SearchConfig, num_questions: int) -> int | None:
    """Question-evaluations allowed, the least of what is given; None where nothing is."""
    given = [config.max_questions, None if config.max_passes is None else config.max_passes * num_questions]
    return min((int(most) for most in given if most is not None), default=None)


def _affordable(
    config: SearchConfig, space: SearchSpace, subjects: NDArray[np.int64], budget: int | None
) -> SearchConfig:
    """The configuration with a fast look small enough that looking at each layer leaves budget for the search."""
    wished = config.fast_limit
    if budget is None or wished is None:
        return config
    limit, least, looks = wished, min(wished, 2), len(space.free) + 2
    while limit > least and looks * len(limit_questions(subjects, limit)) > _FIRST_SHARE * budget:
        limit -= 1
    if limit < wished:
        _log.info("the budget is small: the fast look takes %d questions per subject, not %d", limit, wished)
    return replace(config, fast_limit=limit)


def _has_nan(answers: Answers) -> bool:
    return any(values is not None and bool(np.isnan(values).any()) for values in answers[1:])


def run(search: Search, evaluator: Evaluator) -> Outcome:
    """Run a search to its end."""
    while request := search.ask():
        search.tell(dict(evaluator.answers(request.batch, request.questions)))
    return search.outcome
