"""The donor beside what a search found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from genetic_algorithm import Answers, LayerSet, result
from genetic_algorithm.donor import ask_donor
from tests.genetic_algorithm.report.runs import CONFIG, Told, WithDivergence
from tests.genetic_algorithm.simulator import Simulator

WHOLE = LayerSet(tuple(range(12)))


class Right(WithDivergence):
    """Its donor knows so many of the answers."""

    def __init__(self, share: float) -> None:
        super().__init__(0, per_subject=60)
        self.share, self.asked = share, list[tuple[LayerSet, NDArray[np.int64]]]()

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        for layers, answers in super().answers(batch, questions):
            self.asked.append((layers, questions))
            right = np.arange(len(questions)) < self.share * len(questions)
            yield layers, answers._replace(correct=right) if layers == WHOLE else answers


def test_it_is_asked_the_hold_out_and_the_search_learns_nothing_of_it() -> None:
    evaluator = Right(0.9)
    told = Told(evaluator=evaluator).finish()
    ledger, (asked,) = told.search.ledger, [q for layers, q in evaluator.asked if layers == WHOLE]
    assert asked.tolist() == ledger.parts["holdout"].tolist()
    assert WHOLE not in ledger.known
    document = told.document()
    assert document["donor"]["holdout_accuracy"] == pytest.approx(0.9, abs=0.5 / len(asked))
    assert document["donor"]["questions"] == document["donor"]["holdout_questions"] == len(asked)
    apart = {name: value for name, value in document.items() if name not in ("donor", "conclusion")}
    told.search.outcome.donor = None
    assert {name: value for name, value in told.document().items() if name not in ("donor", "conclusion")} == apart


def test_how_much_of_the_way_to_it_the_best_set_goes_is_said_and_drawn() -> None:
    told = Told(evaluator=Right(0.9)).finish()
    document = told.document()
    best, base, donor = (
        entry["holdout_accuracy"] for entry in (document["final_results"][0], document["base"], document["donor"])
    )
    leader = "+".join(map(str, document["final_results"][0]["layers"]))
    share = f"{(best - base) / (donor - base):.0%}"
    assert document["conclusion"].endswith(f" on these: {leader} makes up {share} of what the base lacks.")
    head, *_, last, _, _ = (line.split() for line in result.table(document))
    row = dict(zip(head, last, strict=True))
    assert (row["rank"], row["layers"], row["hold-out"]) == ("donor", "all", f"{donor:.4f}")
    assert row["accuracy"] == row["+-"] == row["questions"] == "-"  # of questions that chose, which it was not asked
    page = told.page()
    assert "donor, 0.9" in page
    assert f"The donor has {donor:.3f}" in page


def test_a_donor_that_is_no_better_than_the_base_makes_no_share() -> None:
    conclusion = Told(evaluator=Right(0.3)).finish().document()["conclusion"]
    assert conclusion.endswith("on these, which is not established to be more than the base has.")


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, holdout=0.0)])
def test_without_a_hold_out_it_is_asked_what_chose_and_without_divergences_nothing(config: object) -> None:
    assert Told(config, Simulator(0, per_subject=60)).finish().document()["donor"] is None  # type: ignore[arg-type]
    evaluator = Right(0.9)
    donor = Told(config, evaluator).finish().document()["donor"]  # type: ignore[arg-type]
    assert donor["part"] == ("holdout" if config is CONFIG else "full")


def test_a_donor_that_cannot_be_asked_is_left_out() -> None:
    told = Told(evaluator=WithDivergence(0, per_subject=60)).finish()

    class Refusing(Simulator):
        def answers(self, *_: object) -> Iterator[tuple[LayerSet, Answers]]:
            return iter(())

    assert ask_donor(told.search, Refusing(0, per_subject=60)) is None


def test_a_donor_that_has_what_the_base_has_divides_nothing_by_nothing() -> None:
    class AllRight(WithDivergence):
        def answers(
            self, batch: Sequence[LayerSet], questions: NDArray[np.int64]
        ) -> Iterator[tuple[LayerSet, Answers]]:
            for layers, answers in super().answers(batch, questions):
                yield layers, answers._replace(correct=np.ones(len(questions), bool))

    conclusion = Told(evaluator=AllRight(0, per_subject=60)).finish().document()["conclusion"]
    assert conclusion.endswith("on these, which is not established to be more than the base has.")
