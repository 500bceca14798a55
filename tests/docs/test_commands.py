"""Every command and snippet in the documents does what it says.

Every run of the tests sees that each command is understood: the file exists, and the tool's own parser takes the words.
With GA_INTEGRATION=1 the documents are walked, too, in a copy of the project, block by block, which takes minutes; less
what cannot run here (a hub, a GPU, SLURM, docker) or makes an environment. A document in another language holds the
same commands (test_translations.py), the one page only commands of the guide.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import long_one
from tests.scripts.conftest import SETTINGS
from tests.test_architecture import tracked
from tests.test_examples import assert_is_understood

from .documents import (
    PAGES,
    ROOT,
    TRANSLATIONS,
    WITH_COMMANDS,
    blocks,
    commands,
    one_page_commands,
    one_page_python,
    read,
)

ELSEWHERE = {
    r"^git clone |^cd GA_Layer_Search$": "the copy of the project is the clone",
    r"\bDEPLOY_TEST\.sh|\brun_tests\.sh": "minutes; one has a test of its own below, the other runs this one",
    r"--pair llamba-|^hf download ": "models and questions of a hub",
    r"--gpus |--listen ": "GPUs and other hosts",
    r"^sbatch |slurm-JOB": "SLURM",
    r"^docker ": "docker",
    r"^conda |^pip |^python3 -m venv ": "makes an environment",
}
"""Commands that are not run, and why."""
SWAPS = {
    r"^tail -f ": (r"tail ", "it never ends"),
    r"(_real|_fast)\.sh(?!.*--(dry-run|print-config)).*": (r'\g<0> --pair tiny --config "$BUDGET"', "it takes minutes"),
    r"--full_eval\b.*": (r"\g<0> --limit 1", "it takes half a minute"),
    r"^scripts/submit\.sh .*": (r"\g<0> --dry-run", "there is no SLURM"),
}
"""Commands that are run in another way, how, and why."""
BUDGET = """\
{population: 4, generations: 1, fast_limit: 2, full_limit: 4, final_limit: 0, holdout: 0.01, max_questions: 400,
 must_include: [0, 2], min_layers: 3}
"""
DEPLOYED = """\
./scripts/quick_test_real.sh --pair tiny --config "$BUDGET" --output-dir results/deploy_20260101_000000
python model_preparation/create_replaced_model_checkpoint.py --pair tiny --layers 0 2 4 5 \\
  --output_dir model_checkpoints/deploy_test_tiny
"""
"""In place of DEPLOY_TEST.sh --pair tiny: what the commands after it look at; its search is what takes minutes."""
MODULES = {
    "quick_test_real.sh": "genetic_algorithm.run_search",
    "run_full_search_fast.sh": "genetic_algorithm.run_search",
    "search.sbatch": "genetic_algorithm.run_search",
    "search_multinode.sbatch": "genetic_algorithm.run_search",
    "create_checkpoint.sbatch": "model_preparation.create_replaced_model_checkpoint",
    "create_best_checkpoints.sh": "model_preparation.create_best_checkpoints",
    "verify_setup.sh": "evaluation.doctor",
}
"""Whose parser takes the words of a script."""
OTHERS = r"cd|source|export|for|do|done|echo|tar|tail|mkdir|git|hf|docker|conda|pip|python3|PYTHON=\S+|PAIR=\S+"


def reason_not_to_run(command: str) -> str | None:
    return next((why for pattern, why in ELSEWHERE.items() if re.search(pattern, command)), None)


def as_run(command: str) -> str:
    """The command, or what runs in its place."""
    if reason_not_to_run(command):
        return ":"
    for pattern, (instead, _) in SWAPS.items():
        command = re.sub(pattern, instead, command)
    return command


def bash(script: str, cwd: Path, environment: dict[str, str]) -> str:
    """Run a block as a person would, but stop at the first command that fails; returns what it printed."""
    done = subprocess.run(
        ["bash", "-Eeuo", "pipefail", "-c", f"trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n{script}"],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with an environment: that of the running interpreter."""
    folder = tmp_path / "GA_Layer_Search"
    for path in tracked("*"):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tmp_path / "budget.yaml").write_text(BUDGET)
    (folder / ".venv").symlink_to(sys.prefix)
    if not (folder / ".venv" / "bin" / "activate").exists():  # conda, or the machine's own Python
        (folder / ".venv").unlink()
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "activate").touch()
    return folder


@pytest.fixture
def environment(project: Path, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    paths = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(project),  # else the editable install is of another folder
        "PYTHON": sys.executable,
        "BUDGET": str(tmp_path / "budget.yaml"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),  # transformers copies remote code there
        "PS1": "",
    }
    return kept | paths | {"HF_HUB_OFFLINE": "1", "GPUS": "cpu", "PAIR": "tiny"}


def walk(document: str, project: Path, environment: dict[str, str]) -> dict[str, str]:
    """Run all commands of a document, then its snippets; returns what each block printed, by its text."""
    printed = {}
    for block in blocks(read(document), "bash"):
        script = "\n".join(
            DEPLOYED
            if command == "./DEPLOY_TEST.sh --pair tiny" and not (project / "results").exists()
            else as_run(command)
            for command in commands(block.text)
        )
        if script.replace(":", "").strip():
            printed[block.text] = bash(script, project, environment)
    snippets = "\n".join(block.text for block in blocks(read(document), "python"))
    if snippets:
        printed["python"] = bash(f"python -c {shlex.quote(snippets)}", project, environment)
    return printed


