"""The journal, the cache of questions and what hosts announce, damaged in every way."""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evaluation import question_cache, tasks
from evaluation.cluster import joining
from evaluation.errors import EvaluationError
from evaluation.journal import Journal
from evaluation.question_cache import cached_questions
from evaluation.questions import QuestionSet
from evaluation.tasks import TaskSource
from genetic_algorithm import Answers, LayerSet
from tests.evaluation.conftest import letter_docs, make_tokenizer, write_tasks
from tests.evaluation.test_own_tasks import QUESTIONS as QUESTIONS_OF_OWN
from tests.evaluation.test_own_tasks import REST
from tests.evaluation.test_own_tasks import asked as asked_of
from tests.fuzzing import (
    NESTED,
    Damage,
    Refused,
    altered_json,
    altered_yaml,
    always,
    damaged,
    damaged_json,
    fuzz,
    put,
    read,
    spelled,
)

HEADER = {"pair": "tiny", "dtype": "float32", "versions": {"torch": "2.13.0"}}
QUESTIONS = 40
ODD_YAML = ("2026-13-45", '!!int ""', "!!float x", "!!bool x", "!!timestamp x")
NAMELESS = ("task own ", "unknown task ", "question ", "choice ")
"""What is said of a task or its question names the task, not the file."""
SETS = [LayerSet(()), LayerSet((2,)), LayerSet((2, 9)), LayerSet((0, 1, 2, 9))]


def truth(layers: LayerSet) -> Answers:
    """What a set answers to all questions, as it comes back from the journal."""
    margin = np.random.default_rng([*layers.indices, 7]).normal(size=QUESTIONS).astype(np.float16).astype(np.float32)
    return Answers(margin > 0, margin, np.abs(margin))


@pytest.fixture(scope="module")
def whole_journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Answers of four sets, and a failure."""
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path, HEADER, QUESTIONS)
    for i, layers in enumerate(SETS):
        asked = np.arange(i, QUESTIONS, i + 1)
        journal.append(layers, asked, Answers(*(part[asked] for part in truth(layers))), 0.5)
    journal.append_failure(LayerSet((5,)), np.arange(4), "out of memory", 0.1)
    return path.read_bytes()


def journal_is_right(path: Path, content: Damage, *, is_sealed: bool = False) -> None:
    """What is read is what was written, and writing goes on; or the file is refused and left as it is."""
    put(path, content)
    journal = read(lambda: Journal(path, HEADER, QUESTIONS), path, EvaluationError)
    if isinstance(journal, Refused):
        assert content is None or path.read_bytes() == content
        return
    every = np.arange(QUESTIONS)
    for layers in journal.layer_sets:
        known, answers, seconds = journal.covering(layers, every)
        assert np.isfinite(seconds)
        if not is_sealed:
            assert layers in SETS
            for found, true in zip(answers, truth(layers), strict=True):
                assert found is None or np.array_equal(found[known], true[known])
    added = LayerSet((3, 4, 5, 6))
    journal.append(added, np.array([7, 8]), Answers(np.array([True, False])), 0.1)
    again = Journal(path, HEADER, QUESTIONS)
    assert set(again.layer_sets) == {*journal.layer_sets, added}
    assert again.covering(added, np.array([7, 8]))[1].correct.tolist() == [True, False]


def test_fuzzed_journal(tmp_path: Path, whole_journal: bytes) -> None:
    @fuzz(50)
    @given(content=damaged(whole_journal))
    def holds(content: Damage) -> None:
        journal_is_right(tmp_path / "journal.jsonl", content)

    holds()


def test_fuzzed_journal_header(tmp_path: Path, whole_journal: bytes) -> None:
    _, _, lines = whole_journal.partition(b"\n")

    @fuzz(26)
    @always(NESTED, b'{"journal": "two\\nlines", "header": {}}', b'{"journal": 1, "header": {"two\\nlines": 1}}')
    @given(content=altered_json({"journal": 1, "header": HEADER}).map(spelled))
    def holds(content: Any) -> None:
        journal_is_right(tmp_path / "journal.jsonl", content + b"\n" + lines)

    holds()


def sealed(fields: Any) -> bytes:
    """A line with a checksum that is right, as another program could write it."""
    if isinstance(fields, dict):
        fields.pop("crc", None)
        line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        fields["crc"] = f"{zlib.crc32(line):08x}"
    return spelled(fields)


def test_fuzzed_journal_lines_that_match_their_checksums(
    tmp_path: Path, whole_journal: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    header, *lines = whole_journal.splitlines()
    documents = [json.loads(line) for line in lines]

    @fuzz(50)
    @example(changed=[documents[0] | {"seconds": odd} for odd in (float("inf"), -1, 10**400)])
    @example(changed=[documents[0] | {"questions": "0-99999999999999"}, documents[-1] | {"failure": 7}])
    @given(changed=st.lists(st.one_of([altered_json(document) for document in documents]), min_size=1, max_size=4))
    def holds(changed: list[Any]) -> None:
        content = b"\n".join([header, *map(sealed, changed), *lines, b""])
        caplog.clear()
        journal_is_right(tmp_path / "journal.jsonl", content, is_sealed=True)
        assert all("\n" not in message for message in caplog.messages)

    with caplog.at_level(logging.WARNING):
        holds()


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What questions are asked for."""
    folder = tmp_path_factory.mktemp("cached")
    tasks = write_tasks(folder / "tasks", {"toy": letter_docs(9)}, group="toys")
    return {
        "source": TaskSource(("toy",), tasks),
        "tokenizer": make_tokenizer(),
        "max_length": 256,
        "order": "shuffled",
        "limit": None,
        "cache_dir": folder / "cache",
    }


