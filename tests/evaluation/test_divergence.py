"""Divergences from the donor, which `--goal kl` is made of, however the layers are run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.build import build_evaluator
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.journal import Journal
from evaluation.questions import QuestionSet, build_questions
from evaluation.remembering import Remembering, journal_header
from evaluation.tasks import TaskSource, load_tasks
from evaluation.two_precisions import TwoPrecisions
from genetic_algorithm import LayerSet
from genetic_algorithm.config import SearchConfig
from genetic_algorithm.layer_set import SearchSpace
from genetic_algorithm.search import Search, run
from models.hybrid import HybridPair
from models.packed.donors import StreamedDonors
from models.packed.layers import PackedLayers
from models.packed.plain import PlainKernels
from tests.evaluation.conftest import letter_docs, make_pair, make_tokenizer, write_tasks

SETS = [LayerSet(()), LayerSet((1, 2))]
DONOR = LayerSet((0, 1, 2, 3))


@pytest.fixture(scope="module")
def pair() -> HybridPair:
    return make_pair()


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> QuestionSet:
    folder = write_tasks(tmp_path_factory.mktemp("tasks"), {"toy": letter_docs(24)}, group="all")
    return build_questions(load_tasks(TaskSource(("toy",), folder)), make_tokenizer(), max_length=512, order="shuffled")


def divergences(evaluator: Any, sets: list[LayerSet], asked: np.ndarray) -> np.ndarray:
    answers = dict(evaluator.answers(sets, asked))
    return np.array([answers[layers].divergence for layers in sets])


def test_streamed_layers_give_those_of_resident_ones(pair: HybridPair, questions: QuestionSet) -> None:
    streamed = partial(StreamedDonors, device=torch.device("cpu"), slots=2)
    layers = PackedLayers.of_pair(make_pair(), PlainKernels(), streamed, takes_donor=True)
    asked = np.arange(len(questions))
    resident = Engine(pair, questions)
    found = divergences(Engine(pair, questions, layers=layers), [*SETS, DONOR], asked)
    np.testing.assert_allclose(found, divergences(resident, [*SETS, DONOR], asked), atol=1e-4)
    assert found[0].mean() > 0.1
    assert found[2].max() < 1e-4


def test_coarse_answers_have_those_of_the_coarse_donor(tmp_path: Path) -> None:
    exact = build_evaluator(EvalConfig(dtype="bfloat16", cache_dir=tmp_path), max_limit=6)
    twice = TwoPrecisions(exact, Engine(exact.pair, exact.questions, layers=exact.layers.quantised()))
    donor = LayerSet(tuple(range(12)))
    found = divergences(twice, [LayerSet(()), LayerSet((2,)), donor], np.array([3, 24, 0, 47, 30]))
    assert found.dtype == np.float32
    assert (found[:2].mean(axis=1) > 0.1).all()
    assert found[2].max() < 1e-4


def test_the_donor_is_asked_once_for_each_list_of_questions(pair: HybridPair, questions: QuestionSet) -> None:
    with_donor, without = (Engine(pair, questions, with_divergence=wanted) for wanted in (True, False))
    calls = []
    for engine in (with_donor, without):
        before = engine.layers.calls
        for sets, asked in (([SETS[0]], range(10)), (SETS, range(10, 20)), ([SETS[1]], range(10))):
            list(engine.answers(sets, np.array(asked)))
        calls.append(engine.layers.calls - before)
    assert with_donor.layer_calls == without.layer_calls
    assert calls[0] - calls[1] == 2 * pair.depth  # questions 0 to 9, and 10 to 19: one batch each


def test_answers_do_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    fresh, used = (build_evaluator(EvalConfig(cache_dir=tmp_path), max_limit=24) for _ in range(2))
    everything = np.arange(fresh.num_questions)
    for asked in (everything[::3], everything[5:60:7], everything[50:80]):
        list(used.answers([LayerSet((2,))], asked))
    sets = [LayerSet((0, 2)), LayerSet((0, 2, 4, 5))]
    first, second = (dict(engine.answers(sets, everything)) for engine in (fresh, used))
    for layers in sets:
        for name in ("correct", "margin", "divergence"):
            assert np.array_equal(getattr(first[layers], name), getattr(second[layers], name)), name


def test_a_search_for_the_least_divergence_finds_the_donor_itself(
    pair: HybridPair, questions: QuestionSet, tmp_path: Path
) -> None:
    engine = Engine(pair, questions)
    journal = Journal(tmp_path / "journal.jsonl", journal_header(engine), engine.num_questions)
    config = SearchConfig(goal="kl", max_layers=4, fast_limit=6, full_limit=None, population=6)
    search = Search(config, SearchSpace(4, 1, 4), engine.subjects)
    outcome = run(search, Remembering(engine, journal))
    assert outcome.final[0] == DONOR
    score = outcome.ledger.score(DONOR, "full")
    assert score is not None
    assert score.value == pytest.approx(0, abs=1e-4)


def test_the_donor_itself_costs_nothing_more_once_others_were_asked(pair: HybridPair, questions: QuestionSet) -> None:
    engine, asked = Engine(pair, questions), np.arange(len(questions))
    list(engine.answers(SETS, asked))
    before = engine.layers.calls
    ((_, known),) = engine.answers([DONOR], asked)
    assert engine.layers.calls == before
    ((_, alone),) = Engine(pair, questions, with_divergence=False).answers([DONOR], asked)
    assert known.correct.tolist() == alone.correct.tolist()
    np.testing.assert_array_equal(known.margin, alone.margin)
    assert not known.divergence.any()


@pytest.mark.parametrize("chunks", [1, 3])
def test_what_workers_share_out_has_the_answers_of_the_whole_list_to_the_last_bit(
    pair: HybridPair, questions: QuestionSet, chunks: int
) -> None:
    engine, asked = Engine(pair, questions, batch_tokens=64), np.arange(len(questions))
    assert engine.least_questions is not None
    least = chunks * engine.least_questions // torch.get_num_threads()
    assert 1 < least < len(asked)
    sets = [LayerSet((0, 2)), LayerSet((1,)), LayerSet(())]
    whole = dict(engine.answers(sets, asked))
    for at in range(0, len(asked), least):
        part = dict(Engine(pair, questions, batch_tokens=64).answers(sets, asked[at : at + least]))
        for layers in sets:
            for name, values in part[layers]._asdict().items():
                np.testing.assert_array_equal(values, getattr(whole[layers], name)[at : at + least])
