"""Jobs on a real SLURM cluster: what disturbs them leaves no trace in what they find.

GA_INTEGRATION=1 pytest tests/integration/test_slurm.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, SIMULATED, Cluster, kill, result_in, said, until

Undisturbed = Callable[..., dict[str, Any]]


def test_a_search_on_the_bundled_pair_begins_at_once_and_is_found_by_its_number(cluster: Cluster) -> None:
    since = time.time()
    job = cluster.sbatch("search.sbatch", "--pair", "tiny", "--preset", "tiny", "--max-passes", "4")
    try:
        job.wait_for_answers()
        waited = time.time() - since
        job.wait_for_state("COMPLETED", seconds=300)
        best = json.loads(job.log.splitlines()[-2])  # what to do next is told behind it
        assert Path(best["result"]).parent == ROOT / "results" / f"slurm_{job.number}"
        assert result_in(job.output)["final_results"][0]["layers"] == best["layers"]
        assert waited <= 15
    finally:
        shutil.rmtree(job.output, ignore_errors=True)


def test_an_array_is_a_search_for_each_seed(cluster: Cluster, undisturbed: Undisturbed) -> None:
    job = cluster.sbatch("search.sbatch", *SIMULATED, "--output-dir", "run", sbatch=("--array=1,3", "-c1"))
    folders = {seed: cluster.work / f"run_{seed}" for seed in (1, 3)}
    until(lambda: all(list(folder.glob("search_result_*")) for folder in folders.values()), 120, "both tasks")
    for seed, folder in folders.items():
        assert result_in(folder) == undisturbed("--seed", str(seed))
        assert (cluster.work / f"slurm-{job.number}_{seed}.out").read_text().splitlines()[-2].startswith('{"layers"')
    assert result_in(folders[1]) != result_in(folders[3])


def test_before_its_time_is_up_it_stops_goes_to_the_queue_and_resumes(
    cluster: Cluster, undisturbed: Undisturbed
) -> None:
    job = cluster.search(sleep_s=0.8, sbatch=("--time=1", "--signal=B:USR1@20"))
    facts = job.wait_for_state("COMPLETED", "FAILED", "TIMEOUT", seconds=600)
    assert facts["JobState"] == "COMPLETED", job.log
    assert int(facts["Restarts"]) >= 1
    assert result_in(job.output) == undisturbed()
    assert cluster.repeated_calls() <= int(facts["Restarts"])
    assert job.log.count("run_search: stopped; nothing is lost") == int(facts["Restarts"])


@pytest.mark.parametrize("how", [("scancel", "--batch", "--signal=USR1"), ("scontrol", "requeue")])
def test_requeued_again_and_again_it_comes_to_the_same_result(
    how: tuple[str, ...], cluster: Cluster, undisturbed: Undisturbed
) -> None:
    job = cluster.search()
    for restarts in range(1, 3):
        job.wait_for_answers(10)
        said(*how, job.number)
        until(lambda: job.facts()["Restarts"] == str(restarts), 60, f"restart {restarts}")  # noqa: B023
    job.wait_for_state("COMPLETED")
    assert result_in(job.output) == undisturbed()
    assert cluster.repeated_calls() <= 2
    assert "start 3: " in job.log


def test_cancelled_it_ends_and_another_job_goes_on(cluster: Cluster, undisturbed: Undisturbed) -> None:
    job = cluster.search()
    job.wait_for_answers(10)
    said("scancel", job.number)
    facts = job.wait_for_state("CANCELLED")
    assert (facts["Restarts"], facts["ExitCode"]) == ("0", "143:0")
    assert job.log.splitlines()[-1].startswith("run_search: stopped; nothing is lost")
    assert "Traceback" not in job.log
    assert not list(job.output.glob("search_result_*"))
    again = cluster.search()
    again.wait_for_state("COMPLETED")
    assert result_in(job.output) == undisturbed()
    assert cluster.repeated_calls() <= 1


def test_when_its_node_fails_another_goes_on(cluster: Cluster, undisturbed: Undisturbed) -> None:
    job = cluster.search()
    job.wait_for_answers(10)
    node = job.facts()["BatchHost"]
    kill(cluster.node_daemon(node), *job.processes())
    facts = job.wait_for_state("COMPLETED", "FAILED", seconds=240)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.log
    assert facts["BatchHost"] != node
    assert result_in(job.output) == undisturbed()
    assert cluster.repeated_calls() <= 1


def test_while_a_lost_node_still_works_on_it_the_next_waits(cluster: Cluster, undisturbed: Undisturbed) -> None:
    job = cluster.search(sleep_s=1.1)
    job.wait_for_answers(5)
    kill(cluster.node_daemon(job.facts()["BatchHost"]))  # nobody hears of the job any more, but it runs
    until(lambda: (facts := job.facts())["Restarts"] == "1" and facts["JobState"] == "RUNNING", 120, "the second start")
    assert not list(job.output.glob("search_result_*"))
    facts = job.wait_for_state("COMPLETED", "FAILED", seconds=300)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.log
    assert result_in(job.output) == undisturbed()
    assert cluster.repeated_calls() == 0


def test_a_time_too_short_for_anything_is_not_tried_for_ever(cluster: Cluster) -> None:
    (cluster.work / "slow.py").write_text("import time, pathlib\npathlib.Path('here').touch()\ntime.sleep(60)\n")
    job = cluster.sbatch("search.sbatch", "--evaluator", "slow:make", "--output-dir", "run")
    until((cluster.work / "here").exists, 60, "its start")
    said("scancel", "--batch", "--signal=USR1", job.number)
    facts = job.wait_for_state("FAILED", "COMPLETED", "PENDING")
    assert facts["JobState"] == "FAILED"
    assert job.log.splitlines()[-1].endswith("before the warning; ask for more time (--time). It is not requeued")


def test_each_node_of_several_gets_its_command(cluster: Cluster) -> None:
    python = cluster.work / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *genetic_algorithm.run_search*) '
        f'echo "$*" >"{cluster.work}/$SLURMD_NODENAME"; exit ;; esac\nexec "$REAL_PYTHON" "$@"\n'
    )
    python.chmod(0o755)
    options = ("--pair", "tiny", "--seed", "5", "--output-dir", "a run")
    settings = {"PYTHON": str(python), "REAL_PYTHON": shutil.which("python3") or "python3", "LISTEN": "10.1.2.3"}
    for sbatch, devices in (((), "--cpu-workers 1"), (("--gres=gpu:2",), "--gpus all")):
        job = cluster.sbatch("search_multinode.sbatch", *options, sbatch=("-c1", *sbatch), **settings)
        assert job.wait_for_state("COMPLETED", "FAILED")["JobState"] == "COMPLETED", job.log
        ran = [(cluster.work / node).read_text().strip() for node in ("node1", "node2")]
        assert all("--pair tiny --seed 5" in command and devices in command for command in ran)
        assert ran[0].endswith("--output-dir a run --listen 10.1.2.3")
        assert ran[1].endswith("--output-dir a run --join")


def test_a_checkpoint_is_made(cluster: Cluster) -> None:
    options = ("--pair", "tiny", "--layers", "2", "5", "--output_dir", "made here")
    job = cluster.sbatch("create_checkpoint.sbatch", *options)
    assert job.wait_for_state("COMPLETED", "FAILED")["JobState"] == "COMPLETED", job.log
    assert json.loads((cluster.work / "made here" / "checkpoint_info.json").read_text())["replaced_layers"] == [2, 5]


def test_what_cannot_be_is_one_line_in_the_log(cluster: Cluster) -> None:
    (cluster.work / "a file").touch()
    elsewhere = cluster.sbatch("search.sbatch", "--pair", "tiny", cwd=cluster.work)
    unwritable = cluster.sbatch("search.sbatch", *SIMULATED, "--output-dir", "a file/run")
    image = cluster.sbatch("search.sbatch", "--pair", "tiny", CONTAINER="/no/such.sif")
    expected = {
        elsewhere: f"search.sbatch: error: {cluster.work} is not the project's folder; go there, then sbatch",
        unwritable: "run_search: error: ",
        image: "error: CONTAINER=/no/such.sif cannot be read on ",
    }
    if shutil.which("nvidia-smi") is None:
        pretended = cluster.sbatch("search.sbatch", "--pair", "tiny", "--output-dir", "gpu", sbatch=("--gres=gpu:1",))
        expected[pretended] = "run_search: error: --gpu 0: this machine has no GPU that torch can use"
    for job, words in expected.items():
        assert job.wait_for_state("FAILED", "COMPLETED")["JobState"] == "FAILED"
        errors = [line for line in job.log.splitlines() if "error" in line]
        assert len(errors) == 1, job.log
        assert words in errors[0]
        assert "Traceback" not in job.log


def test_submitting_prints_the_job_and_how_to_follow_it(cluster: Cluster) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "SIM_QUESTIONS": "70"}
    command = [ROOT / "scripts" / "submit.sh", "--cpus", "1", *SIMULATED, "--output-dir", "run"]
    done = subprocess.run(command, cwd=cluster.work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    number = done.stdout.splitlines()[0].removeprefix("job ")
    log = cluster.work / f"slurm-{number}.out"
    assert f"follow it: tail -F {log}" in done.stdout
    until(lambda: log.exists() and '{"layers"' in log.read_text(), 60, "the result")
    assert list((cluster.work / "run").glob("search_result_*"))
