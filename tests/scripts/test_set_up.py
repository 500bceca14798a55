"""Set-up: which Python, which environment, installed once, never by two at a time."""

from __future__ import annotations

import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from .conftest import Run, only, without_settings, write_program

OLD = "#!/bin/sh\nexit 1\n"  # what a Python before 3.11 answers to the question whether it fits


def lib(clone: Path, code: str) -> list[str]:
    """The bash command that runs `code` with lib.sh loaded; $1 is the clone."""
    return ["-euo", "pipefail", "-c", f'source "$1/scripts/lib.sh"; {code}', "test", str(clone)]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH on which there is no Python and no conda."""
    return only(tmp_path / "bare", "dirname", "realpath", "cat", "grep", "tail", "sleep")


def test_the_first_python_that_runs_and_is_new_enough_is_used(clone: Path, run: Run, bare: Path) -> None:
    write_program(bare / "python3", OLD)
    write_program(bare / "python3.12", "#!/bin/sh\necho 'not chosen' >&2\nexit 127\n")
    new = write_program(bare / "python3.11", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    done = run(*lib(clone, "find_python"), PATH=str(bare))
    assert done.stdout.strip() == str(new)


def test_without_python_the_next_step_is_named(clone: Path, run: Run, bare: Path) -> None:
    done = run(*lib(clone, "set_up run"), PATH=str(bare))
    assert done.returncode == 1
    assert "no Python 3.11 or later on PATH" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_python_that_is_given_is_used_as_it_is(clone: Path, run: Run, tmp_path: Path) -> None:
    done = run(*lib(clone, 'set_up dev; echo "$PY"'), PYTHON=sys.executable)
    assert done.stdout.strip() == sys.executable
    assert not (clone / ".setup.lock").exists()
    old = write_program(tmp_path / "old", OLD)
    done = run(*lib(clone, "set_up run"), PYTHON=str(old))
    assert done.returncode == 1
    assert f"PYTHON={old} is not a Python 3.11 or later" in done.stderr


def test_conda_makes_its_environment_once(clone: Path, run: Run, bare: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_program(
        bare / "conda",
        f"""#!/bin/sh
echo "$*" >>'{tmp_path}/conda calls'
case $1 in
  create) : >'{made}' ;;
  run) [ -e '{made}' ] && echo '{sys.executable}' ;;
esac
""",
    )
    for _ in range(2):
        done = run(*lib(clone, "conda_python"), PATH=str(bare))
        assert done.stdout.strip() == sys.executable
    calls = (tmp_path / "conda calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["run", "create", "run", "run"]
    assert "-n ga_layer_search python=3.11" in calls[1]


def test_a_conda_environment_of_an_older_python_is_named(clone: Path, run: Run, bare: Path, tmp_path: Path) -> None:
    old = write_program(tmp_path / "old", OLD)
    write_program(bare / "conda", f"#!/bin/sh\necho '{old}'\n")
    write_program(bare / "python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    done = run(*lib(clone, "set_up run"), PATH=str(bare))
    assert done.returncode == 1
    assert "conda env remove -n ga_layer_search" in done.stderr


def test_where_conda_fails_a_virtual_environment_serves(clone: Path, run: Run, bare: Path) -> None:
    write_program(bare / "conda", "#!/bin/sh\nexit 1\n")
    write_program(bare / "python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    code = 'venv_python() { echo "a virtual environment"; }; make_environment; echo "$PY"'
    assert run(*lib(clone, code), PATH=str(bare)).stdout.strip() == "a virtual environment"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment whose pip only writes down what it is asked for; returns its Python."""
    folder = tmp_path / "an environment"
    venv.create(folder, symlinks=True)
    (folder / "bin" / "python").rename(folder / "bin" / "real")
    return write_program(
        folder / "bin" / "python",
        f"""#!/bin/sh
if [ "$2" = pip ]; then
  echo "$*" >>'{tmp_path}/pip calls'
  echo 'what pip says'
  exit "${{PIP_FAILS:-0}}"
fi
exec "$(dirname "$0")/real" "$@"
""",
    )


