"""A pair of a user's own in a YAML file, named wherever a pair is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.build import task_source
from evaluation.config import EvalConfig
from models.errors import ModelError
from models.pairs import TINY_DIR, HubModel, get_pair, make_pair, named_pair
from tests.conftest import long_one

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two models and a folder of tasks beside the file."""
    for name in ("base", "donor"):
        (tmp_path / name).symlink_to(TINY_DIR / name)
    (tmp_path / "tasks").symlink_to(TINY_DIR / "tasks")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


WHOLE = """\
base: base
donor: ./donor
tasks: [tiny_recall, tiny_position]
unseen_tasks: [tiny_heldout]
task_dir: tasks
description: two of my own
license: mit
preset: tiny
"""


def test_a_file_tells_all_of_a_pair_and_folders_count_from_where_it_lies(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder, WHOLE)
    monkeypatch.chdir(folder.parent)
    pair = get_pair(os.path.relpath(path))
    assert get_pair(pair.name) == pair
    assert pair.name == str(path)
    assert (pair.base.folder, pair.donor.folder) == (str(TINY_DIR / "base"), str(TINY_DIR / "donor"))
    assert (pair.tasks, pair.unseen_tasks) == (("tiny_recall", "tiny_position"), ("tiny_heldout",))
    assert (pair.license, pair.preset, pair.description) == ("mit", "tiny", "two of my own")
    source = task_source(EvalConfig(pair=pair.name))
    assert (source.names, source.task_dir) == (pair.tasks, folder / "tasks")


def test_what_is_left_out_is_what_the_zoo_knows_of_the_models(folder: Path) -> None:
    pair = get_pair(str(write(folder, "base: base\ndonor: hf:meta-llama/Llama-3.1-8B-Instruct@main\n")))
    assert pair.donor.hubs == (HubModel(hub="huggingface", id="meta-llama/Llama-3.1-8B-Instruct", revision="main"),)
    assert (pair.tasks, pair.preset, pair.license) == (("mmlu",), "quick", "llama3.1")
    assert get_pair(str(write(folder, "base: tiny/base\ndonor: donor\n"))).tasks == ("tiny",)


def test_every_value_is_a_text_whatever_it_looks_like(folder: Path) -> None:
    odd = "license: 2026-13-45\ndescription: !!float x\ntasks: [7, no]\n"
    pair = get_pair(str(write(folder, f"base: base\ndonor: donor\n{odd}")))
    assert (pair.license, pair.description, pair.tasks) == ("2026-13-45", "x", ("7", "no"))


def test_another_donor_in_its_place_keeps_its_tasks(folder: Path) -> None:
    path = str(write(folder, WHOLE))
    mixed = named_pair(path, None, "org/other")
    assert mixed is not None
    assert (mixed.tasks, mixed.task_dir) == (("tiny_recall", "tiny_position"), folder / "tasks")
    assert mixed.name == f"{TINY_DIR / 'base'}:org/other"


def test_a_colon_and_yaml_at_the_end_are_still_two_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "b.yaml").mkdir()
    assert get_pair("base:b.yaml").name == make_pair("base", "b.yaml").name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no pair file {path}; check the path"),
        (
            "base: [",
            "{path}, line 1, is not YAML (expected the node content, but found '<stream end>'); write a pair as `base:",
        ),
        ("\udcff", "{path} is not YAML ("),
        ("", "{path} is no pair; it must say `base: MODEL` and `donor: MODEL`"),
        ("base: base\n", "{path} is no pair; it must also say `donor: MODEL`"),
        ("base: base\ndonr: donor\n", "{path}: there is no 'donr' in a pair; the nearest is 'donor'"),
        ("[base, donor]", "{path} is no pair; it must say"),
        ("base: base\ndonor: donor\ntask: [mmlu]\n", "{path}: there is no 'task' in a pair; the nearest is 'tasks'"),
        ("base: base\ndonor: [7]\n", "{path}: donor: ['7'] cannot be; give one text"),
        ('base: base\ndonor: !!int ""\n', "{path}: donor: '' cannot be; give one text"),
        (
            "base: ~no-one/x\ndonor: donor\n",
            "{path}: the base '~no-one/x' is no folder ('{folder}/~no-one/x')",
        ),
        (f"base: {'x' * 300}\ndonor: donor\n", "{path}: the base 'xxx"),
        (
            "base: base\ndonor: donor\ntask_dir: ~no-one\n",
            "~no-one' is no folder; give the one of the task files",
        ),
        ("base: base\ndonor: donor\ntasks: mmlu\n", "{path}: tasks: 'mmlu' cannot be; give a list of names, as [mmlu]"),
        ("base: base\ndonor: donor\ntasks: []\n", "{path}: tasks: [] cannot be; give a list of names, as [mmlu]"),
        (
            "base: ./bse\ndonor: donor\n",
            "{path}: the base './bse' is no folder ('{folder}/bse'); check the path",
        ),
        ("base: bse\ndonor: donor\n", "{path}: the base 'bse' is neither a folder here nor a hub id"),
        ("base: bse\ndonor: donor\n", "(with @revision if need be); there is no folder '{folder}/bse'"),
        ("base: base\ndonor: donor\ntask_dir: tsks\n", "tsks' is no folder; give the one of the task files"),
    ],
)
def test_what_is_wrong_with_it_is_told_in_one_line(folder: Path, text: str | None, told: str) -> None:
    path = folder / "mine.yaml"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError) as caught:
        get_pair(str(path))
    assert "\n" not in str(caught.value)
    assert told.format(path=path, folder=folder) in str(caught.value)


def tool(folder: Path, module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    found = os.environ | {"PYTHONPATH": str(ROOT), "GA_CACHE_DIR": str(folder / "cache")} | environment
    return subprocess.run(command, cwd=folder, env=found, capture_output=True, text=True, check=False)


@long_one
def test_searches_and_checkpoints_take_it_from_option_and_environment(folder: Path) -> None:
    path = write(folder, WHOLE)
    few = ["--gpu", "cpu", "--population", "4", "--generations", "1", "--fast-limit", "4", "--full-limit", "8"]
    run = ["genetic_algorithm.run_search", *few, "--holdout", "0", "--output-dir", "run"]
    done = tool(folder, *run, "--pair", "mine.yaml")
    assert done.returncode == 0, done.stderr
    header = json.loads((folder / "run" / "journal.jsonl").read_text().splitlines()[0])["header"]
    assert header["pair"] == "local folders"
    assert header["tasks"] == ["tiny_recall", "tiny_position"]
    facts = tool(folder, "model_preparation.pair_facts", "name", PAIR="mine.yaml")
    assert facts.stdout == f"{path}\n", facts.stderr
    result = next((folder / "run").glob("search_result_*.json"))
    arguments = ["--from_result", str(result), "--output_dir", "made", "--formats", "safetensors"]
    done = tool(folder, "model_preparation.create_replaced_model_checkpoint", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "made" / "checkpoint_info.json").read_text())["pair"] == str(path)


def test_a_preset_that_is_none_is_told(folder: Path) -> None:
    write(folder, WHOLE.replace("preset: tiny", "preset: large"))
    done = tool(folder, "genetic_algorithm.run_search", "--pair", "mine.yaml", "--gpu", "cpu", "--dry-run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "error: the pair's preset large is none of tiny, quick, full; mend it, or give --preset" in done.stderr
