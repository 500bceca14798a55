"""A real SLURM cluster of two nodes on this machine, and jobs on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "scripts" / "slurm"
SIMULATED = ["--evaluator", "tests.genetic_algorithm.simulator:factory", "--preset", "quick", "--population", "14"]
SIMULATED += ["--generations", "5", "--fast-limit", "10", "--full-limit", "40", "--max-passes", "12"]


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for something, and return it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"{what} took more than {seconds} s"
        time.sleep(0.05)
    return found


def said(*command: str | Path) -> str:
    """What a command prints."""
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def result_in(folder: Path) -> dict[str, Any]:
    """The result of a search, less what may depend on how often it was stopped."""
    (path,) = folder.glob("search_result_*.json")
    document = json.loads(path.read_text())
    for stage in document["usage"].values():
        del stage["seconds"]
    return {name: value for name, value in document.items() if name not in ("timestamp", "versions")}


class Job:
    """One job, or one task of an array."""

    def __init__(self, number: str, folder: Path, output: Path) -> None:
        self.number, self.folder, self.output = number, folder, output

    @property
    def log(self) -> str:
        """What `tail -f` shows."""
        path = self.folder / f"slurm-{self.number}.out"
        return path.read_text() if path.exists() else ""

    def facts(self) -> dict[str, str]:
        """What SLURM says of it."""
        shown = said("scontrol", "show", "job", "--oneliner", self.number)
        return dict(word.partition("=")[::2] for word in shown.split())

    @property
    def answers(self) -> int:
        """Lines of its journal."""
        journal = self.output / "journal.jsonl"
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    def wait_for_answers(self, more: int = 1) -> None:
        """Until it has answered some more, the header of the journal apart."""
        wanted = max(1, self.answers) + more
        until(lambda: self.answers >= wanted, 60, f"the next answers of {self.log}")

    def wait_for_state(self, *states: str, seconds: float = 120) -> dict[str, str]:
        """Until it is in one of these states, with nothing of it left running."""
        until(lambda: self.facts()["JobState"] in states, seconds, f"{states}, not {self.facts()}, {self.log}")
        return self.facts()

    def processes(self) -> list[int]:
        """All that runs of it: slurmstepd and what it started."""
        table = [line.split(None, 2) for line in said("ps", "-eo", "pid=,ppid=,args=").splitlines()]
        found = {pid for pid, _, args in table if args.startswith(f"slurmstepd: [{self.number}.")}
        for _ in table:
            found |= {pid for pid, parent, _ in table if parent in found}
        return sorted(map(int, found))


class Cluster:
    """SLURM as scripts/submit.sh and sbatch see it."""

    def __init__(self, scripts: Path, folder: Path, work: Path) -> None:
        self._scripts, self._folder, self.work = scripts, folder, work
        self.calls = work / "calls"

    def up(self) -> None:
        """Start what does not run of it."""
        self._run("slurm_up.sh", "2")

    def down(self) -> None:
        """Stop it."""
        self._run("slurm_down.sh")

    def _run(self, script: str, *arguments: str) -> None:
        environment = os.environ | {"SLURM_LAB": str(self._folder), "GPUS": "2", "SLURM_CPUS": "2"}
        done = subprocess.run(
            [self._scripts / script, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"{script} starts no SLURM here: {done.stdout[-300:]}")

    def node_daemon(self, node: str) -> int:
        """The process of a node."""
        return int((self._folder / "pid" / f"slurmd.{node}.pid").read_text())

    def sbatch(self, file: str, *options: str, sbatch: tuple[str, ...] = (), cwd: Path = ROOT, **settings: str) -> Job:
        """Submit a job whose log lies in `work`; a search without --output-dir writes to results/."""
        command = ["sbatch", "--parsable", f"--chdir={self.work}", *sbatch, str(JOBS / file), *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PAIR", "SLURM_"))}
        environment |= {"PYTHON": sys.executable, "SIM_QUESTIONS": "70", "SIM_CALLS": str(self.calls)} | settings
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        number = done.stdout.strip()
        output = ROOT / "results" / f"slurm_{number}"
        if "--output-dir" in options:
            output = self.work / options[options.index("--output-dir") + 1]
        return Job(number, self.work, output)

    def search(self, sleep_s: float = 0.1, sbatch: tuple[str, ...] = ()) -> Job:
        """A search over the simulator, which takes this long for each answer and writes each call down."""
        options = (*SIMULATED, "--output-dir", "run")
        return self.sbatch("search.sbatch", *options, sbatch=("-c1", *sbatch), SIM_SLEEP_S=str(sleep_s))

    def repeated_calls(self) -> int:
        """How many evaluations were asked for more than once."""
        counted = Counter(self.calls.read_text().splitlines())
        return counted.total() - len(counted)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.environ.get("GA_INTEGRATION") != "1":
        pytest.skip("starts a real SLURM cluster and takes minutes; set GA_INTEGRATION=1 for it")
    scripts = Path(os.environ.get("GA_SHARED", ROOT.parent / "shared")) / "lab"
    if not (scripts / "slurm_up.sh").is_file():
        pytest.skip(f"no scripts that start a SLURM cluster in {scripts}; set GA_SHARED to the folder that holds lab/")
    if os.geteuid() != 0:
        pytest.skip("only root can start a SLURM cluster")
    folder = tmp_path_factory.mktemp("slurm")
    for above in folder.parents[:2]:  # daemons refuse paths that others could change, and need to get through
        above.chmod(0o755)
    cluster = Cluster(scripts, folder, folder)
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def cluster(slurm: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """The cluster, with a folder for this test."""
    slurm.up()  # what the test before has killed
    slurm.work, slurm.calls = tmp_path, tmp_path / "calls"
    yield slurm
    for number in said("squeue", "--noheader", "--format=%A").split():
        subprocess.run(["scancel", number], check=False)
    until(lambda: not said("squeue", "--noheader"), 60, "the end of all jobs")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What a search over the simulator ends with when nothing disturbs it, and SLURM has no part in it."""

    def run(*options: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        script = ROOT / "scripts" / "run_full_search_fast.sh"
        environment = os.environ | {"PYTHON": sys.executable, "SIM_QUESTIONS": "70"}
        done = subprocess.run(
            [script, *SIMULATED, *options, "--output-dir", folder],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return result_in(folder)

    return run


def kill(*processes: int) -> None:
    """As when the power goes."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
