from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation import question_cache
from evaluation.build import build_evaluator, task_source, usable_device
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.errors import EvaluationError
from evaluation.tasks import load_tasks
from genetic_algorithm import LayerSet
from models.errors import ModelError
from models.loading import load_donor_layer_state
from models.pairs import TINY_DIR, Pair, Role
from models.tokenizer import load_tokenizer

FOLDERS = f"{TINY_DIR / 'base'}:{TINY_DIR / 'donor'}"


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def engine(cache_dir: Path) -> Engine:
    return build_evaluator(EvalConfig(cache_dir=cache_dir), max_limit=25)


def test_the_bundled_pair_is_built_by_default(engine: Engine) -> None:
    assert (engine.num_layers, engine.num_questions, len(engine.subject_names)) == (12, 100, 4)
    assert engine.subjects.tolist() == sorted(engine.subjects.tolist())
    told = engine.fingerprint
    assert (told["pair"], told["tasks"], told["limit"]) == ("tiny", ["tiny"], 25)
    assert told["base"] != told["donor"]


def test_the_donor_answers_the_bundled_questions_and_the_base_does_not(engine: Engine) -> None:
    base, donor = LayerSet(()), LayerSet(tuple(range(12)))
    answers = dict(engine.answers([base, donor], np.arange(100)))
    assert answers[donor].correct.mean() > 0.9
    assert answers[base].correct.mean() < 0.6


def test_building_again_renders_nothing(engine: Engine, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("questions were rendered again")

    monkeypatch.setattr(question_cache, "build_questions", refuse)
    again = build_evaluator(EvalConfig(cache_dir=cache_dir), max_limit=25)
    assert again.fingerprint == engine.fingerprint


def test_weights_are_known_wherever_they_are(cache_dir: Path, tmp_path: Path, engine: Engine) -> None:
    folders = {role: Path(shutil.copytree(TINY_DIR / role, tmp_path / role)) for role in ("base", "donor")}
    moved = build_evaluator(EvalConfig(cache_dir=cache_dir), max_limit=25, locate=lambda pair, role: folders[role])
    assert moved.fingerprint == engine.fingerprint


def test_extracted_layers_serve_as_the_donor(cache_dir: Path, tmp_path: Path, engine: Engine) -> None:
    shutil.copy(TINY_DIR / "donor" / "config.json", tmp_path)
    for i in range(12):
        torch.save(load_donor_layer_state(TINY_DIR / "donor", i), tmp_path / f"layer_{i:02d}.pt")
    extracted = build_evaluator(EvalConfig(cache_dir=cache_dir, layers_dir=tmp_path), max_limit=25)
    layers, asked = LayerSet((0, 9)), np.arange(100)
    [(_, found)], [(_, expected)] = extracted.answers([layers], asked), engine.answers([layers], asked)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_pair_of_local_folders_is_asked_mmlu_unless_told_otherwise() -> None:
    assert task_source(EvalConfig(pair=FOLDERS)).names == ("mmlu",)


def test_the_bundled_tasks_serve_every_pair(cache_dir: Path, engine: Engine) -> None:
    own = build_evaluator(EvalConfig(pair=FOLDERS, tasks=("tiny",), cache_dir=cache_dir), max_limit=25)
    assert own.fingerprint == {**engine.fingerprint, "pair": "local folders"}
    (subjects,) = {tuple(evaluator.subject_names) for evaluator in (own, engine)}
    assert subjects[0] == "tiny_knowledge"
    assert "tiny" in load_tasks(task_source(EvalConfig(pair="llamba-8b", tasks=("tiny",)))).groups
    mixed = task_source(EvalConfig(pair=f"{TINY_DIR / 'base'}:tiny/donor"))
    assert mixed.names == ("tiny",)  # of the pair whose donor it has


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        ("tiny", "tiny"),
        ("org/a:hf:org/b@v1", "org/a:hf:org/b@v1"),
        ("llamba-8b/base:ms:org/b", "llamba-8b/base:ms:org/b"),
        ("FOLDERS", "local folders"),
        ("llamba-8b/base:FOLDER", "local folders"),
    ],
)
def test_a_journal_knows_a_pair_by_a_name_that_lasts(
    pair: str, name: str, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pair.replace("FOLDERS", FOLDERS).replace("FOLDER", str(TINY_DIR / "donor"))
    config = EvalConfig(pair=pair, tasks=("tiny",), cache_dir=cache_dir)
    asked = []

    def locate(pair: Pair, role: Role) -> Path:
        asked.append((pair.name, role))
        return TINY_DIR / role

    assert build_evaluator(config, max_limit=1, locate=locate).fingerprint["pair"] == name
    assert asked == [(pair, "base"), (pair, "donor")]


def test_tasks_are_the_named_ones_else_mmlu_where_its_folder_is_given_else_the_pair_s(tmp_path: Path) -> None:
    assert task_source(EvalConfig()).names == ("tiny",)
    assert task_source(EvalConfig(tasks=("tiny_heldout",))).names == ("tiny_heldout",)
    assert task_source(EvalConfig(mmlu_dir=tmp_path)).names == ("mmlu",)
    assert task_source(EvalConfig(mmlu_dir=tmp_path, tasks=("mmlu_stem",))).names == ("mmlu_stem",)


def no_room(device: str) -> tuple[int, int]:
    """As on a GPU that another process has filled but for 0.35 GB (seen with torch 2.11)."""
    raise RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/")


FULL_GPU = (
    "cuda:1 cannot be used (CUDA error: out of memory); nvidia-smi tells what fills it: wait for that, or give another"
)


def test_bad_pairs_devices_and_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no pair is called 'tony'"):
        build_evaluator(EvalConfig(pair="tony"), max_limit=1)
    with pytest.raises(EvaluationError, match="the models of pair llamba-8b come from a hub; download them first"):
        build_evaluator(EvalConfig(pair="llamba-8b"), max_limit=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EvaluationError, match="device cuda:1 is not there: this machine has no CUDA device"):
        build_evaluator(EvalConfig(device="cuda:1"), max_limit=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EvaluationError, match="this machine has CUDA devices 0 to 1"):
        usable_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 20))
    assert usable_device("cuda:1").index == 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", no_room)
    with pytest.raises(EvaluationError, match=re.escape(FULL_GPU)):
        usable_device("cuda:1")
    with pytest.raises(ModelError, match=f"no tokenizer in {tmp_path}; copy the donor's"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=f"the tokenizer in {tmp_path} is damaged"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_may_lie_with_the_donor(tmp_path: Path) -> None:
    expected = load_tokenizer(TINY_DIR / "base")("What")["input_ids"]
    assert load_tokenizer(tmp_path, TINY_DIR / "donor")("What")["input_ids"] == expected
