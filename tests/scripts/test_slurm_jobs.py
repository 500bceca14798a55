"""What SLURM jobs start, told by running their files as SLURM would; on a real cluster: tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Run, only, write_program
from .test_launching import modules_run

CACHES = {"HF_HOME": "huggingface", "MODELSCOPE_CACHE": "modelscope", "GA_CACHE_DIR": "ga_layer_search"}
FILES = ["search.sbatch", "search_multinode.sbatch", "create_checkpoint.sbatch"]


def job(clone: Path, **environment: str) -> dict[str, str]:
    """What SLURM tells a job."""
    unset = {"XDG_CACHE_HOME": "", "HOME": str(clone.parent / "home"), **dict.fromkeys(CACHES, "")}
    return (
        unset
        | {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "ga", "SLURM_SUBMIT_DIR": str(clone), "PAIR": "tiny"}
        | environment
    )


def test_a_job_searches_in_a_folder_of_its_number(clone: Path, run: Run, recorder: Path, tmp_path: Path) -> None:
    environment = job(clone, PYTHON=str(recorder))
    done = run(clone / "scripts" / "slurm" / "search.sbatch", "--generations", "3", **environment)
    assert done.returncode == 0, done.stderr
    (search,) = modules_run(tmp_path)
    assert search[-4:] == ["--generations", "3", "--output-dir", str(clone / "results" / "slurm_7")]
    assert {"--seed", "--gpus"}.isdisjoint(search)


@pytest.mark.parametrize(
    ("given", "folder", "seed"),
    [
        ([], "results/slurm_5_3", "3"),
        (["--output-dir", "a b", "--seed=9"], "a b_3", None),
        (["--output-dir=a b/"], "a b_3", "3"),
    ],
)
def test_each_task_of_an_array_has_its_seed_and_its_folder(
    given: list[str], folder: str, seed: str | None, clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    environment = job(clone, PYTHON=str(recorder), SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3")
    done = run(clone / "scripts" / "slurm" / "search.sbatch", *given, **environment)
    assert done.returncode == 0, done.stderr
    (search,) = modules_run(tmp_path)
    assert search[-1] == (folder if given else str(clone / folder))
    seeds = [word for word in search if word.startswith("--seed")]
    assert seeds[-1] == ("--seed=9" if seed is None else "--seed")
    assert seed is None or search[search.index("--seed") + 1] == seed


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ""),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ""),
        ({"CUDA_VISIBLE_DEVICES": "6"}, "--gpu 0"),
        ({"SLURM_GPUS_ON_NODE": "1"}, "--gpu 0"),
        ({"CUDA_VISIBLE_DEVICES": "6", "GPUS": "cpu"}, "--gpu cpu"),
        ({"CUDA_VISIBLE_DEVICES": "4,6,7", "SLURM_GPUS_ON_NODE": "3"}, "--gpus all"),
    ],
)
def test_the_search_gets_the_gpus_that_slurm_gave(
    environment: dict[str, str], expected: str, clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    settings = job(clone, PYTHON=str(recorder)) | {"CUDA_VISIBLE_DEVICES": "unset"} | environment
    command = ["-c", 'test "$CUDA_VISIBLE_DEVICES" != unset || unset CUDA_VISIBLE_DEVICES; exec bash "$0"']
    done = run(*command, clone / "scripts" / "slurm" / "search.sbatch", **settings)
    assert done.returncode == 0, done.stderr
    (search,) = modules_run(tmp_path)
    devices = [i for i, word in enumerate(search) if word.startswith("--gpu")]
    assert [" ".join(search[i : i + 2]) for i in devices] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("known_by_name", "addresses", "listens"),
    [
        ("10.0.0.7", "192.0.2.7 fd00::7", "10.0.0.7"),
        ("127.0.1.1", "192.0.2.7 fd00::7", "192.0.2.7"),  # as Debian has a host's own name in /etc/hosts
        ("127.0.1.1", "", "127.0.1.1"),
    ],
)
def test_the_first_of_several_nodes_listens_where_others_reach_it(
    known_by_name: str, addresses: str, listens: str, clone: Path, run: Run, tmp_path: Path
) -> None:
    path = double(tmp_path, "srun")
    says = {"scontrol": "NodeName=n1 NodeAddr=n1 Port=1", "getent": f"{known_by_name} STREAM n1", "hostname": addresses}
    for name, line in says.items():
        write_program(path / name, f"#!/bin/sh\necho '{line}'\n")
    environment = job(clone, PATH=f"{path}:/usr/bin:/bin", SLURM_NNODES="2", SLURMD_NODENAME="n1")
    done = run(clone / "scripts" / "slurm" / "search_multinode.sbatch", **environment)
    assert done.returncode == 0, done.stderr
    assert f" search {listens} {clone}/scripts/" in (tmp_path / "srun.log").read_text()


@pytest.mark.parametrize("file", FILES)
def test_a_job_from_another_folder_is_refused(file: str, clone: Path, run: Run, tmp_path: Path) -> None:
    done = run(clone / "scripts" / "slurm" / file, **job(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"{file}: error: {tmp_path} is not the project's folder; go there")


@pytest.mark.parametrize("file", FILES)
def test_without_slurm_a_job_file_says_what_it_is_for(file: str, clone: Path, run: Run) -> None:
    done = run(clone / "scripts" / "slurm" / file, cwd=clone)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "this is for sbatch; without SLURM: " in done.stderr


def test_a_checkpoint_goes_to_a_folder_of_its_number(clone: Path, run: Run, recorder: Path, tmp_path: Path) -> None:
    file = clone / "scripts" / "slurm" / "create_checkpoint.sbatch"
    for given in (["--layers", "1"], ["--layers", "1", "--output-dir", "a b"]):
        done = run(file, *given, **job(clone, PYTHON=str(recorder)))
        assert done.returncode == 0, done.stderr
    first, second = modules_run(tmp_path)
    assert first[1:] == ["--layers", "1", "--output_dir", str(clone / "model_checkpoints" / "slurm_7")]
    assert second[-2:] == ["--output_dir", "a b"]


def double(tmp_path: Path, name: str, says: str = "") -> Path:
    """A folder for PATH with a stand-in for a program that is not here; it writes its arguments down."""
    code = f'[ "$1" = --help ] && echo "{says}" || echo "$PYTHON: $*" >{name}.log'
    return write_program(tmp_path / "doubles" / name, f"#!/bin/sh\n{code}\n").parent


def test_a_sif_runs_in_apptainer(clone: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "image.sif").touch()
    environment = job(
        clone, PATH=f"{double(tmp_path, 'apptainer')}:/usr/bin:/bin", CONTAINER="image.sif", MOUNTS="/data"
    )
    done = run(clone / "scripts" / "slurm" / "search.sbatch", CUDA_VISIBLE_DEVICES="0", **environment)
    assert done.returncode == 0, done.stderr
    command = (tmp_path / "apptainer.log").read_text()
    caches = {name: f"{tmp_path}/home/.cache/{folder}" for name, folder in CACHES.items()}
    mounted = ",".join((str(clone), "/data", str(tmp_path), *caches.values()))
    assert command.startswith(f"python3: exec --bind {mounted} --pwd {tmp_path} --env PYTHON=python3 ")
    assert all(f" --env {name}={folder} " in command for name, folder in caches.items())
    assert f" --nv image.sif {clone}/" in command
    assert all(Path(folder).is_dir() for folder in caches.values())  # else they could not be mounted


def test_models_are_kept_where_the_user_says(clone: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "image.sif").touch()
    path = f"{double(tmp_path, 'apptainer')}:/usr/bin:/bin"
    environment = job(clone, PATH=path, CONTAINER="image.sif", HF_HOME=f"{tmp_path}/models")
    done = run(clone / "scripts" / "slurm" / "search.sbatch", **environment)
    assert done.returncode == 0, done.stderr
    command = (tmp_path / "apptainer.log").read_text()
    assert f",{tmp_path}/models," in command
    assert f" --env HF_HOME={tmp_path}/models " in command


def test_another_image_runs_in_enroot_through_pyxis(clone: Path, run: Run, tmp_path: Path) -> None:
    path = f"{double(tmp_path, 'srun', '--container-image=[USER@][REGISTRY#]IMAGE[:TAG]')}:/usr/bin:/bin"
    done = run(clone / "scripts" / "slurm" / "search.sbatch", **job(clone, PATH=path, CONTAINER="org/image:1"))
    assert done.returncode == 0, done.stderr
    command = (tmp_path / "srun.log").read_text()
    assert "--container-image=org/image:1 " in command
    assert f"--container-mounts={clone}:{clone},{tmp_path}:{tmp_path},{tmp_path}/home/.cache/huggingface:" in command
    (names,) = [word for word in command.split() if word.startswith("--container-env=")]
    assert {"HOME", "PYTHON", *CACHES} <= {*names.partition("=")[2].split(",")}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("missing.sif", "CONTAINER=missing.sif cannot be read on "),
        ("here.sif", "CONTAINER=here.sif needs apptainer on "),
        ("org/image", "CONTAINER=org/image needs Enroot and pyxis, which srun here does not have"),
    ],
)
def test_a_container_that_cannot_run_is_refused(
    image: str, message: str, clone: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "here.sif").touch()
    few = only(tmp_path / "few", "bash", "dirname", "grep", "hostname", "id", "sh")
    environment = job(clone, PATH=f"{double(tmp_path, 'srun', 'nothing of the kind')}:{few}")
    done = run(clone / "scripts" / "slurm" / "search.sbatch", CONTAINER=image, **environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr
