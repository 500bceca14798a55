"""What scripts/submit.sh submits, told by a stand-in for sbatch."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from .conftest import Run, only, write_program
from .test_launching import modules_run


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ("", "search.sbatch"),
        ("search --pair tiny", "search.sbatch --pair tiny"),
        ("--pair tiny --gpus 4 --seed 3", "--gres=gpu:4 search.sbatch --pair tiny --seed 3"),
        ("--gpus=0", "--gres=none search.sbatch"),
        ("--gpus h100:8 --nodes=2", "--nodes=2 --gres=gpu:h100:8 search_multinode.sbatch"),
        ("--nodes 1", "--nodes=1 search.sbatch"),
        ("--array 0-4%2 --time 1-00:00:00", "--time=1-00:00:00 --array=0-4%2 search.sbatch"),
        (
            "--cpus 8 --mem 64G --partition p --account a --qos q --job-name n --dependency afterok:3",
            "--partition=p --account=a --qos=q --job-name=n --dependency=afterok:3 --cpus-per-task=8 --mem=64G "
            "search.sbatch",
        ),
        ("checkpoint --layers 1 2 --output_dir 'a b'", "create_checkpoint.sbatch --layers 1 2 --output_dir 'a b'"),
        ("--seed 1 -- --gpus 0,1 --dry-run", "search.sbatch --seed 1 --gpus 0,1 --dry-run"),
    ],
)
def test_what_would_be_submitted(given: str, command: str, clone: Path, run: Run) -> None:
    words = shlex.split(given)
    words.insert(1 if words[:1] in (["search"], ["checkpoint"]) else 0, "--dry-run")
    done = run(clone / "scripts" / "submit.sh", *words, cwd=clone)
    assert done.returncode == 0, done.stderr
    expected = [f"scripts/slurm/{word}" if word.endswith(".sbatch") else word for word in shlex.split(command)]
    assert shlex.split(done.stdout) == ["sbatch", "--parsable", *expected]
    assert not (clone / ".setup.log").exists()


def test_from_another_folder_the_printed_command_does_the_same(clone: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "o'ther"
    folder.mkdir()
    done = run(clone / "scripts" / "submit.sh", "--dry-run", "--container", "my image.sif", cwd=folder)
    command = ["env", "CONTAINER=my image.sif", "sbatch", "--parsable", f"--chdir={folder}"]
    assert shlex.split(done.stdout) == ["cd", str(clone), "&&", *command, "scripts/slurm/search.sbatch"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--gpus x", "--gpus cannot be 'x'"),
        ("--nodes 0", "--nodes cannot be '0'"),
        ("--time soon", "--time cannot be 'soon'"),
        ("--array 0-", "--array cannot be '0-'"),
        ("--mem=", "--mem cannot be ''"),
        ("--seed 1 --partition", "--partition needs a value"),
        ("checkpoint --pair tiny", "a checkpoint needs --layers or --from_result"),
        ("checkpoint --layers 1 --array 1-2", "a checkpoint is made once, on one node"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given: str, message: str, clone: Path, run: Run) -> None:
    done = run(clone / "scripts" / "submit.sh", *shlex.split(given))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"submit.sh: error: {message}; --help shows how\n"


def test_without_sbatch_it_says_so_before_it_sets_up(clone: Path, run: Run, tmp_path: Path) -> None:
    done = run(clone / "scripts" / "submit.sh", PATH=str(only(tmp_path / "bare", "dirname", "realpath")))
    assert done.returncode == 1
    assert done.stderr.startswith("submit.sh: error: no sbatch on PATH; submit where SLURM is")
    assert not (clone / ".setup.log").exists()


def fake_sbatch(tmp_path: Path) -> str:
    """A stand-in that writes down where it ran and with what; returns a PATH with it in front."""
    code = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([os.getcwd(), sys.argv[1:]]), file=open({str(tmp_path / "submitted")!r}, "w"))
sys.exit("sbatch: error: no such partition") if "--partition=bad" in sys.argv else print("12;main")
"""
    return f"{write_program(tmp_path / 'slurm' / 'sbatch', code).parent}:/usr/bin:/bin"


def test_it_makes_ready_submits_and_tells_how_to_follow(clone: Path, run: Run, recorder: Path, tmp_path: Path) -> None:
    path = fake_sbatch(tmp_path)
    submit = clone / "scripts" / "submit.sh"
    done = run(submit, "--pair", "tiny", "--seed", "3", PATH=path, PYTHON=str(recorder))
    assert done.returncode == 0, done.stderr
    assert modules_run(tmp_path) == [["model_preparation.modelscope_utils", "--pair", "tiny"]]
    where, words = json.loads((tmp_path / "submitted").read_text())
    job = ["scripts/slurm/search.sbatch", "--pair", "tiny", "--seed", "3"]
    assert (where, words) == (str(clone), ["--parsable", f"--chdir={tmp_path}", *job])
    assert done.stdout.splitlines() == [
        "job 12",
        f"follow it: tail -F {tmp_path}/slurm-12.out",
        "cancel it: scancel 12",
    ]
    done = run(submit, "--array", "1-3", PATH=path, PYTHON=str(recorder))
    assert f"tail -F {tmp_path}/slurm-12_*.out" in done.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--pair tiny --generatoins 3", "unrecognized arguments: --generatoins 3; the nearest is --generations"),
        ("--pair tiny --generations many", "argument --generations: invalid int value: 'many'"),
        ("-- --pair tiny --array 0-4", "unrecognized arguments: --array 0-4"),
        ("--pair tiny --log-to wanb", "--log-to"),
    ],
)
def test_what_the_search_would_refuse_does_not_wait_in_the_queue(
    given: str, message: str, clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    settings = {"PATH": fake_sbatch(tmp_path), "PYTHON": str(recorder)}
    done = run(clone / "scripts" / "submit.sh", *shlex.split(given), **settings)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
    assert not (tmp_path / "submitted").exists()
    assert modules_run(tmp_path) == []  # no model was fetched for it


def test_what_sbatch_refuses_is_told_as_it_is(clone: Path, run: Run, recorder: Path, tmp_path: Path) -> None:
    done = run(clone / "scripts" / "submit.sh", "--partition", "bad", PATH=fake_sbatch(tmp_path), PYTHON=str(recorder))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "sbatch: error: no such partition\n")


def test_models_that_cannot_be_had_stop_it(clone: Path, run: Run, recorder: Path, tmp_path: Path) -> None:
    settings = {"PATH": fake_sbatch(tmp_path), "PYTHON": str(recorder), "FAILING": "modelscope_utils"}
    done = run(clone / "scripts" / "submit.sh", "--pair", "tiny", **settings)
    assert done.returncode != 0
    assert not (tmp_path / "submitted").exists()
