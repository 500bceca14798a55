"""What is on this machine beside the models: programs, packages, disks; what each would bring, and how to get it.

python -m evaluation.surroundings          for a machine on which nothing is installed yet; any Python runs it

Standard library only, so that it works before any set-up. `evaluation.doctor` shows the same and more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

_TIMEOUT_S = 5
INSTALL = "./scripts/quick_test_real.sh --pair tiny --dry-run"
"""Makes the environment and does no more."""
TRITON = f"PyTorch for CUDA brings it: unset TORCH_INDEX_URL, or name the index of such a build, and run {INSTALL}"
"""What brings Triton."""
_FETCHED = {"base", "donor", "questions"}
"""What a search brings by itself where there is a network."""
SPARE_BYTES = 500_000_000
"""Of disk that a search and its log never come near."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is here, or is not."""

    name: str
    found: str | None
    """Version or place; None where it is missing."""
    brings: str = ""
    """What it is for."""
    command: str = ""
    """What brings it."""
    is_needed: bool = False
    """Whether no search can run without it."""

    @property
    def problem(self) -> str | None:
        """One line where it is needed and missing."""
        if self.found is not None or not self.is_needed:
            return None
        return f"{self.name} missing ({self.brings}); {self.command}"


def look(root: Path) -> list[Finding]:
    """Programs, packages and disks of this machine."""
    programs = [_program(*program) for program in _PROGRAMS]
    with ThreadPoolExecutor() as pool:  # each asks a program for its version
        found = list(pool.map(_told, programs))
    return [_python(), *_packages(), *found, *disks(root)]


def interpreter() -> str:
    """The word of a command that starts this very Python, whether or not its environment is activated."""
    return from_here(Path(sys.executable))


def from_here(path: Path) -> str:
    """A path as a word of a command that is given in the working folder: relative where it lies below."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if here in path.parents else path))


def table(findings: Sequence[Finding]) -> str:
    """For a person: what is here, then what is not and what would bring it."""
    width = max(len(one.name) for one in findings)
    lines = [f"{one.name:<{width}}  {one.found}" for one in findings if one.found is not None]
    for one in findings:
        if one.found is None:
            kind = "NEEDED, for" if one.is_needed else "not here; it would bring"
            lines.append(f"{one.name:<{width}}  {kind}: {one.brings}; {one.command}")
    return "\n".join(lines)


def verdict(problems: Sequence[str], findings: Sequence[Finding]) -> str:
    """The line below the table: whether a search can run; of what the table tells, only the names of its rows."""
    rows = {one.problem: one.name for one in findings if one.problem}
    missing = [rows[problem] for problem in problems if problem in rows]
    told = [problem for problem in problems if problem not in rows]
    if missing:
        told.append(f"{', '.join(missing)} missing (above, NEEDED: what for, and what brings it)")
    if _FETCHED.intersection(missing):
        told.append("with a network, a search and DEPLOY_TEST.sh download models and questions by themselves")
    return f"a search cannot run: {'; '.join(told)}" if told else "a search can run"


def disks(root: Path, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Free space where results, checkpoints and caches lie."""
    home = Path.home() / ".cache"
    places = {
        "results": root / "results",
        "checkpoints": root / "model_checkpoints",
        "Hugging Face cache": Path(environment.get("HF_HOME") or home / "huggingface"),
        "ModelScope cache": Path(environment.get("MODELSCOPE_CACHE") or home / "modelscope"),
        "question cache": Path(environment.get("GA_CACHE_DIR") or home / "ga_layer_search"),
    }
    return [_disk(name, place.expanduser()) for name, place in places.items()]


def _disk(name: str, place: Path) -> Finding:
    there = place
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    is_writable = os.access(there, os.W_OK)
    needed = name in ("results", "question cache")
    title = f"disk of {name}"
    if is_writable and free >= SPARE_BYTES:
        return Finding(title, f"{free / 1e9:.1f} GB free at {place}")
    lacks = f"{free / 1e9:.1f} GB are free" if is_writable else f"{there} cannot be written"
    remedy = {
        "Hugging Face cache": "name another folder with HF_HOME",
        "ModelScope cache": "name another folder with MODELSCOPE_CACHE",
        "question cache": "name another folder with GA_CACHE_DIR",
    }.get(name, "free some space there, or name another folder (--output-dir, --output_dir)")
    return Finding(title, None, f"room at {place}, where {lacks}", remedy, is_needed=needed)


