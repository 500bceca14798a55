"""The image, really built and run. Minutes, so only when asked for:

GA_INTEGRATION=1 python -m pytest tests/integration/test_docker_image.py
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .image_engine import IMAGE, ROOT, Engine, built_image

if os.environ.get("GA_INTEGRATION") != "1":
    pytest.skip("builds and runs an image, which takes minutes: set GA_INTEGRATION=1", allow_module_level=True)

CALLER = (os.getuid(), os.getgid()) if os.getuid() else (4321, 8765)
"""Whose results they shall be; root stands in for a user that neither this machine nor the image knows."""
SEARCH = ["scripts/quick_test_real.sh", "--pair=tiny", "--max-passes=2", "--population=8", "--holdout=0", "--seed=5"]
MINE = ["--output-dir", "/app/results/mine"]
PATIENCE_S = 300


@pytest.fixture(scope="module")
def engine() -> Engine:
    return built_image()


def folder_of_the_caller(path: Path) -> Path:
    path.mkdir(parents=True)
    os.chown(path, *CALLER)
    return path


@pytest.fixture(scope="module")
def as_caller(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a run as the calling user, with one folder of caches for all runs."""
    cache = folder_of_the_caller(tmp_path_factory.mktemp("image") / "cache")
    return ["--user", "{}:{}".format(*CALLER), "-v", f"{cache}:/cache"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return folder_of_the_caller(tmp_path / "results")


@pytest.fixture
def name(engine: Engine) -> Iterator[str]:
    """A name for a container, which is removed in the end."""
    chosen = f"ga-test-{os.getpid()}-{time.monotonic_ns()}"
    yield chosen
    engine.call("rm", "--force", chosen)


def owners(folder: Path) -> set[tuple[int, int]]:
    paths = list(folder.rglob("*"))
    assert paths
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in paths}


def without_times(value: Any) -> Any:
    """A result document, less what differs from run to run."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "timestamp")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def result_in(run: Path) -> Any:
    (path,) = run.glob("search_result_*.json")
    return without_times(json.loads(path.read_text(encoding="utf-8")))


def wait_for_answers(engine: Engine, name: str, run: Path, lines: int) -> None:
    """Return when the journal of a run has that many lines."""
    journal, until = run / "journal.jsonl", time.monotonic() + PATIENCE_S
    while not journal.is_file() or journal.read_bytes().count(b"\n") < lines:
        running = engine.call("inspect", "--format", "{{.State.Running}}", name).stdout.strip()
        assert running == "true", engine.call("logs", name)
        assert time.monotonic() < until, f"fewer than {lines} lines in {PATIENCE_S} s"
        time.sleep(0.1)


def test_it_adds_less_than_a_gigabyte_to_its_base(engine: Engine) -> None:
    added = engine.bytes_of(IMAGE) - engine.bytes_of(engine.base)
    print(f"{added / 1e6:.0f} MB on top of {engine.base}")
    assert added < 1e9


def test_its_labels_and_its_user(engine: Engine) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    (image,) = json.loads(engine.call("image", "inspect", IMAGE).stdout)
    assert image["Config"]["Labels"]["org.opencontainers.image.version"] == version
    done = engine.run(
        IMAGE, "bash", "-c", "id -u; touch /app/results/a /app/model_checkpoints/b /cache/c && echo wrote"
    )
    assert done.stdout.split() == ["1000", "wrote"], done.stderr


def test_alone_it_runs_the_main_job_and_the_results_are_the_callers(
    engine: Engine, as_caller: list[str], results: Path, tmp_path: Path
) -> None:
    checkpoints = folder_of_the_caller(tmp_path / "checkpoints")
    volumes = ["-v", f"{results}:/app/results", "-v", f"{checkpoints}:/app/model_checkpoints"]
    done = engine.run(*as_caller, *volumes, IMAGE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "\nPASSED in " in done.stdout
    assert owners(results) == owners(checkpoints) == {CALLER}
    (run,) = results.glob("deploy_*")
    best = result_in(run)["final_results"][0]["layers"]
    assert '<svg viewBox="' in (run / "report.html").read_text(encoding="utf-8")

    seen = engine.run(
        *as_caller, "-v", f"{results}:/app/results:ro", IMAGE, "scripts/check_results.sh", "--all", "--json"
    )
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)["finished"][0]["layers"] == best
    load = ["python", "model_preparation/load_checkpoint.py", "--checkpoint", "model_checkpoints/deploy_test_tiny"]
    said = engine.run(*as_caller, *volumes, IMAGE, *load, "--prompt", "Hello world")
    assert said.returncode == 0, said.stderr
    assert said.stdout.split()


def test_a_run_whose_container_was_killed_goes_on_to_the_same_result(
    engine: Engine, as_caller: list[str], results: Path, name: str
) -> None:
    options = [*as_caller, "-v", f"{results}:/app/results"]
    done = engine.run(*options, IMAGE, *SEARCH, "--output-dir", "/app/results/undisturbed")
    assert done.returncode == 0, done.stderr
    engine.start(name, *options, IMAGE, *SEARCH, *MINE)
    wait_for_answers(engine, name, results / "mine", 8)
    assert engine.call("kill", "--signal", "KILL", name).returncode == 0
    assert engine.call("wait", name).stdout.strip() == "137"
    assert not list((results / "mine").glob("search_result_*"))
    done = engine.run(*options, IMAGE, *SEARCH, *MINE)
    assert done.returncode == 0, done.stderr
    assert "resuming the search in /app/results/mine" in done.stderr
    assert result_in(results / "mine") == result_in(results / "undisturbed")
    assert owners(results) == {CALLER}


@pytest.mark.parametrize("command", [[], [*SEARCH, *MINE]], ids=["main job", "search"])
def test_stopping_it_stops_the_search_in_good_order(
    command: list[str], engine: Engine, as_caller: list[str], results: Path, name: str
) -> None:
    engine.start(name, *as_caller, "-v", f"{results}:/app/results", IMAGE, *command)
    until = time.monotonic() + PATIENCE_S
    while not (runs := list(results.glob("[dm]*"))):  # mine, or deploy_<time>
        assert time.monotonic() < until
        time.sleep(0.1)
    wait_for_answers(engine, name, runs[0], 3)
    assert engine.call("stop", "--time", "60", name).returncode == 0
    assert engine.call("wait", name).stdout.strip() == "143"
    logs = engine.call("logs", name)
    assert (logs.stdout + logs.stderr).splitlines()[-1].startswith("run_search: stopped; nothing is lost; resume with")


@pytest.mark.parametrize("command", [[], [*SEARCH, *MINE]], ids=["main job", "search"])
def test_results_that_cannot_be_written_end_it_at_once(
    command: list[str], engine: Engine, as_caller: list[str], results: Path
) -> None:
    done = engine.run(*as_caller, "-v", f"{results}:/app/results:ro", IMAGE, *command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "error: cannot write in /app/results as user {}:{}".format(*CALLER) in done.stderr
    assert not list(results.iterdir())


def test_a_full_disk_ends_it_with_a_line_that_says_so(engine: Engine, as_caller: list[str]) -> None:
    full = ["--tmpfs", "/app/results:size=16k,mode=1777"]
    done = engine.run(*as_caller, *full, IMAGE, *SEARCH, *MINE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("run_search: error: the disk is full for /app/results/mine/")
    assert "Traceback" not in done.stderr
