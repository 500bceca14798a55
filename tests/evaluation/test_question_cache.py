from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation import question_cache
from evaluation.question_cache import cached_questions, load, save, tokenizer_fingerprint
from evaluation.questions import QuestionSet
from evaluation.tasks import TaskSource
from tests.evaluation.conftest import letter_docs, make_tokenizer, write_tasks

Ask = Callable[..., QuestionSet]


@pytest.fixture
def ask(task_dir: Path, tmp_path: Path, tokenizer: Any) -> Ask:
    """Questions of the toy group, any part of the request changed by name."""

    def asked(**changed: Any) -> QuestionSet:
        request: dict[str, Any] = {
            "source": TaskSource(("toy",), task_dir),
            "tokenizer": tokenizer,
            "max_length": 256,
            "order": "shuffled",
            "limit": 7,
            "cache_dir": tmp_path / "cache",
        }
        return cached_questions(**(request | changed))

    return asked


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def no_rendering(*_: Any, **__: Any) -> Any:
    raise AssertionError("questions were rendered again")


def test_a_hit_equals_what_was_built_and_loads_no_task(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = ask()
    assert len(files(tmp_path)) == 1
    monkeypatch.setattr(question_cache, "load_tasks", no_rendering)
    monkeypatch.setattr(question_cache, "build_questions", no_rendering)
    again = ask()
    assert again.digest == built.digest
    assert (again.subject_names, again.groups, again.about) == (
        built.subject_names,
        built.groups,
        built.about,
    )
    for name, array in built.arrays().items():
        np.testing.assert_array_equal(getattr(again, name), array)
        assert getattr(again, name).dtype == array.dtype


def edited(file: Path) -> None:
    """Change a file so that it still reads: another word in questions, an empty line elsewhere."""
    text = file.read_text()
    file.write_text(text.replace("w1 ", "w2 ", 1) if file.suffix == ".jsonl" else text + "\n")


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 8},
        {"limit": None},
        {"order": "dataset"},
        {"max_length": 255},
        {"tokenizer": make_tokenizer(bos=False)},
        {"source": lambda folder: TaskSource(("toy_short",), folder)},
        {"source": lambda folder: TaskSource(("toy",), folder, num_fewshot=1)},
    ],
    ids=["limit", "no limit", "order", "length", "tokenizer", "tasks", "shots"],
)
def test_each_part_of_a_request_has_a_key_of_its_own(
    ask: Ask, tmp_path: Path, task_dir: Path, change: dict[str, Any]
) -> None:
    ask()
    ask(**{name: value(task_dir) if callable(value) and name == "source" else value for name, value in change.items()})
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("name", ["toy_long.jsonl", "toy_short.yaml", "reader.py", "_group.yaml"])
def test_each_file_of_the_tasks_is_in_the_key(ask: Ask, tmp_path: Path, task_dir: Path, name: str) -> None:
    ask()
    edited(task_dir / name)
    ask()
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize(("constant", "value"), [("FORMAT", 999), ("ORDER_SEED", 1), ("lm_eval_version", lambda: "0")])
def test_format_seed_and_lm_eval_are_in_the_key(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str, value: Any
) -> None:
    ask()
    monkeypatch.setattr(question_cache, constant, value)
    ask()
    assert len(files(tmp_path)) == 2


def test_tasks_with_data_elsewhere_are_known_by_configuration_and_data(
    ask: Ask, tmp_path: Path, task_dir: Path, datasets_cache: Path
) -> None:
    def declare(text: str, answer: int) -> None:
        """A task whose YAML names a data set outside its folder, as those of the hub do."""
        (tmp_path / "data.json").write_text(f'{{"question": "w1", "answer": {answer}}}\n')
        (task_dir / "toy_short.yaml").write_text(
            "task: toy_short\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {tmp_path}/data.json}}}}\n"
            f"test_split: test\noutput_type: multiple_choice\ndoc_to_text: {text}\n"
            "doc_to_target: answer\ndoc_to_choice: [A, B]\n"
        )

    source = TaskSource(("toy_short",), task_dir)
    declare("question", 0)
    assert source.fingerprint() is None
    assert ask(source=source).gold_QC.tolist() == [[True, False]]
    ask(source=source)
    assert len(files(tmp_path)) == 1
    declare("question", 1)
    assert ask(source=source).gold_QC.tolist() == [[False, True]]
    declare("'w2 {{question}}'", 1)
    ask(source=source)
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["torn", "empty", "flipped", "foreign"])
def test_a_damaged_file_is_built_again_with_a_warning(
    ask: Ask, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    built = ask()
    [file] = files(tmp_path)
    whole = file.read_bytes()
    if damage == "foreign":
        save(file, built, {"another": "key"})
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        file.write_bytes({"torn": whole[:middle], "empty": b"", "flipped": flipped}[damage])
    assert ask().digest == built.digest
    assert f"question cache {file} is damaged" in caplog.text
    caplog.clear()
    assert ask().digest == built.digest
    assert "damaged" not in caplog.text


def test_a_changed_array_does_not_pass_for_what_was_written(ask: Ask, tmp_path: Path) -> None:
    built = ask()
    path = tmp_path / "set.npz"
    save(path, replace(built, gold_QC=~built.gold_QC), {})
    assert load(path, {}).digest != built.digest
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **(arrays | {"gold_QC": built.gold_QC}))
    with pytest.raises(ValueError, match="do not match their checksum"):
        load(path, {})


def test_a_folder_that_cannot_be_made_costs_a_warning(
    ask: Ask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert len(ask(cache_dir=tmp_path / "file" / "cache")) == 21
    assert "questions are not kept in" in caplog.text


def test_nothing_half_written_is_left(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(question_cache.np, "savez", full)
    ask()
    assert files(tmp_path) == []


def test_a_tokenizer_is_known_by_its_rules_not_by_its_last_use() -> None:
    first, used = make_tokenizer(), make_tokenizer()
    used(["w1", "w2 w3"], truncation=True, max_length=2)
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(used)
    used.add_tokens(["w99"])
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(used)


def test_mmlu_from_a_folder_is_known_by_its_files(mmlu_dir: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TaskSource(("mmlu_anatomy",), mmlu_dir=mmlu_dir)
    built = ask(source=source)
    assert len(built) == 7
    monkeypatch.setattr(question_cache, "load_tasks", no_rendering)
    assert ask(source=source).digest == built.digest


def test_a_second_group_in_the_folder_does_not_disturb_the_first(ask: Ask, task_dir: Path) -> None:
    built = ask()
    write_tasks(task_dir / "more", {"extra": letter_docs(3)}, group="more")
    assert ask().digest == built.digest
