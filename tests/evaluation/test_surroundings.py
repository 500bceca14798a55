"""The page on what is here: right on any machine, and of no harm where nothing is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from evaluation import surroundings
from evaluation.surroundings import Finding, disks, look, table
from tests.scripts.conftest import write_program

ROOT = Path(__file__).resolve().parents[2]


def finding(found: list[Finding], name: str) -> Finding:
    (one,) = (one for one in found if one.name == name)
    return one


def test_what_is_here_has_a_version_and_what_is_not_a_command(tmp_path: Path) -> None:
    found = look(ROOT)
    assert finding(found, "torch").found == metadata.version("torch")
    assert finding(found, "Python").found == f"{sys.version.split()[0]} ({sys.executable})"
    for one in found:
        assert one.found or (one.brings and one.command), one


def test_programs_that_hang_or_fail_are_told_and_wait_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(tmp_path / "sbatch", "#!/bin/sh\necho slurm 99.1\n")
    write_program(tmp_path / "nvidia-smi", "#!/bin/sh\necho 'no devices were found' >&2\nexit 9\n")
    write_program(tmp_path / "podman", "#!/bin/sh\nexec /bin/sleep 60\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(surroundings, "_TIMEOUT_S", 0.5)
    began = time.monotonic()
    found = look(ROOT)
    assert time.monotonic() - began < 20
    assert finding(found, "SLURM").found == "slurm 99.1"
    assert finding(found, "NVIDIA driver").command == f"{tmp_path}/nvidia-smi fails (no devices were found)"
    assert finding(found, "container runtime").command == f"{tmp_path}/podman does not answer (TimeoutExpired)"
    assert finding(found, "git").found is None


def test_packages_that_are_missing_are_named_with_what_they_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    found = look(ROOT)
    told = table(found)
    assert "lm_eval                     NEEDED, for: asking the questions; ./scripts/quick_test_real.sh" in told
    assert "matplotlib                  not here; it would bring: the pictures of a report; ./scripts/quick" in told
    assert finding(found, "ray").command == (
        "./scripts/quick_test_real.sh --pair tiny --dry-run, then pip install -r requirements-cluster.txt in its "
        "environment"
    )
    assert finding(found, "ray").problem is None
    monkeypatch.setattr(metadata, "version", lambda name: "1" if name == "torch" else nothing(name))
    ray = finding(look(ROOT), "ray").command
    assert ray == f"{surroundings.interpreter()} -m pip install -r requirements-cluster.txt"


def test_commands_name_this_python_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my clone" / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert surroundings.interpreter() == "'my clone/.venv/bin/python'"
    (tmp_path / "my clone").mkdir()
    monkeypatch.chdir(tmp_path / "my clone")
    assert surroundings.interpreter() == ".venv/bin/python"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert surroundings.interpreter() == f"'{tmp_path}/my clone/.venv/bin/python'"


def test_disks_are_where_the_caches_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = disks(tmp_path, {"HF_HOME": str(tmp_path / "not" / "there yet")})
    assert (finding(found, "disk of Hugging Face cache").found or "").endswith(f"free at {tmp_path}/not/there yet")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    full = disks(tmp_path, {})
    assert finding(full, "disk of results").problem == (
        f"disk of results missing (room at {tmp_path}/results, where 0.0 GB are free); free some space there, or "
        "name another folder (--output-dir, --output_dir)"
    )
    assert finding(full, "disk of checkpoints").problem is None


def test_it_runs_with_the_standard_library_alone() -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "evaluation" / "surroundings.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert [problem.split()[0] for problem in document["problems"]][:3] == ["torch", "transformers", "lm_eval"]
    assert document["can_run"] is False
