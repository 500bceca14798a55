"""--log-to: TensorBoard and Weights & Biases are told what a search does, and can never do it harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from evaluation.entry import run_tool
from genetic_algorithm import observers, run_search
from genetic_algorithm.errors import SearchError
from genetic_algorithm.observers import Values
from tests.genetic_algorithm.conftest import FACTORY, ROOT, SMALL, CommandLine

pytestmark = pytest.mark.usefixtures("no_drawings")
HERE = ["--evaluator", FACTORY, *SMALL]
WANDB_SETTINGS = (
    "WANDB_MODE",
    "WANDB_API_KEY",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_BASE_URL",
    "WANDB_PROJECT",
    "NETRC",
)


@pytest.fixture(autouse=True)
def _nobody_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No keys, no settings of wandb."""
    monkeypatch.setenv("SIM_QUESTIONS", "70")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in WANDB_SETTINGS:
        monkeypatch.delenv(name, raising=False)


class Recording:
    """An observer that keeps what it is told, and fails at a step or at once."""

    def __init__(self, fails_from: float = float("inf")) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.found: list[tuple[int, dict[str, Any]]] = []
        self.closed = 0
        self._fails_from = fails_from

    def log(self, step: int, values: Values) -> None:
        if step >= self._fails_from:
            raise ConnectionError("the service is\n down")
        self.rows.append((step, dict(values)))

    def finish(self, step: int, values: Values) -> None:
        self.found.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1
        if self._fails_from < float("inf"):
            raise ConnectionError("still down")


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recording]:
    """Observers that record, in place of the real ones, which need not be installed."""
    made: dict[str, Recording] = {}

    def make(name: str, folder: Path, run_id: str, config: Mapping[str, Any]) -> Recording:
        return made.setdefault(name, Recording())

    monkeypatch.setattr(observers, "_make", make)
    monkeypatch.setattr(observers, "_is_installed", lambda package: True)
    return made


def _run(folder: Path, *flags: str) -> int:
    return run_tool("run_search", run_search.main, [*HERE, "--output-dir", str(folder), *flags])


def _unlink_result(folder: Path) -> dict[str, Any]:
    """As if the search had been killed before its end."""
    (path,) = folder.glob("search_result_*.json")
    result: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return result


