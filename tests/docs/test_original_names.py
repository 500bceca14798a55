"""What the first version's documents named still works or is still there: commands, flags, files, folders, keys."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
from pathlib import Path

import pytest

from .documents import ROOT, read

FLAGS = {
    "extract_layers": "--model_name --output_dir",
    "create_replaced_model_checkpoint": "--layers --output_dir --description --score --llama_layers_dir --gpu",
    "test_checkpoint": "--checkpoint --full_eval --limit",
    "test_specific_combination": "--layers --gpu_id --limit",
}
COMMANDS = {
    "extract_layers": ["--model_name llama --output_dir ../extracted_llama_layers"],
    "create_replaced_model_checkpoint": [
        "--layers 11 13 17 21 --output_dir ../model_checkpoints/best_4layer --description best --score 0.5700 --gpu 0",
        "--layers 5 10 15 20 25 30 --output_dir ../model_checkpoints/custom_6layer --gpu 1",
    ],
    "test_checkpoint": [
        "--checkpoint ../model_checkpoints/llamba_replaced_11_13_17_21",
        "--checkpoint ../model_checkpoints/llamba_replaced_11_13_17_21 --full_eval --limit 100",
        "--checkpoint ../model_checkpoints/llamba_replaced_11_13_17_21 --full_eval",
    ],
    "test_specific_combination": ["--layers 17 --gpu_id 0 --limit 10"],
}
SCRIPTS = [
    "DEPLOY_TEST.sh",
    "scripts/quick_test_real.sh",
    "scripts/run_full_search_fast.sh",
    "model_preparation/create_best_checkpoints.sh",
]
FILES = ["config.sh", "requirements.txt", "README.md", "SETUP.md", "MODEL_CHECKPOINTS_GUIDE.md"]
FILES += [
    "CHECKPOINT_QUICKSTART.txt",
    "DEPLOYMENT_READY.md",
    "LICENSE",
    "genetic_algorithm",
    "model_preparation",
    "scripts",
]
FILES += ["models"]  # once it had to be copied from elsewhere
IGNORED = ["extracted_llama_layers/x", "model_checkpoints/x", "modelscope_cache/x", "results/x", "a.pt", "a.pth"]
MADE = ["model.pt", "model_state_dict.pt", "tokenizer/", "checkpoint_info.json", "README.txt"]
KEYS = ["replaced_layers", "mmlu_score", "creation_time"]
CHECKPOINTS = ["llamba_replaced_11_13_17_21", "llamba_replaced_13_16_17", "llamba_replaced_13_17", "llamba_replaced_17"]
GUIDE = "MODEL_CHECKPOINTS_GUIDE.md"


class Parsed(BaseException):
    """The arguments were understood."""


@pytest.mark.parametrize(("tool", "given"), [(tool, one) for tool, several in COMMANDS.items() for one in several])
def test_command_lines_of_the_first_version_are_understood(
    tool: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parsing(self: argparse.ArgumentParser, args: list[str]) -> None:
        parse(self, args)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsing)
    assert (ROOT / "model_preparation" / f"{tool}.py").is_file()
    with pytest.raises(Parsed):
        importlib.import_module(f"model_preparation.{tool}").main(given.split())
    assert not [flag for flag in FLAGS[tool].split() if flag not in read(GUIDE) + read("README.md")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_of_the_first_version_run_from_their_folder(script: str) -> None:
    path = ROOT / script
    done = subprocess.run(
        [f"./{path.name}", "--help"],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert os.access(path, os.X_OK)
    assert path.name in read("README.md")


@pytest.mark.parametrize("name", FILES)
def test_files_and_folders_of_the_first_version_are_here(name: str) -> None:
    assert (ROOT / name).exists()


def test_what_is_made_is_not_in_git(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text(read(".gitignore"))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    told = subprocess.run(
        ["git", "-C", str(tmp_path), "check-ignore", *IGNORED], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == IGNORED


def test_the_guide_names_what_a_checkpoint_holds_and_what_its_information_is_called() -> None:
    guide = read(GUIDE)
    assert not [name for name in (*MADE, *KEYS, *CHECKPOINTS) if name not in guide]
    fields = importlib.import_module("model_preparation.checkpoints.info").CheckpointInfo.__dataclass_fields__
    assert set(KEYS) <= set(fields)


def test_the_checkpoints_of_the_first_version_are_those_that_are_made_for_8b() -> None:
    from models.pairs import get_pair

    made = {"llamba_replaced_" + "_".join(map(str, one.layers)) for one in get_pair("llamba-8b").known_best()}
    assert set(CHECKPOINTS) <= made


def test_what_the_first_version_imported_is_there() -> None:
    from model_preparation.modelscope_utils import get_model_modelscope

    assert callable(
        get_model_modelscope
    )  # its call with 'unaligned_llamba': tests/model_preparation/test_loading_ways.py
    assert 'get_model_modelscope("unaligned_llamba"' in read(GUIDE)
