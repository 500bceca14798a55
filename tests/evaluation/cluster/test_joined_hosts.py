"""What a host that wants to help a run is told, and how it follows the run; Ray's node is a program of a few lines."""

from __future__ import annotations

import json
import logging
import threading
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from evaluation.cluster import joining
from evaluation.cluster.options import ClusterOptions
from evaluation.errors import EvaluationError
from tests.scripts.conftest import write_program

ONE = ClusterOptions(cpu_workers=1)
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install -r requirements-dev.txt")


def announced(**other: Any) -> dict[str, Any]:
    version = metadata.version("ray") if find_spec("ray") else "none"
    told = {"address": "10.0.0.1:6379", "token": "5f", "ray": version, "host": "node1", "loopback": False}
    return told | {"gpus": False} | other


@needs_ray
@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"gpus": True}, "the run's workers are on GPUs, and all must be; join with --gpus all"),
        ({"ray": "1.2.3"}, "the run's Ray is 1.2.3, that of this host is "),
        (
            {"loopback": True},
            "the run can be reached from within node1 alone; stop it and start it again with --listen",
        ),
    ],
)
def test_a_host_that_cannot_help_is_told_why(tmp_path: Path, other: dict[str, Any], told: str) -> None:
    (tmp_path / "cluster.json").write_text(json.dumps(announced(**other)))
    with pytest.raises(EvaluationError) as error:
        joining.join(tmp_path, ONE)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


@needs_ray
def test_a_run_on_gpus_is_not_helped_by_cores(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text(json.dumps(announced()))
    with pytest.raises(EvaluationError, match="workers are on the CPU, and all must be; join with --cpu-workers N"):
        joining.join(tmp_path, ClusterOptions(gpus=(0,)))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for `ray start`: writes down how it was called, says NODE_SAYS and stays unless NODE_ENDS."""
    called = tmp_path / "called"
    program = write_program(
        tmp_path / "bin" / "python",
        f"""#!/usr/bin/env bash
if [[ $1 != -c ]]; then exec {joining.sys.executable} "$@"; fi
printf '%s\\n' "$@" "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >{str(called)!r}
echo "$NODE_SAYS"
[[ -n $NODE_ENDS ]] && exit "$NODE_ENDS"
exec sleep 60
""",
    )
    monkeypatch.setattr(joining.sys, "executable", str(program))
    monkeypatch.setattr(joining, "require_ray", lambda: None)
    monkeypatch.setattr(joining, "_check", lambda cluster, options: None)
    monkeypatch.setattr(joining, "POLL_S", 0.05)
    return called


def until(true: Any) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_host_helps_until_the_run_is_over(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NODE_SAYS", "Ray runtime started.")
    run, codes = tmp_path / "run", list[int]()
    run.mkdir()
    host = threading.Thread(target=lambda: codes.append(joining.join(run, ClusterOptions(cpu_workers=3))))
    host.start()
    (run / "cluster.json").write_text(json.dumps(announced()))
    until(node.exists)
    (run / "search_result_1.json").touch()
    (run / "cluster.json").unlink()  # as the driver does at its end
    host.join(timeout=30)
    assert codes == [0]
    words = node.read_text().splitlines()
    assert "--address=10.0.0.1:6379" in words
    assert "--num-cpus=3" in words
    (own,) = [word.partition("=")[2] for word in words if word.startswith("--temp-dir=")]
    assert Path(own).name.startswith("ga_join_")
    assert not Path(own).exists()
    assert words[-1] == "token 5f"
    assert capsys.readouterr().err.splitlines()[-1] == f"run_search: the run in {run} is over"


def test_a_run_that_cannot_be_reached_is_warned_of_and_not_tried_again(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NODE_SAYS", "no route to host")
    monkeypatch.setenv("NODE_ENDS", "1")
    (tmp_path / "cluster.json").write_text(json.dumps(announced()))
    with caplog.at_level(logging.WARNING):
        assert not joining._help(tmp_path / "cluster.json", announced(), ONE)
    assert caplog.messages == ["could not join 10.0.0.1:6379: no route to host"]


@needs_ray
def test_who_waits_long_is_told_once_what_the_run_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter(range(5))

    def sleep(_: float) -> None:
        if next(looks) == 4:
            (tmp_path / "search_result_1.json").touch()

    monkeypatch.setattr(joining, "HINT_S", 0.0)
    monkeypatch.setattr(joining.time, "sleep", sleep)
    assert joining.join(tmp_path, ONE) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "still waiting" in line]
    assert len(told) == 1
    assert "started with --listen and --gpus or --cpu-workers" in told[0]