def pip_calls(tmp_path: Path) -> list[str]:
    """What was installed since the last look."""
    log = tmp_path / "pip calls"
    calls = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return calls


def test_requirements_are_installed_once_and_again_when_they_change(
    clone: Path, run: Run, environment: Path, tmp_path: Path
) -> None:
    def install(flavour: str, **more: str) -> list[str]:
        done = run(*lib(clone, f'PY="{environment}"; install_requirements {flavour}'), **more)
        assert done.returncode == 0, done.stderr
        return pip_calls(tmp_path)

    first = install("run")
    assert [call.split()[-1] for call in first[:1]] == [f"{clone}/requirements.txt".split()[-1]]
    assert "-e" in first[1].split()
    assert install("run") == []
    assert "requirements-dev.txt" in install("dev")[0]
    assert install("run") == install("dev") == []
    (clone / "constraints.txt").write_text("numpy==2.4.6\n")
    assert install("run")
    url = "file:///wheels"
    assert f"--index-url {url} torch==" in install("run", TORCH_INDEX_URL=url)[0]


def test_what_pip_said_is_shown_when_it_fails_and_it_is_tried_again(
    clone: Path, run: Run, environment: Path, tmp_path: Path
) -> None:
    install = lib(clone, f'PY="{environment}"; install_requirements run')
    done = run(*install, PIP_FAILS="1")
    assert done.returncode == 1
    assert "what pip says" in done.stderr
    assert "installing failed" in done.stderr.splitlines()[-1]
    assert pip_calls(tmp_path)
    assert run(*install).returncode == 0
    assert pip_calls(tmp_path)


def test_an_index_of_torch_that_does_not_answer_is_named(clone: Path, run: Run, environment: Path) -> None:
    install = lib(clone, f'PY="{environment}"; install_requirements run')
    done = run(*install, PIP_FAILS="1", TORCH_INDEX_URL="http://127.0.0.1:9/nowhere")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "torch could not be had from TORCH_INDEX_URL=http://127.0.0.1:9/nowhere, which could not be " in last
    assert "reached or lacks it; check it or unset it (SETUP.md, Mirrors)" in last


def test_two_set_ups_take_turns(clone: Path, run: Run) -> None:
    first = subprocess.Popen(
        ["bash", *lib(clone, "take_lock; echo taken; sleep 1; release_lock")],
        env=without_settings(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "taken\n"
    began = time.monotonic()
    done = run(*lib(clone, "take_lock; echo taken"))
    assert done.stdout == "taken\n"
    assert "another set-up is running here" in done.stderr
    assert time.monotonic() - began > 0.5
    first.wait()
    first.stdout.close()


@pytest.mark.parametrize("error", ["ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def test_on_a_disk_without_locks_it_goes_on(error: str, clone: Path, run: Run, bare: Path, tmp_path: Path) -> None:
    """As on Lustre that is mounted without flock."""
    (tmp_path / "double").mkdir()
    code = f"""import errno, fcntl
def flock(descriptor, operation):
    raise OSError(errno.{error}, "no such thing")
fcntl.flock = flock
"""
    (tmp_path / "double" / "sitecustomize.py").write_text(code)
    write_program(bare / "python3", f'#!/bin/sh\nPYTHONPATH="{tmp_path}/double" exec "{sys.executable}" "$@"\n')
    done = run(*lib(clone, "take_lock; echo taken; release_lock"), PATH=f"{bare}:/usr/bin:/bin")
    assert (done.returncode, done.stdout) == (0, "taken\n")
    said = "the disk of this folder has no locks (no such thing): start one set-up at a time\n"
    assert done.stderr == said


def test_settings_come_from_the_environment_before_the_file(clone: Path, run: Run) -> None:
    code = 'echo "$CONDA_ENV|$GPUS|$VENV|$OMP_WAIT_POLICY"'
    assert run(*lib(clone, code)).stdout.strip() == f"ga_layer_search|auto|{clone}/.venv|PASSIVE"
    assert run(*lib(clone, code), CONDA_ENV="mine", GPUS="1,2").stdout.startswith("mine|1,2|")
