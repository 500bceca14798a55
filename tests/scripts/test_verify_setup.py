"""verify_setup.sh tells what is here before and after set-up, and sets nothing up."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.conftest import long_one

from .conftest import ROOT, Run, only, write_program

TOOLS = ("bash", "dirname", "realpath", "cat", "tail", "env")


def test_before_any_set_up_it_names_the_command_and_makes_nothing(clone: Path, run: Run, tmp_path: Path) -> None:
    for name in ("evaluation/surroundings.py", "evaluation/__init__.py"):
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text((ROOT / name).read_text())
    before = sorted(path for path in clone.rglob("*") if "__pycache__" not in path.parts)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = run(clone / "scripts" / "verify_setup.sh", PATH=path, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 1, done.stderr
    assert done.stderr == (
        f"verify_setup.sh: not ready: there is no environment in {clone}/.venv yet; make it with: "
        "./scripts/quick_test_real.sh --pair tiny --dry-run\n"
    )
    assert "disk of results" in done.stdout
    assert sorted(path for path in clone.rglob("*") if "__pycache__" not in path.parts) == before


def test_where_conda_is_its_environment_is_what_lacks(clone: Path, run: Run, tmp_path: Path) -> None:
    tools = only(tmp_path / "few", *TOOLS)
    write_program(tools / "conda", "#!/bin/sh\nexit 1\n")  # which knows no such environment
    done = run(clone / "scripts" / "verify_setup.sh", PATH=str(tools), CONDA_ENV="mine")
    assert done.returncode == 1
    assert "not ready: there is no conda environment mine yet; make it with: ./scripts/quick" in done.stderr


def test_without_any_python_it_says_so(clone: Path, run: Run, tmp_path: Path) -> None:
    path = str(only(tmp_path / "few", *TOOLS))
    done = run(clone / "scripts" / "verify_setup.sh", PATH=path)
    assert done.returncode == 1
    assert done.stdout.startswith("a search cannot run: no Python 3.11 or later on PATH; install one")
    done = run(clone / "scripts" / "verify_setup.sh", "--json", PATH=path)
    assert json.loads(done.stdout)["can_run"] is False


def test_an_environment_that_is_no_python_is_refused(clone: Path, run: Run) -> None:
    done = run(clone / "scripts" / "verify_setup.sh", PYTHON="/nowhere/python")
    assert done.returncode == 1
    assert "PYTHON=/nowhere/python is not a Python 3.11 or later" in done.stderr


def test_an_environment_whose_set_up_was_cut_off_is_none(clone: Path, run: Run, tmp_path: Path) -> None:
    for name, code in (("ready", 0), ("cut off", 1)):
        prefix = tmp_path / name
        write_program(prefix / "bin" / "python", f'#!/bin/sh\n[ "$1" = -c ] && echo "{prefix}"\n')
        if name == "ready":
            (prefix / "ga_layer_search.run").touch()
        command = ["-c", 'source "$0/scripts/lib.sh"; ready_python', clone]
        done = run(*command, VENV=str(prefix), PATH=str(only(clone.parent / f"few {name}", *TOOLS)))
        assert done.returncode == code, done.stderr
        assert done.stdout == (f"{prefix}/bin/python\n" if name == "ready" else "")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [([], 0, "a search can run"), (["--gpu", "99"], 1, "a search cannot run: --gpu 99: this machine has")],
)
def test_after_set_up_the_exit_status_is_by_what_the_pair_needs(
    arguments: list[str], code: int, told: str, run: Run
) -> None:
    script = ROOT / "scripts" / "verify_setup.sh"
    done = run(script, "--no-measure", *arguments, PYTHON=sys.executable, PAIR="tiny", HF_HUB_OFFLINE="1")
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1].startswith(told)
    assert done.stderr.splitlines()[-1].startswith("verify_setup.sh: ready" if code == 0 else "verify_setup.sh: not")
    assert (
        "Hugging Face                not here; it would bring: models that are not here yet; not asked" in done.stdout
    )


@long_one
def test_for_machines_it_is_one_json_object(run: Run) -> None:
    script = ROOT / "scripts" / "verify_setup.sh"
    done = run(script, "--no-measure", "--json", "--pair", "tiny", PYTHON=sys.executable, HF_HUB_OFFLINE="1")
    document = json.loads(done.stdout)
    assert document["can_run"] is True
    assert {"torch", "disk of results", "SLURM", "base", "questions"} <= {
        one["name"] for one in document["surroundings"]
    }
