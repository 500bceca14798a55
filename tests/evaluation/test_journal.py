from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import journal as module
from evaluation.errors import EvaluationError
from evaluation.journal import Journal, parse_questions, quantised, spell_questions
from genetic_algorithm import Answers, LayerSet

HEADER = {"pair": "tiny", "dtype": "float32", "versions": {"torch": "2.13.0"}}
QUESTIONS = 40
A, B = LayerSet((2,)), LayerSet((2, 9))


def _answers(n: int, seed: int = 0, *, signals: bool = True) -> Answers:
    rng = np.random.default_rng(seed)
    margin = rng.normal(size=n).astype(np.float32)
    return Answers(margin > 0, margin if signals else None, np.abs(margin) if signals else None)


def _filled(path: Path, lines: int = 4) -> Journal:
    journal = Journal(path, HEADER, QUESTIONS)
    for i in range(lines):
        journal.append(LayerSet((i,)), np.arange(5 * i, 5 * i + 5), _answers(5, i), 0.5)
    return journal


def _known(journal: Journal) -> dict[str, list[int]]:
    every = np.arange(QUESTIONS)
    return {str(s): np.flatnonzero(journal.covering(s, every)[0]).tolist() for s in journal.layer_sets}


def test_what_is_appended_is_read_back_by_the_same_and_by_the_next_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path, HEADER, QUESTIONS)
    asked = np.array([1, 2, 3, 10, 39])
    answers = _answers(5)
    first.append(A, asked, answers, 1.25)
    for journal in (first, Journal(path, HEADER, QUESTIONS)):
        known, given, seconds = journal.covering(A, asked)
        assert known.all()
        assert np.array_equal(given.correct, answers.correct)
        assert np.array_equal(given.margin, answers.margin.astype(np.float16).astype(np.float32))
        assert np.array_equal(given.divergence, answers.divergence.astype(np.float16).astype(np.float32))
        assert given.margin.dtype == np.float32
        assert seconds == 1.25
        assert not journal.covering(B, asked)[0].any()


