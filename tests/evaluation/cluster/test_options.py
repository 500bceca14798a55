from __future__ import annotations

import os
from typing import Any

import pytest

from evaluation.cluster import options
from evaluation.cluster.options import ClusterOptions, parse_options
from evaluation.errors import EvaluationError
from genetic_algorithm import run_search


def parse(**flags: Any) -> ClusterOptions | None:
    return parse_options(**{"gpus": None, "cpu_workers": None, "address": None, "listen": None, **flags})


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "gpu_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"gpus": "0,x"}, "--gpus 0,x: 'x' is no GPU; give numbers like 0,1, or all"),
        ({"gpus": ""}, "'' is no GPU"),
        ({"gpus": "-1"}, "'-1' is no GPU"),
        ({"gpus": "\u0661"}, "is no GPU"),  # a digit, though not one of 0 to 9
        ({"gpus": "0,2"}, "--gpus 0,2: this machine has GPUs 0 to 1; give others, or --cpu-workers"),
        ({"gpus": "1,1"}, "--gpus 1,1 names a GPU twice"),
        ({"gpus": "0", "cpu_workers": 2}, "--cpu-workers 2 and --gpus 0 contradict"),
        ({"gpus": "0", "gpu": "cpu"}, "--gpu cpu and --gpus or --cpu-workers contradict"),
        ({"address": "auto", "gpu": "1"}, "--gpu 1 and --ray-address contradict"),
        ({"cpu_workers": 2, "gpu": "1"}, "--gpu 1 and --gpus or --cpu-workers contradict"),
        ({"cpu_workers": 0}, "--cpu-workers 0 is below 1"),
        ({"cpu_workers": -3}, "--cpu-workers -3 is below 1"),
        ({"address": "auto", "gpus": "0"}, "--ray-address takes the workers of that cluster"),
        ({"address": "auto", "listen": "127.0.0.1"}, "--ray-address takes the workers of that cluster"),
        ({"listen": "127.0.0.1"}, "--listen says where others may join; say what runs here, too"),
        (
            {"cpu_workers": 1, "listen": "no.such.host.invalid"},
            "--listen no.such.host.invalid: no address of that name",
        ),
        ({"cpu_workers": 1, "listen": ""}, "--listen : no address"),
        ({"cpu_workers": 1, "listen": "0.0.0.0"}, "--listen 0.0.0.0 is no address of this host; give one at which"),
        ({"cpu_workers": 1, "listen": "192.0.2.7"}, "--listen 192.0.2.7 is no address of this host; give one at which"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(flags: dict[str, Any], line: str) -> None:
    with pytest.raises(EvaluationError) as refused:
        parse(**flags)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_a_gpu_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "gpu_count", lambda: 0)
    for text in ("0", "all"):
        with pytest.raises(EvaluationError, match=f"--gpus {text}: this machine has no GPU that torch can use; give"):
            parse(gpus=text)


@pytest.mark.usefixtures("two_gpus")
def test_what_can_be() -> None:
    assert parse() is None
    assert parse(gpu="0") is None
    assert parse(gpus="all") == ClusterOptions(gpus=(0, 1))
    assert parse(gpus="1,0") == ClusterOptions(gpus=(1, 0))
    assert parse(address="auto") == ClusterOptions(address="auto")
    cores = len(os.sched_getaffinity(0))
    found = parse(cpu_workers=1)
    assert found == ClusterOptions(cpu_workers=1, threads=cores)
    assert found.here == 1
    many = parse(cpu_workers=1000)
    assert many is not None
    assert many.threads == 1


def test_the_command_line_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    from evaluation.entry import run_tool

    assert run_tool("run_search", run_search.main, ["--cpu-workers", "0"]) == 2
    assert capsys.readouterr().err == "run_search: error: --cpu-workers 0 is below 1\n"
