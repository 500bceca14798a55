from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation.errors import EvaluationError
from evaluation.tasks import TaskSource, load_tasks


def test_a_group_of_a_task_folder_spreads_into_its_subjects(task_dir: Path) -> None:
    loaded = load_tasks(TaskSource(("toy",), task_dir))
    assert list(loaded.tasks) == ["toy_short", "toy_long", "toy_phrases"]
    assert loaded.groups == {"toy": ("toy_short", "toy_long", "toy_phrases")}
    assert len(loaded.tasks["toy_short"].eval_docs) == 23


def test_loading_says_nothing(
    task_dir: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    load_tasks(TaskSource(("toy",), task_dir))
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


def test_single_tasks_load_without_their_group(task_dir: Path) -> None:
    loaded = load_tasks(TaskSource(("toy_long",), task_dir))
    assert list(loaded.tasks) == ["toy_long"]
    assert loaded.groups == {}


def test_a_task_named_beside_its_group_is_there_once(task_dir: Path) -> None:
    loaded = load_tasks(TaskSource(("toy", "toy_long"), task_dir))
    assert list(loaded.tasks) == ["toy_short", "toy_long", "toy_phrases"]
    assert loaded.names == {"toy": tuple(loaded.tasks), "toy_long": ("toy_long",)}


def test_groups_may_share_a_subject_that_they_ask_differently(task_dir: Path) -> None:
    """lm-eval would keep the last of that name, and both groups would be scored on it."""
    members = [{"task": "toy_long", "doc_to_choice": ["D", "C", "B", "A"]}, "toy_short"]
    (task_dir / "_other.yaml").write_text(f"group: other\ntask: {json.dumps(members)}\n")
    loaded = load_tasks(TaskSource(("toy", "other"), task_dir))
    assert loaded.groups == {
        "toy": ("toy_short", "toy_long", "toy_phrases"),
        "other": ("other::toy_long", "toy_short"),
    }
    choices = [task.config.doc_to_choice[0] for name, task in loaded.tasks.items() if name.endswith("toy_long")]
    assert choices == ["A", "D"]
    assert [task.task_name for task in loaded.tasks.values()] == list(loaded.tasks)


def test_a_tag_stands_for_its_tasks(tmp_path: Path, tasks_writer) -> None:  # type: ignore[no-untyped-def]
    docs = [{"question": "w1 Answer", "answer": 0}] * 3
    options = {name: {"tag": "tagged"} for name in ("a", "c")}
    folder = tasks_writer(tmp_path / "t", dict.fromkeys("abc", docs), options=options)
    loaded = load_tasks(TaskSource(("tagged", "b"), folder))
    assert loaded.names == {"tagged": ("a", "c"), "b": ("b",)}
    assert loaded.groups == {}


def test_an_unknown_task_is_answered_with_the_nearest_ones(task_dir: Path) -> None:
    """Takes seconds: all of lm-eval's own tasks are looked through before a name is called unknown."""
    with pytest.raises(EvaluationError, match=r"unknown task or subject 'toy_shirt'; did you mean .*toy_short"):
        load_tasks(TaskSource(("toy_shirt",), task_dir))
    with pytest.raises(EvaluationError, match=r"'mmlu_anatomie'; did you mean mmlu_anatomy"):
        load_tasks(TaskSource(("mmlu_anatomie",), task_dir))
    # Known to lm-eval, but refused before any data is fetched.
    with pytest.raises(EvaluationError, match="gsm8k is of type generate_until, not multiple_choice"):
        load_tasks(TaskSource(("gsm8k",), task_dir))
    with pytest.raises(EvaluationError, match="truthfulqa_mc2 scores answers with a function of its own"):
        load_tasks(TaskSource(("truthfulqa_mc2",), task_dir))


def test_questions_that_cannot_be_read_name_the_folder(task_dir: Path) -> None:
    (task_dir / "toy_long.jsonl").unlink()
    with pytest.raises(
        EvaluationError, match=rf"toy cannot be loaded: .*toy_long.jsonl.*; check the files in {task_dir}"
    ):
        load_tasks(TaskSource(("toy",), task_dir))


def test_more_examples_than_there_are_is_refused(task_dir: Path) -> None:
    with pytest.raises(EvaluationError, match="toy_long has 17 solved examples, not 18"):
        load_tasks(TaskSource(("toy_long",), task_dir, num_fewshot=18))


def test_a_task_that_says_zero_shot_stays_so(tmp_path: Path, tasks_writer, caplog) -> None:  # type: ignore[no-untyped-def]
    docs = [{"question": "w1 Answer", "answer": 0}] * 3
    folder = tasks_writer(tmp_path / "t", {"zero": docs, "free": docs}, options={"zero": {"num_fewshot": 0}})
    loaded = load_tasks(TaskSource(("zero", "free"), folder, num_fewshot=2))
    assert loaded.tasks["zero"].config.num_fewshot == 0
    assert loaded.tasks["free"].config.num_fewshot == 2
    assert "zero is zero-shot by its own configuration" in caplog.text


def test_loading_leaves_chance_as_it_was(task_dir: Path) -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - the generator that tasks of lm-eval draw from
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    load_tasks(TaskSource(("toy",), task_dir))
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002


def test_the_fingerprint_of_a_task_folder_needs_no_lm_eval(task_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from evaluation.tasks import TaskSource\n"
        f"assert TaskSource(('toy',), Path({str(task_dir)!r})).fingerprint()\n"
        "assert 'lm_eval' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_fingerprint_follows_every_file_of_the_folder(task_dir: Path) -> None:
    source = TaskSource(("toy",), task_dir)
    seen = [source.fingerprint()]
    for name in ("toy_long.jsonl", "toy_short.yaml", "reader.py", "_group.yaml"):
        file = task_dir / name
        file.write_text(file.read_text() + "\n")
        assert source.fingerprint() not in seen
        seen.append(source.fingerprint())
    shutil.copytree(task_dir, task_dir.with_name("copy"))
    assert TaskSource(("toy",), task_dir.with_name("copy")).fingerprint() == seen[-1]


def test_a_folder_that_reads_data_elsewhere_has_no_fingerprint_of_its_own(task_dir: Path) -> None:
    (task_dir / "toy_short.yaml").write_text("task: toy_short\ndataset_path: json\n")
    assert TaskSource(("toy",), task_dir).fingerprint() is None


def test_a_broken_task_file_is_named(task_dir: Path) -> None:
    (task_dir / "toy_short.yaml").write_text("task: [")
    with pytest.raises(EvaluationError, match=r"toy_short.yaml, line \d+, is not YAML \(.*\); mend it"):
        TaskSource(("toy",), task_dir).fingerprint()


def test_mmlu_loads_from_a_folder(mmlu_dir: Path) -> None:
    loaded = load_tasks(TaskSource(("mmlu_anatomy", "mmlu_virology"), mmlu_dir=mmlu_dir))
    assert list(loaded.tasks) == ["mmlu_anatomy", "mmlu_virology"]
    assert len(loaded.tasks["mmlu_anatomy"].eval_docs) == 135
    assert loaded.groups == {}


def test_mmlu_groups_and_tags_load_from_a_folder(mmlu_dir: Path) -> None:
    loaded = load_tasks(TaskSource(("mmlu_other",), mmlu_dir=mmlu_dir))
    assert len(loaded.tasks) == 13
    assert list(loaded.groups) == ["mmlu_other"]


def test_mmlu_from_a_folder_stands_beside_other_tasks(mmlu_dir: Path, task_dir: Path) -> None:
    source = TaskSource(("mmlu_other", "toy", "mmlu_virology"), task_dir, mmlu_dir)
    loaded = load_tasks(source)
    assert list(loaded.groups) == ["mmlu_other", "toy"]
    assert list(loaded.tasks)[13:] == ["toy_short", "toy_long", "toy_phrases"]
    assert loaded.names["mmlu_virology"] == ("mmlu_virology",)
    assert set(loaded.names["mmlu_virology"]) < set(loaded.names["mmlu_other"])
    told = source.fingerprint()
    assert told is not None
    (task_dir / "toy_long.jsonl").write_text("")
    assert source.fingerprint() != told
    assert TaskSource(("mmlu_other", "elsewhere"), task_dir, mmlu_dir).fingerprint() is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mmlu_anatomi", "unknown task or subject 'mmlu_anatomi' of MMLU.*did you mean mmlu_anatomy"),
        ("hellaswag", "unknown task or subject 'hellaswag' of MMLU, all that --mmlu-dir serves"),
        ("mmlu_generative", "is of type generate_until, not multiple_choice"),
    ],
)
def test_names_that_mmlu_does_not_have(mmlu_dir: Path, name: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_tasks(TaskSource((name,), mmlu_dir=mmlu_dir))


def test_folders_that_are_not_mmlu(tmp_path: Path) -> None:
    source = TaskSource(("mmlu",), mmlu_dir=tmp_path / "none")
    with pytest.raises(EvaluationError, match="none is not a folder; give a local copy"):
        load_tasks(source)
    source = TaskSource(("mmlu",), mmlu_dir=tmp_path)
    with pytest.raises(EvaluationError, match=r"it has no README.md that lists its subjects"):
        load_tasks(source)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: anatomy\n---\n")
    with pytest.raises(EvaluationError, match=r"holds no test questions"):
        source.fingerprint()
    (tmp_path / "virology").mkdir()
    (tmp_path / "virology" / "test-0.parquet").write_bytes(b"")
    with pytest.raises(EvaluationError, match="has no test questions of 'anatomy'"):
        load_tasks(TaskSource(("mmlu_anatomy",), mmlu_dir=tmp_path))