def test_slices_come_together_and_signals_count_only_where_all_are_known(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", HEADER, QUESTIONS)
    journal.append(A, np.arange(0, 10), _answers(10, 1), 1.0)
    journal.append(A, np.arange(10, 20), _answers(10, 2, signals=False), 1.0)
    known, answers, seconds = journal.covering(A, np.array([12, 3, 25]))
    assert known.tolist() == [True, True, False]
    assert answers.margin is None
    assert answers.correct[1] == _answers(10, 1).correct[3]
    assert seconds == pytest.approx(0.2)  # two tenths of two slices of a second
    assert journal.covering(A, np.arange(10))[1].margin is not None


def test_the_line_written_first_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", HEADER, QUESTIONS)
    journal.append(A, np.arange(4), Answers(np.ones(4, bool)), 1.0)
    journal.append(A, np.arange(4), Answers(np.zeros(4, bool)), 1.0)
    for reader in (journal, Journal(tmp_path / "j", HEADER, QUESTIONS)):
        assert reader.covering(A, np.arange(4))[1].correct.all()


def test_a_failure_is_kept_but_is_no_answer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", HEADER, QUESTIONS)
    journal.append_failure(A, np.arange(4), "out of\nmemory", 0.5)
    again = Journal(tmp_path / "j", HEADER, QUESTIONS)
    assert not again.covering(A, np.arange(4))[0].any()
    line = json.loads((tmp_path / "j").read_text().splitlines()[1])
    assert (line["status"], line["failure"], line["bits"]) == ("failed", "out of memory", None)


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_cut_off_anywhere_the_whole_lines_survive_and_writing_goes_on(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j"
        _filled(path)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        lines = whole[:cut].count(b"\n") - 1  # less the header
        journal = Journal(path, HEADER, QUESTIONS)
        expected = {str(i): list(range(5 * i, 5 * i + 5)) for i in range(max(0, lines))}
        assert _known(journal) == expected
        journal.append(B, np.array([7]), _answers(1), 0.1)
        assert _known(Journal(path, HEADER, QUESTIONS)) == expected | {"2+9": [7]}


@given(st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_damaged_byte_never_makes_wrong_answers(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j"
        _filled(path)
        before = Journal(path, HEADER, QUESTIONS)
        raw = bytearray(path.read_bytes())
        start = raw.index(b"\n") + 1
        at = data.draw(st.integers(start, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(raw))
        after = Journal(path, HEADER, QUESTIONS)
        for layers in after.layer_sets:
            for mine, theirs in zip(after._records[layers], before._records[layers], strict=True):
                assert np.array_equal(mine.questions, theirs.questions)
                assert np.array_equal(mine.correct, theirs.correct)
                assert np.array_equal(mine.margin, theirs.margin)
        assert len(after.layer_sets) >= len(before.layer_sets) - 2  # a lost newline joins two lines


def test_a_torn_last_line_is_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "j"
    _filled(path)
    path.write_bytes(path.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        journal = Journal(path, HEADER, QUESTIONS)
    [message] = caplog.messages
    assert message.startswith(f"{path}: the last line was cut off (")
    assert message.endswith(" and is dropped; its answers are asked again")
    assert len(journal.layer_sets) == 3
    assert path.read_bytes().endswith(b"\n")


def test_what_another_writer_could_not_finish_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "j"
    journal = _filled(path)
    with path.open("ab") as file:  # it was killed within its write
        file.write(path.read_bytes().splitlines()[1][:50])
    with caplog.at_level(logging.WARNING):
        journal.append(B, np.array([7]), _answers(1), 0.1)
        assert len(caplog.messages) == 1
        assert "cut off (50 bytes)" in caplog.messages[0]
        again = Journal(path, HEADER, QUESTIONS)
    assert len(caplog.messages) == 1
    assert _known(again) == _known(journal)
    assert len(again.layer_sets) == 5


def test_a_damaged_middle_line_is_skipped_with_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "j"
    _filled(path)
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"ok"', '"OK"')
    path.write_text("\n".join([*lines, '{"set": "1"', "[]", ""]))
    with caplog.at_level(logging.WARNING):
        journal = Journal(path, HEADER, QUESTIONS)
    assert ["line 3 is damaged" in m for m in caplog.messages] == [True, False, False]
    assert "line 6" in caplog.messages[1]
    assert sorted(map(str, journal.layer_sets)) == ["0", "2", "3"]


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (HEADER | {"dtype": "bfloat16"}, 'dtype was "float32" and is now "bfloat16"'),
        (HEADER | {"versions": {"torch": "2.14.0"}}, 'versions.torch was "2.13.0" and is now "2.14.0"'),
        (HEADER | {"shots": 5}, "shots was null and is now 5"),
    ],
)
def test_a_journal_of_another_configuration_stops_and_names_the_field(tmp_path: Path, header: dict, told: str) -> None:
    path = tmp_path / "j"
    _filled(path)
    before = path.read_bytes()
    with pytest.raises(EvaluationError) as error:
        Journal(path, header, QUESTIONS)
    assert told in str(error.value)
    assert "or choose another output folder" in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["hello\n", '{"set":"1"}\n', "[1]\n", '{"journal":9,"header":{}}\n'])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "j"
    path.write_text(text)
    with pytest.raises(EvaluationError, match="choose another"):
        Journal(path, HEADER, QUESTIONS)
    assert path.read_text() == text


_WRITER = """
import sys, numpy as np
from pathlib import Path
from evaluation.journal import Journal
from genetic_algorithm import Answers, LayerSet
path, me = Path(sys.argv[1]), int(sys.argv[2])
journal = Journal(path, {"pair": "tiny"}, 3000)
for i in range(60):
    journal.append(LayerSet((me, 10 + i)), np.arange(3000), Answers(np.arange(3000) % 7 == me), 0.0)
assert all(journal.covering(LayerSet((me, 10 + i)), np.arange(3000))[0].all() for i in range(60))
"""


def test_several_writers_share_one_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = Path(__file__).resolve().parents[2]
    path = tmp_path / "j"
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), str(me)], cwd=root) for me in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    with caplog.at_level(logging.WARNING):
        journal = Journal(path, {"pair": "tiny"}, 3000)
    assert len(journal.layer_sets) == 180
    assert not caplog.records
    assert journal.covering(LayerSet((2, 10)), np.arange(3000))[1].correct.sum() == len(range(2, 3000, 7))