def test_each_answered_request_and_the_result_are_told(
    recording: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path / "run", "--log-to", "wandb, tensorboard") == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = _unlink_result(tmp_path / "run")
    assert set(recording) == {"wandb", "tensorboard"}
    rows, found = recording["wandb"].rows, recording["wandb"].found
    steps = [step for step, _ in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == result["usage"]["in_all"]["question_evaluations"] == rows[-1][1]["question_evaluations"]
    assert {row["stage"] for _, row in rows} == {"stage 1", "stage 2", "stage 3", "hold-out"}
    assert all(row["questions_per_second"] > 0 and row["failures"] == 0 for _, row in rows)
    best = rows[-1][1]
    most = max(result["final_results"], key=lambda row: (row["questions"], row["accuracy"]))
    assert best["best_score"] == pytest.approx(most["accuracy"], abs=1e-6)
    assert best["best_standard_error"] == pytest.approx(most["standard_error"], abs=1e-6)
    assert best["best_layers"] == "0+1+2+9"
    assert found == [(steps[-1], {**last, "layers": "+".join(map(str, last["layers"]))})]
    assert recording["wandb"].closed == recording["tensorboard"].closed == 1


def test_a_resumed_search_tells_nothing_twice_and_a_new_observer_everything(
    recording: dict[str, Recording], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert _run(folder, "--log-to", "wandb") == 0
    steps = [step for step, _ in recording["wandb"].rows]
    _unlink_result(folder)
    assert _run(folder, "--log-to", "wandb,tensorboard") == 0  # no part of what the run is
    assert [step for step, _ in recording["wandb"].rows] == steps
    assert [step for step, _ in recording["tensorboard"].rows] == steps
    _unlink_result(folder)
    assert _run(folder) == 0
    (folder / "log_to.json").write_text('{"steps": ')
    _unlink_result(folder)
    assert _run(folder, "--log-to", "wandb") == 0
    assert [step for step, _ in recording["wandb"].rows] == steps * 2


@pytest.mark.parametrize("moment", ["at once", "in the middle", "at the record"])
def test_an_observer_that_fails_is_left_out_and_the_search_goes_on(
    moment: str, recording: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(tmp_path / "undisturbed") == 0
    if moment == "at once":
        monkeypatch.setitem(observers.NEEDS, "wandb", ("no",))
        monkeypatch.setattr(observers, "_make", lambda name, *_: recording[name])  # there is none: KeyError
    elif moment == "in the middle":
        recording["wandb"] = Recording(fails_from=500)
    else:
        (tmp_path / "run" / "log_to.json").mkdir(parents=True)
        (tmp_path / "run" / "log_to.json" / "in the way").touch()
        written = json.loads((tmp_path / "undisturbed" / "config.json").read_text())
        (tmp_path / "run" / "config.json").write_text(json.dumps(written))
    assert _run(tmp_path / "run", "--log-to", "wandb") == 0
    (log,) = (tmp_path / "run").glob("search_log_*.txt")
    (warning,) = [line for line in log.read_text().splitlines() if "--log-to" in line]
    assert "it is left out, and the search goes on without it" in warning
    if moment == "in the middle":
        assert "--log-to wandb fails (ConnectionError: the service is down)" in warning
        assert recording["wandb"].rows
        assert recording["wandb"].closed == 1
    found = [_unlink_result(tmp_path / name)["final_results"] for name in ("run", "undisturbed")]
    assert found[0] == found[1]


def test_they_are_closed_when_the_search_is_stopped(
    recording: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recording, "log", interrupt)
    assert _run(tmp_path / "run", "--log-to", "wandb") == 130
    assert recording["wandb"].closed == 1
    assert recording["wandb"].found == []


@pytest.mark.parametrize(
    ("flags", "environment", "told"),
    [
        (["--log-to", "wandb,mlflow"], {}, "'mlflow' is nothing to log to; known are wandb, tensorboard"),
        (["--log-to", " , "], {}, "' , ' is nothing to log to; known are wandb, tensorboard"),
        (["--log-to", "tensorboard"], {}, "needs the package no_such_package, which is not here; "),
        (["--log-to", "wandb"], {"WANDB_MODE": "online"}, "there is no key for wandb; run `wandb login`"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_loaded(
    flags: list[str],
    environment: dict[str, str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(observers.NEEDS, "tensorboard", ("no_such_package",))
    monkeypatch.setitem(observers.NEEDS, "wandb", ())
    monkeypatch.setattr(run_search.wiring, "make_evaluator", lambda *_, **__: pytest.fail("the evaluator was made"))
    assert _run(tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_where_nothing_can_be_installed_nobody_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the image, whose user is not root."""
    monkeypatch.setitem(observers.NEEDS, "tensorboard", ("no_such_package",))
    for can_write, told in ((True, "install it with: pip install no_such_package"), (False, "so leave --log-to out: ")):
        monkeypatch.setattr(os, "access", lambda path, mode, can_write=can_write: can_write)
        with pytest.raises(SearchError, match=told):
            observers.require_packages(["tensorboard"])


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb_of_mine" / "offline-run-1").mkdir(parents=True)  # as wandb leaves one where it is used
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not observers._is_installed("wandb_of_mine")
    assert observers._is_installed("json")


def test_a_key_is_found_where_wandb_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not observers._has_wandb_key()
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    (home / ".netrc").chmod(0o600)
    assert observers._has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not observers._has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert observers._has_wandb_key()


def _tensorboard(folder: Path) -> Any:
    """What TensorBoard reads back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    return read


def test_tensorboard_reads_a_resumed_search_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (pip install .[logging])")
    folder = tmp_path / "run"
    monkeypatch.setenv("SIM_BROKEN", "0+2+9,2")
    assert _run(folder, "--log-to", "tensorboard") == 0
    read = _tensorboard(folder / "tensorboard")
    assert read.Scalars("failures")[-1].value == 1
    before = [event.step for event in read.Scalars("question_evaluations")]
    _unlink_result(folder)
    monkeypatch.delenv("SIM_BROKEN")
    assert _run(folder, "--log-to", "tensorboard", "--retry-failed") == 0
    read = _tensorboard(folder / "tensorboard")
    scalars = read.Scalars("question_evaluations")
    steps = [event.step for event in scalars]
    assert steps[: len(before)] == before
    assert steps == sorted(set(steps)) == [event.value for event in scalars]
    assert read.Scalars("best_standard_error")[-1].value > 0
    (result,) = folder.glob("search_result_*.json")
    best = json.loads(result.read_text())["final_results"][0]
    assert read.Scalars("final/accuracy")[-1].value == pytest.approx(best["accuracy"], abs=1e-6)
    texts = [event.tensor_proto.string_val[0].decode() for event in read.Tensors("final/layers/text_summary")]
    assert texts[-1] == "+".join(map(str, best["layers"]))


def test_a_disk_that_is_full_takes_tensorboard_out_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (pip install .[logging])")
    code = f"""
import logging, resource
from pathlib import Path
from genetic_algorithm.observers import Observers
logging.basicConfig()
watching = Observers(["tensorboard"], Path({str(tmp_path)!r}) / "log_to.json", {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for step in range(300):
    watching.log(step, {{"best_score": 0.5, "stage": "stage 1"}})
watching.finish(300, {{"accuracy": 0.5}})
watching.close()
print("done")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert done.stderr.count("--log-to tensorboard fails (") == 1
    assert "File too large" in done.stderr


def _wandb_records(folder: Path) -> Iterator[Any]:
    """Each record in the log of an offline run: blocks of 32 KiB, as in LevelDB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def _value(item: Any) -> tuple[str, Any]:
    return item.key or "/".join(item.nested_key), json.loads(item.value_json)


def test_wandb_goes_on_with_the_same_run_offline(command_line: CommandLine) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (pip install .[logging])")
    for name in WANDB_SETTINGS:
        command_line.environment.pop(name, None)
    command_line.environment["HOME"] = os.environ["HOME"]
    flags = ("--log-to", "wandb", "--seed", "3")
    process = command_line.start(command_line.command(*flags), SIM_SLEEP_S="0.1")
    record = command_line.folder / "run" / "log_to.json"
    while not record.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(2 * observers._WANDB_FLUSH_S)
    process.kill()
    process.communicate(timeout=60)
    again = command_line.run_anew(*flags)
    assert again.returncode == 0, again.stderr
    assert "wandb: " not in again.stderr  # our own lines only
    (result,) = (command_line.folder / "run").glob("search_result_*.json")
    document = json.loads(result.read_text())
    sittings = sorted((command_line.folder / "run" / "wandb").glob("offline-run-*"))
    assert len(sittings) == 2
    runs, steps, summary = [], [], {}
    for sitting in sittings:
        for item in _wandb_records(sitting):
            if item.HasField("run"):
                runs.append(item.run)
            if item.HasField("history"):
                steps.append(dict(map(_value, item.history.item))["question_evaluations"])
            if item.HasField("summary"):
                summary |= dict(map(_value, item.summary.update))
    assert {run.run_id for run in runs} == {json.loads(record.read_text())["wandb_run"]}
    assert {run.project for run in runs} == {"ga-layer-search"}
    config = dict(map(_value, runs[-1].config.update))
    assert config["run"]["search"]["seed"] == 3
    assert steps == sorted(set(steps))
    assert steps[0] == 13 * 24  # of the sitting that was killed
    assert steps[-1] == document["usage"]["in_all"]["question_evaluations"]
    assert summary["final/accuracy"] == document["final_results"][0]["accuracy"]
