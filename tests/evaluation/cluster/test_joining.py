"""A host that cannot help a run says why, and what to do."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.cluster import joining
from evaluation.cluster.options import ClusterOptions
from evaluation.cluster.ray_pool import RayPool, require_ray
from evaluation.errors import EvaluationError

ANNOUNCED = {"address": "a:1", "token": "t", "host": "node1", "gpus": False, "loopback": False, "ray": "9.9"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gpus": True}, "the run's workers are on GPUs, and all must be; join with --gpus all"),
        ({"ray": "9.8"}, "the run's Ray is 9.8, that of this host is 9.9; install the same"),
        (
            {"loopback": True},
            "can be reached from within node1 alone; stop it and start it again with --listen and an ",
        ),
    ],
)
def test_what_keeps_a_host_out_is_one_line(
    change: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    joining._check(ANNOUNCED, ClusterOptions(cpu_workers=1))
    with pytest.raises(EvaluationError) as refused:
        joining._check(ANNOUNCED | change, ClusterOptions(cpu_workers=1))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.1:6", True), ("127.0.1.1:6", True), ("[::1]:6", True), ("10.0.0.1:6", False), ("[fe80::1]:6", False)],
)
def test_whether_others_reach_a_run_is_told_by_its_address(
    address: str, loopback: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian gives a host's own name 127.0.1.1, so that who said --listen may be reached by nobody all the same."""
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    pool: Any = object.__new__(RayPool)  # without Ray
    pool._options, pool._token = ClusterOptions(cpu_workers=1, listen="its address"), "t"
    pool._ray = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address=address))
    pool.announce(tmp_path / "cluster.json")
    assert json.loads((tmp_path / "cluster.json").read_text())["loopback"] is loopback


def test_ray_that_is_not_installed_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    with pytest.raises(EvaluationError, match="several workers need Ray, which is not installed; install it with: pip"):
        require_ray()
