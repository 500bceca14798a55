"""Every tool's help has examples, and each of them runs: its words are what the tool takes.

Python tools parse them; shell scripts run them with a Python that writes down what it is asked to run, and that is
parsed in turn. Nothing is computed, and neither a GPU nor a hub is needed.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.entry import run_tool
from tests.scripts.conftest import ROOT, Run, clone, recorder, run
from tests.scripts.test_launching import modules_run

__all__ = ["clone", "recorder", "run"]  # fixtures

MODULES = [
    "genetic_algorithm.report",
    "genetic_algorithm.run_search",
    "evaluation.doctor",
    "evaluation.surroundings",
    "model_preparation.extract_layers",
    "model_preparation.create_replaced_model_checkpoint",
    "model_preparation.create_best_checkpoints",
    "model_preparation.test_checkpoint",
    "model_preparation.test_specific_combination",
    "model_preparation.load_checkpoint",
    "model_preparation.modelscope_utils",
    "model_preparation.check_deployment",
    "model_preparation.pair_facts",
    "models.tiny_pair",
]
LAUNCHED = ["DEPLOY_TEST.sh", "scripts/quick_test_real.sh", "scripts/run_full_search_fast.sh"]
LAUNCHED += ["scripts/create_checkpoint.sh", "model_preparation/create_best_checkpoints.sh", "scripts/verify_setup.sh"]
LAUNCHED += ["scripts/check_results.sh", "scripts/monitor_progress.sh"]
NOT_LAUNCHED = ["scripts/submit.sh", "scripts/run_tests.sh", "scripts/check.sh", "docker/entrypoint.sh"]


def help_of(script: str) -> str:
    command = [str(ROOT / script), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return done.stdout


def main_of(module: str) -> Callable[[list[str]], int]:
    """The command line of a tool."""
    is_package = module in ("models.tiny_pair", "run_folders", "genetic_algorithm.report")
    main: Callable[[list[str]], int] = importlib.import_module(f"{module}.__main__" if is_package else module).main
    return main


def examples(told: str) -> list[list[str]]:
    """Words of each example line, without what is said behind it and what it is piped to."""
    lines = told.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    spelled = [re.split(r"\s{3,}| [|<>] ", line.strip())[0] for line in lines]
    assert spelled, told
    return [shlex.split(line) for line in spelled]


class Parsed(BaseException):
    """The arguments were understood."""


def assert_is_understood(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parser that the module's own main uses."""

    def understood(parse: Any) -> Any:
        def parsing(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
            parse(self, args, namespace)
            raise Parsed

        return parsing

    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, understood(getattr(argparse.ArgumentParser, name)))
        patch.syspath_prepend(str(ROOT / "scripts"))
        with pytest.raises(Parsed):
            main_of(module)(words)


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_a_tool_are_understood(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(module, main_of(module), ["--help"]) == 0
    told = capsys.readouterr().out
    if module == "models.tiny_pair":
        told = "examples:\n" + "\n".join(line for line in told.splitlines() if line.startswith("    python")) + "\n\n"
    for words in examples(told):
        if words[0] != "python":
            assert (ROOT / words[0]).is_file() or words[0].startswith("./"), words
            assert_is_understood(module, words[1:], monkeypatch)
            continue
        if words[1] == "-m":
            assert words[2] == module
            assert_is_understood(module, words[3:], monkeypatch)
        else:
            path = re.sub(r"^(?!model_preparation/)", "model_preparation/", words[1])
            assert path == module.replace(".", "/") + ".py"
            assert_is_understood(module, words[2:], monkeypatch)


@pytest.mark.parametrize("script", LAUNCHED)
def test_examples_of_a_script_are_understood_by_what_it_runs(
    script: str, clone: Path, run: Run, recorder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in examples(help_of(script)):
        assert words[0].removeprefix("./") == script
        done = run(clone / script, *words[1:], cwd=clone, PYTHON=str(recorder), GPUS="cpu", PAIR="tiny")
        assert done.returncode == 0, done.stderr
    calls = modules_run(tmp_path)
    assert calls
    for module, *given in calls:
        assert_is_understood(module, given, monkeypatch)


@pytest.mark.parametrize("script", NOT_LAUNCHED)
def test_examples_of_what_runs_elsewhere_name_what_is_here(script: str, run: Run) -> None:
    for words in examples(help_of(script)):
        if script.endswith("submit.sh"):
            done = run(ROOT / script, *words[1:], *([] if "--dry-run" in words else ["--dry-run"]), cwd=ROOT)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("sbatch --parsable ")
        for word in words:
            if word.startswith(("scripts/", "tests/")):
                assert (ROOT / word).exists(), word


def test_every_tool_and_script_is_among_these() -> None:
    from tests.test_architecture import SHELL, TOOLS

    told = {path.relative_to(ROOT).as_posix() for path in SHELL}
    assert told == {*LAUNCHED, *NOT_LAUNCHED}
    apart = {"evaluation.lm", "evaluation.cluster.reaper", "scripts.run_folders.__main__"}
    assert {name.removesuffix(".__main__") for name in TOOLS if name not in apart} == set(MODULES)
