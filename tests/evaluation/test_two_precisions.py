from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evaluation.build import build_evaluator, with_coarse_answers
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.errors import EvaluationError
from evaluation.two_precisions import TwoPrecisions
from genetic_algorithm import LayerSet
from genetic_algorithm.config import tiny
from genetic_algorithm.layer_set import SearchSpace
from genetic_algorithm.questions import FAST, FINAL, FULL, HOLDOUT
from genetic_algorithm.search import Search, run


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    config = EvalConfig(pair="tiny", dtype="bfloat16", cache_dir=tmp_path_factory.mktemp("cache"))
    return build_evaluator(config, max_limit=6)


@pytest.fixture(scope="module")
def both(exact: Engine) -> TwoPrecisions:
    """The coarse one computes in 8 bits by the plain twin: slowly, but the same numbers."""
    coarse = Engine(exact.pair, exact.questions, layers=exact.layers.quantised(), batch_tokens=exact.batch_tokens)
    return TwoPrecisions(exact, coarse)


def test_questions_of_either_kind_are_answered_by_their_engine(both: TwoPrecisions, exact: Engine) -> None:
    count, sets = exact.num_questions, [LayerSet((0, 2)), LayerSet(())]
    mixed = np.array([count + 3, 5, 0, count, 2 * count - 1, 7])
    of_exact = dict(exact.answers(sets, np.arange(count)))
    of_coarse = dict(both.answers(sets, np.arange(count, 2 * count)))
    assert any(not np.array_equal(of_exact[s].margin, of_coarse[s].margin) for s in sets)
    for layers, found in both.answers(sets, mixed):
        expected = [(of_coarse if q >= count else of_exact)[layers].margin[q % count] for q in mixed]
        np.testing.assert_allclose(found.margin, expected, atol=0.5)  # bfloat16 sums in batches of another shape


def test_each_question_is_there_twice_and_the_journal_would_know(both: TwoPrecisions, exact: Engine) -> None:
    assert (both.num_questions, both.coarse_from) == (48, 24)
    np.testing.assert_array_equal(both.subjects[:24], both.subjects[24:])
    assert both.fingerprint["fast_dtype"] == "fp8"
    assert {k for k in both.fingerprint if both.fingerprint[k] != exact.fingerprint.get(k)} == {
        "fast_dtype",
        "num_questions",
    }
    assert "fast stage: fp8" in both.setting


class Noting:
    """Answers by the set's size, and notes which questions it was asked."""

    num_layers = 6

    def __init__(self) -> None:
        self.subjects = np.tile(np.repeat([0, 1], 30), 2)
        self.num_questions, self.coarse_from = 120, 60
        self.asked: dict[str, set[int]] = {}

    def answers(self, batch: Any, questions: np.ndarray) -> Iterator[Any]:
        from genetic_algorithm import Answers

        for layers in batch:
            rng = np.random.default_rng([len(layers), *layers.indices])
            yield layers, Answers(rng.random(120)[questions] < 0.3 + 0.1 * len(layers))


SMALL = replace(tiny(), max_passes=None, population=8, generations=3, fast_limit=5, full_limit=15, final_limit=20)


@pytest.mark.parametrize("strategy", ["ga", "ga-original"])
def test_only_the_first_look_asks_coarsely_and_no_coarse_answer_counts_in_the_end(strategy: str) -> None:
    evaluator = Noting()
    config = replace(SMALL, strategy=strategy)
    search = Search(config, SearchSpace(6, 1, 3), evaluator.subjects, coarse_from=60)
    parts = search.ledger.parts
    assert parts[FAST].tolist() == [*range(60, 65), *range(90, 95)]
    assert all(parts[part].max() < 60 for part in (FULL, FINAL, HOLDOUT))
    requests = []
    while request := search.ask():
        requests.append(request)
        search.tell(dict(evaluator.answers(request.batch, request.questions)))
    for request in requests:
        is_coarse = bool((request.questions >= 60).any())
        assert (request.questions >= 60).all() == is_coarse
        if strategy == "ga-original":
            assert is_coarse == (request.stage == "stage 1" or "screening" in request.label)
    assert any((request.questions >= 60).any() for request in requests)
    best = search.outcome.final[0]
    assert search.ledger.score(best, FULL).asked == 30
    assert search.ledger.num_questions == 60


def test_a_search_without_coarse_questions_is_as_before() -> None:
    evaluator = Noting()
    search = Search(replace(SMALL, population=6, generations=2), SearchSpace(6, 1, 2), evaluator.subjects[:60])
    assert run(search, evaluator).final


def test_a_device_without_such_matrix_units_is_refused(exact: Engine) -> None:
    with pytest.raises(EvaluationError, match=r"fp8 needs a GPU of compute capability 8\.9 or later, which cpu is not"):
        with_coarse_answers(exact)


def test_eight_bits_stand_in_for_bfloat16_alone() -> None:
    with pytest.raises(EvaluationError, match="stands in for bfloat16, not for float32; give --dtype bfloat16"):
        EvalConfig(fast_dtype="fp8")


def test_a_climb_may_start_at_a_set_that_had_no_fast_look() -> None:
    """The base is verified in stage 2 for the report, and asked nothing coarsely before."""
    scores = dict.fromkeys(range(6), 0.5)
    for seed in range(12):
        config = replace(
            SMALL, strategy="ga-original", population=4, generations=0, final_limit=0, holdout=0, seed=seed
        )
        evaluator = Noting()
        search = Search(config, SearchSpace(6, 0, 3), evaluator.subjects, coarse_from=60, single_scores=scores)
        assert run(search, evaluator).final