@pytest.fixture(scope="module")
def whole_questions(asked: dict[str, Any]) -> QuestionSet:
    return cached_questions(**asked)


def test_fuzzed_question_cache(
    asked: dict[str, Any], whole_questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged file is built again, and one that is taken holds what was written."""
    (path,) = asked["cache_dir"].iterdir()
    whole, rebuilt = path.read_bytes(), []

    def build(*_: Any, **__: Any) -> QuestionSet:
        rebuilt.append(1)
        return whole_questions

    monkeypatch.setattr(question_cache, "build_questions", build)
    monkeypatch.setattr(question_cache, "load_tasks", lambda source: None)

    @fuzz(50)
    @given(content=damaged(whole))
    def holds(content: Damage) -> None:
        put(path, content)
        rebuilt.clear()
        found = cached_questions(**asked)
        assert found.digest == whole_questions.digest
        if rebuilt and content is not None:
            assert path.read_bytes() != content
            rebuilt.clear()
            cached_questions(**asked)
            assert not rebuilt

    try:
        holds()
    finally:
        put(path, whole)


def test_fuzzed_question_cache_of_another_program(
    tmp_path: Path, asked: dict[str, Any], whole_questions: QuestionSet
) -> None:
    """Parts that are of the wrong type or shape, in an archive that is whole."""
    (path,) = asked["cache_dir"].iterdir()
    with np.load(path) as file:
        arrays = dict(file)
    head, key = json.loads(arrays["head"].tobytes()), json.loads(arrays["head"].tobytes())["key"]
    odd = st.sampled_from([np.zeros(0), np.zeros((2, 2), np.int8), np.array("x"), np.full(3, np.nan), np.array(2**62)])

    @fuzz(20)
    @example(changed=head | {"groups": None}, name="head", value=None)
    @given(changed=altered_json(head), name=st.sampled_from(sorted(arrays)), value=st.none() | odd)
    def holds(changed: Any, name: str, value: Any) -> None:
        made = arrays | {"head": np.frombuffer(spelled(changed), np.uint8)}
        if value is not None:
            made[name] = value
        np.savez(tmp_path / "set.npz", **made)
        try:
            found = question_cache.load(tmp_path / "set.npz", key)
        except question_cache._DAMAGE:
            return
        assert found.digest == whole_questions.digest

    holds()


OWN = f"""\
task: own
custom_dataset: !function evaluation.own_questions.from_file
dataset_kwargs: {{file: own.jsonl}}
{REST}"""


@pytest.fixture
def own(tmp_path: Path, datasets_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task of a user's own; lm-eval's own tasks, which it loads for seconds, are left out."""
    monkeypatch.setattr(tasks, "_full_manager", tasks._manager)
    monkeypatch.setattr(question_cache, "save", lambda *_: None)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.yaml").write_text(OWN)
    (folder / "own.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS_OF_OWN))
    return folder


def own_is_asked_or_refused(folder: Path, path: Path, content: Damage) -> None:
    put(path, content)
    found = read(lambda: asked_of(folder, "own"), path, EvaluationError, nameless=NAMELESS)
    assert isinstance(found, Refused | QuestionSet)


@pytest.mark.filterwarnings("ignore")
def test_fuzzed_task_file(own: Path) -> None:
    path = own / "own.yaml"

    @fuzz(30)
    @always(None, NESTED, b"[" * 100_000, OWN.replace("task: own", "task: 7").encode())
    @always(*(OWN.replace("task: own", f"task: own\ndescription: {odd}").encode() for odd in ODD_YAML))
    @given(content=st.one_of(damaged(OWN.encode()), altered_yaml(OWN)))
    def holds(content: Damage) -> None:
        own_is_asked_or_refused(own, path, content)

    holds()


def test_fuzzed_questions_of_a_task(own: Path) -> None:
    path = own / "own.jsonl"
    lines = st.lists(altered_json(QUESTIONS_OF_OWN[0]).map(spelled), min_size=1, max_size=3).map(b"\n".join)

    @fuzz(30)
    @always(None, NESTED)
    @given(content=st.one_of(damaged(path.read_bytes()), lines))
    def holds(content: Damage) -> None:
        own_is_asked_or_refused(own, path, content)

    holds()


ANNOUNCED = {"address": "10.0.0.1:6379", "token": "5f", "ray": "2.60.0", "host": "a", "gpus": True, "loopback": False}


@fuzz(26)
@always(NESTED, json.dumps({**ANNOUNCED, "address": None}).encode())
@given(content=damaged_json(ANNOUNCED))
def test_fuzzed_announcement_of_a_cluster(tmp_path: Path, content: Damage) -> None:
    """What cannot be one is as if nothing had been said yet."""
    put(tmp_path / "cluster.json", content)
    found = joining._read(tmp_path / "cluster.json", {})
    assert not found or {name: type(found[name]) for name in ANNOUNCED} == {n: type(v) for n, v in ANNOUNCED.items()}
