from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.errors import EvaluationError
from evaluation.journal import Journal, quantised
from evaluation.remembering import Remembering, journal_header
from genetic_algorithm import LayerSet, SearchConfig, result
from genetic_algorithm.search import Search
from tests.evaluation.cluster.stubs import ALL, BAD, SPACE, Slow, population, raising
from tests.evaluation.cluster.threads import cluster
from tests.genetic_algorithm.simulator import Simulator


def remembering(evaluator: Any, path: Path, *, slice_questions: int = 16, **options: bool) -> Remembering:
    journal = Journal(path, journal_header(evaluator), evaluator.num_questions)
    return Remembering(evaluator, journal, slice_questions=slice_questions, **options)


def test_each_set_and_question_is_written_once_and_a_resumed_journal_asks_the_rest_only(tmp_path: Path) -> None:
    sets, path = population(20), tmp_path / "journal.jsonl"

    class Told(Slow):
        """Of each sitting a list of its own: threads of the first may still be at work in the second."""

        def __init__(self, asked: list[tuple[LayerSet, int]]) -> None:
            super().__init__(0.001)
            self.asked = asked

        def answers(self, batch, questions):
            self.asked.extend((s, int(q)) for s in batch for q in questions)
            return super().answers(batch, questions)

    with cluster(lambda worker: Told([]), 3) as (evaluator, _):
        answers = remembering(evaluator, path).answers(sets, ALL)
        for _ in range(5):
            next(answers)
        answers.close()
    written = path.read_bytes().count(b"\n") - 1
    assert 5 * 3 <= written < 20 * 3
    known = Journal(path, journal_header(Simulator(per_subject=10)), 40)
    missing = {(s, int(q)) for s in sets for q in ALL[~known.covering(s, ALL)[0]]}
    asked: list[tuple[LayerSet, int]] = []
    with cluster(lambda worker: Told(asked), 3) as (evaluator, _):
        resumed = dict(remembering(evaluator, path).answers(sets, ALL))
    for layers, given in Simulator(per_subject=10).answers(sets, ALL):
        assert np.array_equal(resumed[layers].correct, given.correct)
        assert np.array_equal(resumed[layers].margin, quantised(given.margin))
    assert Counter(asked) == Counter(missing)
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert Counter((line["set"], line["questions"]) for line in lines).most_common(1)[0][1] == 1
    assert len(lines) == 20 * 3


def test_workers_share_out_as_few_questions_as_keep_one_busy_whatever_is_known(tmp_path: Path) -> None:
    """Slices of 40 questions are 14, 13 and 13, and each is cut from its beginning."""
    pieces = [range(6), range(6, 12), range(12, 14), range(14, 20), range(20, 26), range(26, 27)]
    pieces += [range(27, 33), range(33, 39), range(39, 40)]
    sets, path = population(6), tmp_path / "journal.jsonl"

    class Few(Slow):
        least_questions = 6

    with cluster(lambda worker: Few(), 2) as (evaluator, _):
        assert evaluator.least_questions == 6
        first = remembering(evaluator, path)
        dict(first.answers(sets[:2], np.arange(20, 26)))
        dict(first.answers(sets, ALL))
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    spelled = [f"{piece[0]}-{piece[-1]}" if len(piece) > 1 else str(piece[0]) for piece in pieces]
    assert Counter(line["questions"] for line in lines) == dict.fromkeys(spelled, 6)


def test_a_set_that_fails_is_recorded_with_its_reason_and_tried_again_when_told_so(tmp_path: Path) -> None:
    sets, path = population(20), tmp_path / "journal.jsonl"
    with cluster(lambda worker: Slow(before=raising(BAD)), 3) as (evaluator, _):
        first = remembering(evaluator, path)
        assert set(dict(first.answers(sets, ALL))) == {*sets} - {BAD}
        assert first.failed == {BAD: "RuntimeError: 2+9 does not fit"}
    with cluster(lambda worker: Slow(), 3) as (evaluator, _):
        assert set(dict(remembering(evaluator, path).answers(sets, ALL))) == {*sets} - {BAD}
        assert set(dict(remembering(evaluator, path, retry_failed=True).answers(sets, ALL))) == {*sets}


def test_where_every_set_fails_the_machine_is_blamed_and_no_set(tmp_path: Path) -> None:
    def before(layers: LayerSet) -> None:
        raise RuntimeError("driver and library versions differ")

    with (
        cluster(lambda worker: Slow(before=before), 2) as (evaluator, _),
        pytest.raises(EvaluationError, match=r"no layer set can be evaluated; the first failure was .*versions differ"),
    ):
        list(remembering(evaluator, tmp_path / "j").answers(population(5), ALL))
    assert (tmp_path / "j").read_bytes().count(b"\n") == 1


CONFIG = SearchConfig(population=8, generations=3, fast_limit=10, full_limit=40, final_limit=50, max_layers=3)


def searched(evaluator: Any, path: Path, each: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The result of a whole search, less what it took."""
    search = Search(CONFIG, SPACE, evaluator.subjects)
    asked = remembering(evaluator, path)
    while request := search.ask():
        answers = {}
        for layers, given in asked.answers(request.batch, request.questions):
            answers[layers] = given
            each()
        search.tell(answers)
    document = result.document(search.outcome, run={}, seconds={}, subjects=evaluator.subjects, subject_names=())
    assert len(document["final_results"]) > 1
    return document


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return searched(Slow(per_subject=70), tmp_path_factory.mktemp("alone") / "journal")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_search_comes_to_the_same_result_with_any_number_of_workers(
    tmp_path: Path, alone: dict[str, Any], workers: int
) -> None:
    with cluster(lambda worker: Slow(per_subject=70), workers) as (evaluator, _):
        assert searched(evaluator, tmp_path / "journal") == alone


@pytest.mark.parametrize("seed", range(3))
def test_a_search_comes_to_the_same_result_though_workers_are_killed(
    tmp_path: Path, alone: dict[str, Any], seed: int
) -> None:
    rng, kills = np.random.default_rng(seed), 0
    with cluster(lambda worker: Slow(0.0005, per_subject=70), 3) as (evaluator, pool):

        def each() -> None:
            nonlocal kills
            if rng.random() < 0.3 and pool.alive:
                pool.kill(int(rng.choice(list(pool.alive))))
                kills += 1

        assert searched(evaluator, tmp_path / "journal", each) == alone
    assert kills > 5


def test_a_full_disk_of_a_worker_ends_the_search_and_counts_against_no_set(tmp_path: Path) -> None:
    """As in one process; once there is room again it goes on."""

    class Full(Slow):
        is_full = True

        def answers(self, batch, questions):
            for layers in batch:
                if layers == BAD and self.is_full:
                    raise OSError(errno.ENOSPC, "No space left on device", "/scratch/file")
                yield from super().answers([layers], questions)

    sets, path = [*population(6), BAD], tmp_path / "journal.jsonl"
    with cluster(lambda worker: Full(), 2) as (evaluator, _):
        with pytest.raises(OSError, match="/scratch/file of ") as told:
            dict(remembering(evaluator, path).answers(sets, ALL))
        assert told.value.errno == errno.ENOSPC
        assert not evaluator.failures
    Full.is_full = False
    with cluster(lambda worker: Full(), 2) as (evaluator, _):
        again = remembering(evaluator, path)
        assert set(dict(again.answers(sets, ALL))) == set(sets)
        assert not again.failed