def _python() -> Finding:
    if sys.version_info < (3, 11):  # noqa: UP036 - any Python runs this file
        told = f"Python 3.11 or later runs everything, this is {platform.python_version()}"
        return Finding("Python", None, told, "install one, or set PYTHON=/path/to/python", is_needed=True)
    return Finding("Python", f"{platform.python_version()} ({sys.executable})")


_PACKAGES = (
    ("torch", "running the models", INSTALL, True),
    ("transformers", "the models' classes", INSTALL, True),
    ("lm_eval", "asking the questions", INSTALL, True),
    ("modelscope", "Llama from where it is not gated", INSTALL, False),
    ("triton", "fast kernels on a GPU", TRITON, False),
    ("ray", "several GPUs, several hosts", "pip install -r requirements-cluster.txt", False),
    ("matplotlib", "the pictures of a report", INSTALL, False),
    ("tensorboard", "curves with --log-to tensorboard", "pip install -e '.[logging]'", False),
    ("wandb", "curves with --log-to wandb", "pip install -e '.[logging]'", False),
)


def _packages() -> list[Finding]:
    found = []
    is_set_up = _version("torch") is not None
    for name, brings, command, is_needed in _PACKAGES:
        version = _version(name)
        if command.startswith("pip "):
            command = f"{interpreter()} -m {command}" if is_set_up else f"{INSTALL}, then {command} in its environment"
        found.append(Finding(name, version, brings, command, is_needed))
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


_PROGRAMS = (
    ("NVIDIA driver", ("nvidia-smi",), ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
     "a search of 8B models in hours", "install NVIDIA's driver, or use a machine with a GPU"),
    ("conda", ("conda",), ("--version",), "a named environment", "not needed: a virtual environment does as well"),
    ("git", ("git",), ("--version",), "the commit in each result", "apt install git"),
    ("SLURM", ("sbatch",), ("--version",), "searches as jobs", "go where sbatch is, then scripts/submit.sh"),
    ("container runtime", ("docker", "podman", "apptainer", "singularity", "enroot"), ("--version",),
     "the image (docker/Dockerfile), containers in jobs", "install Docker or Apptainer"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Asked:
    name: str
    command: tuple[str, ...]
    brings: str
    remedy: str


def _program(name: str, names: Sequence[str], arguments: Sequence[str], brings: str, remedy: str) -> _Asked:
    here = next(filter(None, map(shutil.which, names)), None)
    return _Asked(name, (here, *arguments) if here else (), brings, remedy)


def _told(asked: _Asked) -> Finding:
    """What a program says of itself; one that hangs or fails is there and says so."""
    if not asked.command:
        return Finding(asked.name, None, asked.brings, asked.remedy)
    try:
        done = subprocess.run(
            asked.command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        return Finding(asked.name, None, asked.brings, f"{asked.command[0]} does not answer ({type(error).__name__})")
    lines = [line.strip() for line in (done.stdout or done.stderr).splitlines() if line.strip()] or ["says nothing"]
    if done.returncode:
        return Finding(asked.name, None, asked.brings, f"{asked.command[0]} fails ({lines[-1][:120]})")
    return Finding(asked.name, "; ".join(lines[:8])[:200])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 1 where something that is needed is missing."""
    parser = argparse.ArgumentParser(
        prog="surroundings",
        description="Say what is on this machine beside the models, and what would bring what is missing.",
        epilog="examples:\n  python -m evaluation.surroundings\n  python -m evaluation.surroundings --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args(argv)
    found = look(Path(__file__).resolve().parents[1])
    problems = [one.problem for one in found if one.problem]
    if args.json:
        print(json.dumps({"can_run": not problems, "problems": problems, "surroundings": list(map(asdict, found))}))
    else:
        print(table(found))
        print(verdict(problems, found))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
