"""What the image starts, and what it refuses to start."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The entry point with these arguments; programs in `path` are found first."""
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    return subprocess.run(
        [ROOT / "docker" / "entrypoint.sh", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with programs named as the scripts, each of which prints how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("DEPLOY_TEST.sh", "quick_test_real.sh", "run_full_search_fast.sh", "other"):
        (folder / name).write_text('#!/bin/sh\nprintf "%s|" "${0##*/}" "$@"; exit 7\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("given", "called"),
    [
        (["other", "a b", "--help"], "other|a b|--help|"),
        (["run_full_search_fast.sh", "--pair", "tiny"], "run_full_search_fast.sh|--pair|tiny|"),
        (["--pair", "llamba-8b"], "DEPLOY_TEST.sh|--pair|llamba-8b|"),
    ],
)
def test_the_command_runs_with_its_arguments_and_its_status(given: list[str], called: str, programs: Path) -> None:
    done = run(*given, path=programs)
    assert (done.returncode, done.stdout, done.stderr) == (7, called, "")


def test_what_is_not_there_is_named() -> None:
    done = run("no-such-program", "x")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == "entrypoint.sh: error: no program no-such-program in this image; --help tells what it runs\n"


@pytest.mark.parametrize("option", ["--output-dir {}", "--output-dir={}"])
@pytest.mark.parametrize("script", ["quick_test_real.sh", "run_full_search_fast.sh"])
def test_a_search_that_could_not_write_does_not_begin(script: str, option: str, programs: Path, tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.touch()
    arguments = [word.format(file / "mine") for word in option.split()]
    done = run(script, *arguments, path=programs)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"cannot write in {file} as user {os.getuid()}:{os.getgid()}" in done.stderr
    assert "--user" in done.stderr
    assert run("other", *arguments, path=programs).returncode == 7


def test_a_search_may_make_its_folder(programs: Path, tmp_path: Path) -> None:
    done = run("quick_test_real.sh", "--output-dir", tmp_path / "new" / "mine", path=programs)
    assert (done.returncode, done.stderr) == (7, "")
    assert not (tmp_path / "new").exists()
