"""The scripts in a folder of their own, with an awkward name and nothing set up."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


def write_program(path: Path, text: str) -> Path:
    """Write a script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def only(folder: Path, *names: str) -> Path:
    """A folder for PATH with these programs of the machine and no other."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found, f"no {name} on this machine"
        (folder / name).symlink_to(found)
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the shell files and of what describes the project."""
    folder = tmp_path / "it's a $HOME clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("config.sh", "DEPLOY_TEST.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for path in (*ROOT.glob("requirements*.txt"), ROOT / "model_preparation" / "create_best_checkpoints.sh"):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return folder


SETTINGS = ("PAIR", "BASE", "DONOR", "GPUS", "PYTHON", "CONDA_ENV", "VENV", "TORCH_INDEX_URL")
SETTINGS += ("PYTHONPATH", "OMP_WAIT_POLICY")


def without_settings() -> dict[str, str]:
    """The environment, less what the scripts read from it; run_tests.sh itself sets PYTHON."""
    return {name: value for name, value in os.environ.items() if name not in SETTINGS}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run bash, away from the clone, with no settings in the environment and no terminal."""

    def bash(*command: str | Path, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shutil.which("bash") or "bash", *map(str, command)],
            cwd=cwd,
            env=without_settings() | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return bash


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A Python that writes down each module it is asked to run instead of running it, but tells facts of pairs."""
    log = tmp_path / "modules run"
    return write_program(
        tmp_path / "bin" / "recording python",
        f"""#!{sys.executable} -S
import json, os, pathlib, sys
arguments = sys.argv[1:]
is_question = arguments[2:3] == ["model_preparation.pair_facts"]
if arguments[:2] != ["-P", "-m"] or is_question:
    place = {{"PYTHONPATH": {str(ROOT)!r}}} if is_question else {{}}
    os.execve({sys.executable!r}, [{sys.executable!r}, *arguments], os.environ | place)
with open({str(log)!r}, "a") as file:
    print(json.dumps(arguments[2:]), file=file)
if arguments[2].endswith(os.environ.get("FAILING", "nothing")):
    sys.exit("it failed")
if arguments[2].endswith("run_search") and "--output-dir" in arguments:
    run = pathlib.Path(arguments[arguments.index("--output-dir") + 1])
    run.mkdir(parents=True)
    (run / "search_result_1.json").touch()
print(json.dumps({{"module": arguments[2]}}))
""",
    )
