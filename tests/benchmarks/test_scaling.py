from __future__ import annotations

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.scaling import DEPTH, Trouble, virtual_seconds, work
from genetic_algorithm import LayerSet, SearchSpace

SETS = list(SearchSpace(DEPTH, 2, 2))
REQUESTS = [[(SETS, np.arange(low, low + 300)) for low in (0, 300)], [([LayerSet((3,))], np.arange(500))]]
ALONE = sum(work(sets, questions) for jobs in REQUESTS for sets, questions in jobs)
DONOR = sum(work([LayerSet(tuple(range(DEPTH)))], questions) for jobs in REQUESTS for _, questions in jobs)


def test_one_undisturbed_worker_takes_as_long_as_its_work() -> None:
    seconds, killed = virtual_seconds(REQUESTS, 1, Trouble(call_s=0.0))
    assert killed == 0
    assert ALONE + DONOR <= seconds < 1.03 * ALONE + DONOR  # a part has at most so many sets


@pytest.mark.parametrize("workers", [4, 300])
def test_no_number_of_workers_is_faster_than_its_share_or_than_the_longest_part(workers: int) -> None:
    seconds, _ = virtual_seconds(REQUESTS, workers, Trouble(call_s=0.0))
    floor = work([LayerSet((3,))], np.arange(500))
    assert seconds >= max(ALONE / workers, floor) - 1e-9
    assert seconds < 1.3 * (ALONE + DONOR) / workers + 3 * floor


def test_the_driver_gets_through_though_hundreds_of_workers_die() -> None:
    calm, _ = virtual_seconds(REQUESTS, 64, Trouble())
    seconds, killed = virtual_seconds(REQUESTS, 64, Trouble(spread=0.5, kills_per_hour=600, start_s=3))
    assert killed > 20
    assert seconds > calm


def test_a_search_is_recorded_as_many_workers_are_asked() -> None:
    requests, thought = scaling.recorded(scaling.ReplayedPair(), "random", "quick", 512)
    assert thought > 0
    assert len(requests) > 1
    assert all(len(questions) <= 512 and sets for jobs in requests for sets, questions in jobs)