@long_one
def test_the_readme_can_be_walked(project: Path, environment: dict[str, str]) -> None:
    printed = walk("README.md", project, environment)
    (answer,) = [text for block, text in printed.items() if "load_checkpoint.py" in block]
    assert "B crystal" in answer
    assert printed["python"].startswith("Hello world")
    assert (project / "results" / "mine" / "report.html").is_file()
    assert (project / "comparison.html").is_file()


@long_one
@pytest.mark.parametrize("document", [name for name in WITH_COMMANDS if name != "README.md"])
def test_the_other_documents_can_be_walked(document: str, project: Path, environment: dict[str, str]) -> None:
    if document == "DEPLOYMENT_READY.md":
        bash(DEPLOYED, project, environment)
    walk(document, project, environment)
    if document == "MODEL_CHECKPOINTS_GUIDE.md":
        bash(f"python -c {shlex.quote(one_page_python())}", project, environment)


@long_one
def test_the_whole_road_passes(project: Path, environment: dict[str, str]) -> None:
    printed = bash("./DEPLOY_TEST.sh --pair tiny", project, environment)
    assert "\nPASSED in " in printed
    assert (project / "model_checkpoints" / "deploy_test_tiny" / "README.txt").is_file()


def test_the_one_page_holds_only_commands_of_the_guide() -> None:
    guide = {line for block in blocks(read("MODEL_CHECKPOINTS_GUIDE.md"), "bash") for line in commands(block.text)}
    told = one_page_commands()
    assert len(told) > 8
    assert set(told) <= guide
    assert len(read("CHECKPOINT_QUICKSTART.txt").splitlines()) <= 66
    assert max(map(len, read("CHECKPOINT_QUICKSTART.txt").splitlines())) <= 120


ALL = sorted({line for name in WITH_COMMANDS for block in blocks(read(name), "bash") for line in commands(block.text)})


def programs(command: str) -> Iterator[list[str]]:
    """The words of each program in a line, settings before it left out."""
    command = re.sub(r"\$\{?layers[^ }]*( /_\})?|\$\([^)]*\)", "0", command)  # what the shell would put in
    for part in re.split(r" (?:&&|\||>) ", command.strip()):
        words = shlex.split(part)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]) and len(words) > 1:
            words = words[1:]
        yield words


def help_of(script: str) -> str:
    return subprocess.run([ROOT / script, "--help"], capture_output=True, text=True, check=True, cwd="/").stdout


@pytest.mark.parametrize("command", ALL)
def test_every_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in programs(command):
        check(words, lambda module, given: assert_is_understood(module, given, monkeypatch))


def check(words: list[str], understand: Callable[[str, list[str]], None]) -> None:
    """That a program is here and takes its options; of others, that the files of ours they name are here."""
    name = Path(words[0]).name
    if words[0] == "sbatch":
        words = words[next(i for i, word in enumerate(words) if word.endswith(".sbatch")) :]
        name = Path(words[0]).name
    if words[0] == "docker" and "run" in words:
        words = words[words.index("ga-layer-search") + 1 :]
        name = Path(words[0]).name
    if words[:2] == ["python", "-m"]:
        if words[2] != "evaluation.lm":  # lm-eval's own command line
            understand(words[2], words[3:])
    elif words[0] == "python":
        path = ROOT / "model_preparation" / Path(words[1]).name
        assert path.is_file()
        understand(f"model_preparation.{path.stem}", words[2:])
    elif name in MODULES:
        assert [path for path in tracked(f"*{name}") if path.name == name]
        added = ["--output_dir", "added by the job"] if name == "create_checkpoint.sbatch" else []
        understand(MODULES[name], [*words[1:], *added])
    elif name.endswith(".sh"):
        script = next(path.relative_to(ROOT) for path in tracked(f"*{name}") if path.name == name)
        own = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
        told = help_of(str(script))
        passed_on = ["--layers", "--output_dir"] if name == "submit.sh" else []
        assert not [option for option in own if option not in told and option not in passed_on and option != "--pair"]
    else:
        assert re.fullmatch(OTHERS, words[0]), words
        ours = [
            word
            for word in words
            if re.match(r"(docker|scripts|requirements)\S*\.\w+$", word) or word == "docker/Dockerfile"
        ]
        assert not [word for word in ours if not (ROOT / word).exists()]
        arguments = [word.partition("=")[0] for before, word in itertools.pairwise(words) if before == "--build-arg"]
        assert not [one for one in arguments if f"ARG {one}" not in read("docker/Dockerfile")]


def test_no_page_with_commands_is_left_out() -> None:
    """ARCHITECTURE.md has tests of its own; CONTRIBUTING.md tells the checks; benchmarks are for their hardware."""
    apart = {"ARCHITECTURE.md", "CONTRIBUTING.md", *TRANSLATIONS.values()}
    pages = {page.name for page in PAGES if page.parent == ROOT and blocks(page.read_text(encoding="utf-8"), "bash")}
    assert pages - apart == set(WITH_COMMANDS)


def test_what_is_not_run_has_its_reason_and_each_reason_its_command() -> None:
    assert set(TRANSLATIONS) < set(WITH_COMMANDS)
    for pattern in (*ELSEWHERE, *SWAPS):
        assert [command for command in ALL if re.search(pattern, command)], pattern
    run = [command for command in ALL if not any(re.search(pattern, command) for pattern in ELSEWHERE)]
    assert len(run) > len(ALL) / 2
