"""Copies of MMLU of one subject: each is read as it is, and one that is damaged is told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from pyarrow import parquet

from evaluation.errors import EvaluationError
from evaluation.mmlu_folder import check_mmlu_dir
from evaluation.questions import QuestionSet, build_questions
from evaluation.tasks import TaskSource, load_tasks
from tests.evaluation.conftest import make_tokenizer
from tests.fuzzing import Damage, Refused, always, damaged, fuzz, put, read

CARD = """---
configs:
- config_name: anatomy
  data_files:
  - split: test
    path: anatomy/test-*
  - split: dev
    path: anatomy/dev-*
---
# MMLU
"""


def write_mmlu(folder: Path, *, first_answer: int = 0) -> Path:
    """A copy as the hub lays it out, of one subject with five questions."""
    (folder / "anatomy").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    docs: list[dict[str, Any]] = [
        {"question": f"w{i} what ?", "subject": "anatomy", "choices": list("wxyz"), "answer": (i + first_answer) % 4}
        for i in range(5)
    ]
    for split in ("test", "dev"):
        parquet.write_table(pa.Table.from_pylist(docs), folder / "anatomy" / f"{split}-00000-of-00001.parquet")
    return folder


def questions_of(folder: Path) -> QuestionSet:
    loaded = load_tasks(TaskSource(("mmlu_anatomy",), mmlu_dir=folder))
    return build_questions(loaded, make_tokenizer(), max_length=128, order="dataset")


@pytest.mark.usefixtures("datasets_cache")
def test_two_copies_of_one_name_and_card_keep_their_own_questions(tmp_path: Path) -> None:
    first = questions_of(write_mmlu(tmp_path / "one" / "mmlu"))
    second = questions_of(write_mmlu(tmp_path / "two" / "mmlu", first_answer=1))
    assert [gold.argmax() for gold in first.gold_QC] == [0, 1, 2, 3, 0]
    assert [gold.argmax() for gold in second.gold_QC] == [1, 2, 3, 0, 1]


@pytest.mark.usefixtures("datasets_cache")
def test_fuzzed_questions_of_mmlu(tmp_path: Path) -> None:
    """What was read of the folder while it was whole does not stand in for what cannot be read now."""
    folder = write_mmlu(tmp_path / "mmlu")
    path = folder / "anatomy" / "test-00000-of-00001.parquet"
    whole, expected = path.read_bytes(), questions_of(folder)
    parquet.write_table(pa.Table.from_pylist([{"question": 1, "choices": ["x"], "answer": "x"}]), path)
    others = path.read_bytes()

    @fuzz(2)
    @always(None, whole[: len(whole) // 2], others)
    @given(content=damaged(whole))
    def holds(content: Damage) -> None:
        put(path, content)
        found = read(lambda: questions_of(folder), folder / "README.md", EvaluationError)
        assert isinstance(found, Refused) or len(found) == len(expected)

    holds()


@fuzz(20)
@given(content=damaged(CARD.encode()))
def test_fuzzed_card_of_mmlu(tmp_path: Path, content: Damage) -> None:
    folder = tmp_path / "mmlu"
    if not folder.exists():
        write_mmlu(folder)
    put(folder / "README.md", content)
    found = read(lambda: check_mmlu_dir(folder), folder / "README.md", EvaluationError)
    assert found is None or isinstance(found, Refused)
