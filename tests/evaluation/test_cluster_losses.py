"""What becomes of a cluster whose parts die: the driver over a pool without processes, and real Ray once."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from evaluation.cluster import joining
from evaluation.cluster.driver import ClusterEvaluator
from evaluation.cluster.options import ClusterOptions
from evaluation.cluster.pool import Event, Lost, Replied, Started
from evaluation.cluster.worker import Worker
from evaluation.errors import EvaluationError
from genetic_algorithm import LayerSet
from tests.conftest import long_one
from tests.genetic_algorithm.simulator import Simulator

SETS = [LayerSet((2,)), LayerSet((2, 9)), LayerSet((0, 2, 9))]
ASKED = np.arange(40)


def simulator() -> Simulator:
    return Simulator(per_subject=50)


class PoolWithoutProcesses:
    """Workers in this process, which come up or are lost as a test says."""

    def __init__(self, room: Sequence[int], lost: set[int]) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._room, self._lost, self._workers = list(room), lost, dict[int, Worker]()
        self.spawned = 0

    def slots(self) -> int:
        return self._room.pop(0) if len(self._room) > 1 else self._room[0]

    def spawn(self, worker: int) -> None:
        self.spawned += 1
        if worker in self._lost:
            self.events.put(Lost(worker, "killed"))
            return
        self._workers[worker] = Worker(simulator, "cpu")
        self.events.put(Started(worker, self._workers[worker].facts()))

    def submit(self, worker: int, ticket: int, sets: Sequence[LayerSet], questions: Any) -> None:
        self.events.put(Replied(worker, ticket, self._workers[worker].answers(sets, questions)))

    def describe(self, worker: int) -> tuple[dict[str, Any], float | None]:
        return self._workers[worker].describe()

    def dismiss(self, worker: int) -> None:
        self._workers.pop(worker, None)

    def announce(self, path: Path) -> None: ...

    def close(self, *, at_once: bool = False) -> None: ...


def test_workers_that_are_lost_with_all_of_their_cluster_did_not_fail_to_start() -> None:
    pool = PoolWithoutProcesses(room=[8, 0, 8], lost=set(range(1, 9)))
    with ClusterEvaluator(pool) as evaluator:
        assert len(dict(evaluator.answers(SETS, ASKED))) == len(SETS)


def test_workers_that_never_come_up_are_not_started_for_ever() -> None:
    pool = PoolWithoutProcesses(room=[1], lost=set(range(1, 1000)))
    with pytest.raises(EvaluationError, match="no worker comes up: killed"):
        ClusterEvaluator(pool)
    assert pool.spawned == 3


def test_a_host_that_joined_joins_again_when_its_node_dies_and_not_what_it_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = {"address": "127.0.0.1:1", "token": "t", "ray": "1", "host": "h", "loopback": False, "gpus": False}
    (tmp_path / "cluster.json").write_text(json.dumps(announced))
    helped = []

    def help_it(path: Path, cluster: dict[str, Any], options: ClusterOptions) -> bool:
        helped.append(cluster["token"])
        return len(helped) < 3  # the third time it cannot be reached

    def sleep(seconds: float) -> None:
        (tmp_path / "search_result_1.json").touch()

    monkeypatch.setattr(joining, "require_ray", lambda: None)
    monkeypatch.setattr(joining, "_check", lambda cluster, options: None)
    monkeypatch.setattr(joining, "_help", help_it)
    monkeypatch.setattr(joining.time, "sleep", sleep)
    assert joining.join(tmp_path, ClusterOptions(cpu_workers=1)) == 0
    assert helped == ["t"] * 3


def test_a_host_that_is_told_to_leave_says_that_the_run_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "genetic_algorithm.run_search", "--join", "--cpu-workers", "1", "--output-dir"]
    host = subprocess.Popen([*command, tmp_path / "run"], stderr=subprocess.PIPE, text=True)
    assert host.stderr is not None
    assert host.stderr.readline().startswith("run_search: waiting for the run in ")
    host.terminate()
    _, said = host.communicate(timeout=60)
    assert (host.returncode, said) == (143, "run_search: stopped; the run goes on without this host\n")


@long_one
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install -r requirements-cluster.txt")
def test_when_rays_daemon_of_this_host_dies_it_starts_again() -> None:
    from evaluation.cluster.ray_pool import RayPool

    expected = dict(simulator().answers(SETS, ASKED))
    with ClusterEvaluator(RayPool(ClusterOptions(cpu_workers=1), simulator)) as evaluator:
        raylets = [process for process in psutil.Process().children() if process.name() == "raylet"]
        assert len(raylets) == 1
        raylets[0].kill()
        while evaluator.ready:
            evaluator.wait()
        found = dict(evaluator.answers(SETS, ASKED))
        assert all(np.array_equal(found[layers].margin, expected[layers].margin) for layers in SETS)
