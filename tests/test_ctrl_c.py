"""Ctrl-C ends every tool within a second, with the command that goes on; real processes and real signals."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evaluation.entry import run_tool
from genetic_algorithm import run_search
from models.pairs import PAIRS
from tests.conftest import long_one
from tests.genetic_algorithm.conftest import FACTORY
from tests.model_preparation.hub_server import HubServer
from tests.scripts.conftest import ROOT, without_settings


def start(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env=without_settings() | {"PYTHONPATH": str(ROOT), "LC_ALL": "C"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def ctrl_c(process: subprocess.Popen[str]) -> str:
    """Press it, as a terminal does: the whole group hears it. Returns what was said on stderr."""
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    waiting = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))  # for a core, where others work here, too
    assert time.monotonic() - began < waiting, stderr
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    return stderr


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(
    "workers",
    [pytest.param([], id="one process"), pytest.param(["--cpu-workers", "2"], id="two workers", marks=long_one)],
)
def test_a_search_in_the_middle_of_an_evaluation(
    workers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if workers:
        pytest.importorskip("ray")
    run = tmp_path / "a run"
    few = ["--population", "8", "--generations", "2", "--fast-limit", "5", "--full-limit", "10", "--holdout", "0"]
    options = ["--pair", "tiny", *workers, *few, "--output-dir", str(run)]
    search = [sys.executable, "-m", "genetic_algorithm.run_search", *options]
    process = start(*search)
    wait_for(process, lambda: lines(run / "journal.jsonl") > 15 or process.poll() is not None)
    if process.poll() is not None and "Ray does not start on this machine" in (process.communicate()[1]):
        pytest.skip("this machine is too busy for Ray's daemons to come up")
    assert process.poll() is None
    before = lines(run / "journal.jsonl")
    last = ctrl_c(process).splitlines()[-1]
    assert last == f"run_search: stopped; nothing is lost; resume with: {shlex.join(search)}"
    assert not (run / "holder.json").exists()
    assert not (run / "cluster.json").exists()
    if not workers:
        assert run_tool("run_search", run_search.main, shlex.split(last.partition("-m ")[2])[1:]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["layers"]
        assert lines(run / "journal.jsonl") >= before


def test_a_script_hands_ctrl_c_to_its_search(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--evaluator", FACTORY, "--output-dir", run]
    settings = {"PYTHON": sys.executable, "LC_ALL": "", "LANG": "zh_CN.UTF-8", "SIM_SLEEP_S": "0.05"}
    process = start(ROOT / "scripts" / "quick_test_real.sh", *options, **settings)
    wait_for(process, lambda: lines(run / "journal.jsonl") > 5)
    last = ctrl_c(process).splitlines()[-1]
    assert last.startswith("run_search: 已停止；没有丢失任何结果；继续运行：")
    assert last.endswith(f"-m genetic_algorithm.run_search --preset quick --evaluator {FACTORY} --output-dir {run}")


SLOW = """
import os, pathlib, sys, time
real = os.replace
def slow(source, target, **more):  # a disk that hangs, just before the first file gets its name
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
    real(source, target, **more)
os.replace = slow
from evaluation.entry import become_tool
from model_preparation.{module} import main
become_tool("{module}.py", lambda argv: main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("extract_layers", ["--pair", "tiny", "--output_dir", "made"]),
        ("create_replaced_model_checkpoint", ["--pair", "tiny", "--layers", "0", "2", "--output_dir", "made"]),
        ("create_best_checkpoints", ["--pair", "tiny", "--output_dir", "made"]),
    ],
)
def test_a_tool_that_writes_leaves_nothing_half_written(
    module: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    process = start(sys.executable, "-c", SLOW.format(module=module), marker, *arguments, cwd=tmp_path)
    wait_for(process, marker.exists)
    told = ctrl_c(process).splitlines()[-1]
    assert told.endswith("stopped; files that were complete are kept. Give the same command again to go on.")
    names = [path.name for path in (tmp_path / "made").rglob("*")] if (tmp_path / "made").exists() else []
    assert not [name for name in names if name.endswith((".pt", ".safetensors")) and not name.startswith(".")]
    monkeypatch.chdir(tmp_path)
    assert run_tool(module, importlib.import_module(f"model_preparation.{module}").main, arguments) == 0


@pytest.fixture
def stalled_hub() -> Iterator[HubServer]:
    """Sends the beginning of a large file, then nothing."""
    hub = HubServer(stall_after=5_000)
    hub.add("org/base", Path(PAIRS["tiny"].base.folder or ""))
    with hub.running():
        yield hub


@pytest.mark.parametrize("prefix", ["hf", "ms"])
def test_a_download_that_hangs(prefix: str, stalled_hub: HubServer, tmp_path: Path) -> None:
    where = {"HF_HOME": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "ms"), "NO_PROXY": "*"}
    where |= {"HF_ENDPOINT": stalled_hub.url, "MODELSCOPE_ENDPOINT": stalled_hub.url, "HF_HUB_OFFLINE": "0"}
    where |= {"MODELSCOPE_HOME": str(tmp_path / "home")}
    options = ["--base", f"{prefix}:org/base"]
    process = start(sys.executable, "-m", "model_preparation.modelscope_utils", *options, cwd=tmp_path, **where)
    wait_for(process, lambda: any(tmp_path.rglob("*.incomplete")))
    told = ctrl_c(process).splitlines()[-1]
    assert told.endswith("stopped; files that were complete are kept. Give the same command again to go on.")


def test_a_script_in_the_midst_of_its_set_up(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\ntouch '{tmp_path}/here'\nexec sleep 60\n")
    slow.chmod(0o755)
    code = 'source "$0/scripts/lib.sh"; PY=$1; tool some.module; echo "it went on"'
    for language, told in (
        ("C", "{}: stopped; give the same command again to go on: what was finished is kept\n"),
        ("zh_CN.UTF-8", "{}：已停止；再次运行同一条命令即可继续，已完成的部分会保留\n"),
    ):
        (tmp_path / "here").unlink(missing_ok=True)
        process = start("bash", "-c", code, ROOT, slow, LC_ALL="", LANG=language)
        wait_for(process, (tmp_path / "here").exists)
        assert ctrl_c(process) == told.format(ROOT.name)


def test_the_monitor(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run).mkdir()
    stamp = "20260101_000000"
    (run / "config.json").write_text(json.dumps({"format": 1, "timestamp": stamp, "run": {}, "command": []}))
    (run / f"search_log_{stamp}.txt").write_text("")
    with (run / "config.json").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a search holds it
        process = start(ROOT / "scripts" / "monitor_progress.sh", run, PYTHON=sys.executable)
        assert process.stdout is not None
        shown = process.stdout.readline()
        assert shown.startswith(str(run)), process.communicate()
        assert ctrl_c(process).splitlines()[-1] == "stopped watching; the search goes on"
