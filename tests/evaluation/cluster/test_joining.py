"""A host that cannot help a run says why, and what to do."""

from __future__ import annotations

from importlib import metadata

import pytest

from evaluation.cluster import joining
from evaluation.cluster.options import ClusterOptions
from evaluation.cluster.ray_pool import require_ray
from evaluation.errors import EvaluationError

ANNOUNCED = {"address": "a:1", "token": "t", "host": "node1", "gpus": False, "loopback": False, "ray": "9.9"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gpus": True}, "the run's workers are on GPUs, and all must be; join with --gpus all"),
        ({"ray": "9.8"}, "the run's Ray is 9.8, that of this host is 9.9; install the same"),
        ({"loopback": True}, "can be reached from within node1 alone; stop it and start it again with --listen node1"),
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


def test_ray_that_is_not_installed_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    with pytest.raises(EvaluationError, match="several workers need Ray, which is not installed; install it with: pip"):
        require_ray()
