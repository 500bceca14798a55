"""Ray that does not start is given a second chance; a stand-in for the library tells how it fares."""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.cluster import ray_pool
from evaluation.cluster.options import ClusterOptions
from evaluation.cluster.ray_pool import RayPool
from evaluation.errors import EvaluationError


class Ray(SimpleNamespace):
    """Comes up after so many starts that fail."""

    def __init__(self, failures: int) -> None:
        super().__init__(left=failures, folders=[], ends=0)

    def init(self, **given: Any) -> None:
        self.given = given
        if "_temp_dir" in given:
            self.folders.append(Path(given["_temp_dir"]))
        if self.left:
            self.left -= 1
            raise RuntimeError("The current node timed out during startup")

    def shutdown(self) -> None:
        self.ends += 1


def pool(ray: Ray, monkeypatch: pytest.MonkeyPatch, **options: Any) -> RayPool:
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_pool, "require_ray", lambda: None)
    return RayPool(ClusterOptions(cpu_workers=1, **options), lambda: None)  # type: ignore[arg-type,return-value]


def test_ray_that_comes_up_late_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ray, before = Ray(failures=1), dict(os.environ)
    with caplog.at_level(logging.WARNING):
        started = pool(ray, monkeypatch)
    assert [len(ray.folders), ray.ends] == [2, 1]
    assert [folder.exists() for folder in ray.folders] == [False, True]
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(caplog.messages) == 1
    started.close()
    assert not ray.folders[1].exists()
    assert dict(os.environ) == before


def test_ray_that_never_comes_up_is_one_line_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, before = Ray(failures=9), dict(os.environ)
    with pytest.raises(EvaluationError, match=r"Ray does not start on this machine \(.*timed out.*\); try again"):
        pool(ray, monkeypatch)
    assert len(ray.folders) == 2
    assert not any(folder.exists() for folder in ray.folders)
    assert dict(os.environ) == before


def test_a_cluster_of_others_is_asked_once_with_settings_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(failures=1)
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.setenv("HF_TOKEN", "secret")
    with pytest.raises(EvaluationError, match="--ray-address auto: RuntimeError: The current node timed out"):
        pool(ray, monkeypatch, address="auto")
    assert ray.left == 0
    variables = ray.given["runtime_env"]["env_vars"]
    assert variables["HF_HOME"] == "/models"
    assert not {"HF_TOKEN", "PATH"} & set(variables)


def test_a_cluster_that_nobody_answers_for_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(failures=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(ray_pool, "require_ray", lambda: None)
        with pytest.raises(EvaluationError, match=rf"^--ray-address {address}: nobody answers there \(.*refused\); "):
            RayPool(ClusterOptions(address=address), lambda: None)  # type: ignore[arg-type,return-value]
    assert ray.ends == 0
