"""A search on two nodes of a real SLURM cluster, with real Ray: what disturbs it leaves no trace in what it finds.

GA_INTEGRATION=1 pytest tests/integration/test_slurm_nodes.py    (with NETNS=1, each node has a network of its own)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import psutil
import pytest

from .conftest import SIMULATED, Cluster, Job, kill, result_in, said, until

needs_ray = "several nodes need Ray: pip install -r requirements-cluster.txt"
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason=needs_ray)  # not imported: it reads its settings then
Undisturbed = Callable[..., dict[str, Any]]
PART = 7
"""Sets that a worker is asked together, at most: half of a population. They are lost with it."""


def search(cluster: Cluster, sleep_s: float = 0.8, sbatch: tuple[str, ...] = ()) -> Job:
    """On both nodes, a worker each."""
    options = (*SIMULATED, "--output-dir", "run")
    return cluster.sbatch(
        "search_multinode.sbatch", *options, sbatch=("-c1", *sbatch), SIM_SLEEP_S=str(sleep_s), GA_LINGER_S="10"
    )


def wait_for_both(job: Job) -> None:
    """Until workers of both nodes have answered."""
    joined = "worker 2 is ready"
    until(lambda: any(joined in path.read_text() for path in job.output.glob("search_log_*.txt")), 120, joined)
    job.wait_for_answers(2)


def running_on(job: Job, node: str) -> list[int]:
    """All that runs of a job on a node, SLURM's own process for it included."""
    found = set[int]()
    for process in psutil.process_iter():
        try:
            names = process.environ()
            if (names.get("SLURM_JOB_ID"), names.get("SLURMD_NODENAME")) == (job.number, node):
                found.add(process.pid)
                parent = process.parent()
                if parent is not None and parent.name() == "slurmstepd":
                    found.add(parent.pid)
        except psutil.Error:  # gone
            continue
    return sorted(found)


def driver_of(job: Job) -> list[int]:
    """The search itself, on the first node."""
    return [pid for pid in running_on(job, "node1") if {"-m", "--listen"} <= set(psutil.Process(pid).cmdline())]


def nothing_left(job: Job) -> bool:
    return not any(running_on(job, node) for node in ("node1", "node2"))


def test_it_ends_with_the_undisturbed_result(cluster: Cluster, undisturbed: Undisturbed) -> None:
    job = search(cluster)
    wait_for_both(job)
    facts = job.wait_for_state("COMPLETED", "FAILED", seconds=240)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), job.log
    assert result_in(job.output) == undisturbed()
    assert cluster.repeated_calls() == 0
    until(lambda: nothing_left(job), 30, "the end of all processes")


@pytest.mark.parametrize("back_after_s", [2, 40])
def test_when_the_second_node_fails_it_goes_on(back_after_s: float, cluster: Cluster, undisturbed: Undisturbed) -> None:
    job = search(cluster, sleep_s=1.0)
    wait_for_both(job)
    kill(cluster.node_daemon("node2"), *running_on(job, "node2"))
    time.sleep(back_after_s)  # SLURM misses the node after 20 s
    cluster.up()
    facts = job.wait_for_state("COMPLETED", "FAILED", seconds=360)
    assert facts["JobState"] == "COMPLETED", job.log
    assert result_in(job.output) == undisturbed()
    assert cluster.repeated_calls() <= PART * (1 + 2 * int(facts["Restarts"]))


def test_when_the_search_itself_dies_the_other_node_does_not_keep_the_job(cluster: Cluster) -> None:
    job = search(cluster, sleep_s=1.0)
    wait_for_both(job)
    (driver,) = driver_of(job)
    kill(driver)
    assert job.wait_for_state("COMPLETED", "FAILED", seconds=90)["JobState"] == "FAILED", job.log
    until(lambda: nothing_left(job), 60, "the end of all processes")


def test_before_its_time_is_up_it_stops_goes_to_the_queue_and_resumes(
    cluster: Cluster, undisturbed: Undisturbed
) -> None:
    job = search(cluster, sleep_s=1.0)
    wait_for_both(job)
    said("scancel", "--batch", "--signal=USR1", job.number)
    until(lambda: job.facts()["Restarts"] == "1", 120, "the second start")
    facts = job.wait_for_state("COMPLETED", "FAILED", seconds=360)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.log
    assert "run_search: stopped; nothing is lost" in job.log
    assert result_in(job.output) == undisturbed()
    assert cluster.repeated_calls() <= 2 * PART


def test_cancelled_it_ends_on_both_nodes_and_another_job_goes_on(cluster: Cluster, undisturbed: Undisturbed) -> None:
    job = search(cluster, sleep_s=1.0)
    wait_for_both(job)
    said("scancel", job.number)
    job.wait_for_state("CANCELLED")
    until(lambda: nothing_left(job), 60, "the end of all processes")
    assert not list(job.output.glob("search_result_*"))
    assert "Traceback" not in job.log
    again = search(cluster)
    facts = again.wait_for_state("COMPLETED", "FAILED", seconds=240)
    assert facts["JobState"] == "COMPLETED", again.log
    assert result_in(again.output) == undisturbed()
    assert cluster.repeated_calls() <= 2 * PART