def test_other_writers_lines_are_seen_after_a_refresh(tmp_path: Path) -> None:
    mine, theirs = (Journal(tmp_path / "j", HEADER, QUESTIONS) for _ in range(2))
    theirs.append(A, np.arange(3), _answers(3), 0.1)
    assert not mine.covering(A, np.arange(3))[0].any()
    mine.refresh()
    assert mine.covering(A, np.arange(3))[0].all()


def test_without_locks_a_fragment_harms_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    path = tmp_path / "j"
    _filled(path)
    path.write_bytes(path.read_bytes()[:-7])
    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    journal = Journal(path, HEADER, QUESTIONS)  # may be another writer's unfinished line: not cut off
    journal.append(B, np.array([7]), _answers(1), 0.1)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = Journal(path, HEADER, QUESTIONS)
    assert sorted(map(str, again.layer_sets)) == ["0", "1", "2", "2+9"]
    assert ["line 5 is damaged" in m for m in caplog.messages] == [True]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    with pytest.raises(OSError, match="/dev/full") as error:
        Journal(Path("/dev/full"), HEADER, QUESTIONS)
    assert error.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_mid_line_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    journal = _filled(path)
    before, real_write, calls = path.read_bytes(), os.write, []

    def short_write(fd: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "no space left on device")
        return real_write(fd, data[:10])

    monkeypatch.setattr(module.os, "write", short_write)
    with pytest.raises(OSError, match="No space left"):
        journal.append(A, np.arange(3), _answers(3), 0.1)
    monkeypatch.undo()
    assert path.read_bytes() == before
    journal.append(B, np.arange(3), _answers(3), 0.1)
    assert len(Journal(path, HEADER, QUESTIONS).layer_sets) == 5


def test_a_journal_that_shrinks_while_in_use_is_noticed(tmp_path: Path) -> None:
    journal = _filled(tmp_path / "j")
    (tmp_path / "j").write_text("")
    with pytest.raises(EvaluationError, match="became shorter"):
        journal.refresh()


@given(st.sets(st.integers(0, 99), min_size=1))
@settings(deadline=None, derandomize=True)
def test_questions_are_spelled_as_runs(questions: set[int]) -> None:
    array = np.array(sorted(questions))
    assert parse_questions(spell_questions(array)).tolist() == array.tolist()


def test_spelling_of_runs() -> None:
    assert spell_questions(np.array([0, 1, 2, 7, 9, 10])) == "0-2,7,9-10"
    for wrong in ("", "3-1", "1,1", "2,1", "x", "-3"):
        with pytest.raises(ValueError, match=r".*"):
            parse_questions(wrong)


def test_half_precision_keeps_finite_values_finite() -> None:
    values = np.array([1e9, -1e9, np.inf, -np.inf, np.nan, 0.1], np.float32)
    halves = quantised(values)
    assert halves.dtype == np.float16
    assert np.isfinite(halves[[0, 1, 5]]).all()
    assert np.isinf(halves[[2, 3]]).all()
    assert np.isnan(halves[4])
    assert quantised(None) is None


def test_what_was_acknowledged_is_there_once_however_writers_are_killed(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/journal.py", "--seconds", "3", "--questions", "3000", "--folder", tmp_path]
    done = subprocess.run(
        [*map(str, command), "--kills-per-second", "20"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["told"] > 50
    assert found["kills"] > 20
    assert found["lines"] >= found["told"]
