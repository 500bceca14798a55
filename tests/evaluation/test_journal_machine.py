"""Journals in any use: several open at once, reopened, torn and damaged, beside a dictionary that cannot fail."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evaluation.journal import Journal
from genetic_algorithm import Answers, LayerSet

HEADER, QUESTIONS, JOURNALS = {"pair": "tiny"}, 12, 3
sets = st.sampled_from([LayerSet(()), LayerSet((2,)), LayerSet((2, 9)), LayerSet((0, 1, 2))])
slices = st.sets(st.integers(0, QUESTIONS - 1), min_size=1).map(lambda found: np.array(sorted(found)))
which = st.integers(0, JOURNALS - 1)
bits = st.lists(st.booleans(), min_size=QUESTIONS, max_size=QUESTIONS).map(np.array)


class Journals(RuleBasedStateMachine):
    """Several journals of one file; of each answer the one written first counts."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "journal.jsonl"
        self.written: dict[tuple[LayerSet, int], tuple[bool, float]] = {}
        self.failed: dict[LayerSet, set[int]] = {}
        self.journals = [Journal(self.path, HEADER, QUESTIONS) for _ in range(JOURNALS)]

    @rule(i=which, layers=sets, asked=slices, right=bits)
    def append(self, i: int, layers: LayerSet, asked: np.ndarray, right: np.ndarray) -> None:
        margin = (np.arange(QUESTIONS) * np.where(right, 1.0, -1.0)).astype(np.float32)
        self.journals[i].append(layers, asked, Answers(right[asked], margin[asked]), 0.25)
        for question in asked.tolist():
            self.written.setdefault((layers, question), (bool(right[question]), float(margin[question])))

    @rule(i=which, layers=sets, asked=slices)
    def append_failure(self, i: int, layers: LayerSet, asked: np.ndarray) -> None:
        self.journals[i].append_failure(layers, asked, "out of memory", 0.1)
        self.failed.setdefault(layers, set()).update(asked.tolist())

    @rule(i=which)
    def open_again(self, i: int) -> None:
        self.journals[i] = Journal(self.path, HEADER, QUESTIONS)

    @rule(size=st.integers(1, 60))
    def a_writer_is_killed_within_its_write(self, size: int) -> None:
        line = self.path.read_bytes().splitlines()[-1]
        if self.path.read_bytes().endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(line[: min(size, len(line) - 1)])

    @rule(text=st.sampled_from([b"{}", b"[]", b"\xff\x00", b'{"set":"2"}', b""]))
    def a_line_of_something_else_gets_in(self, text: bytes) -> None:
        if self.path.read_bytes().endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(text + b"\n")

    @invariant()
    def each_knows_all_that_was_written(self) -> None:
        every = np.arange(QUESTIONS)
        for journal in self.journals:
            journal.refresh()
            for layers in {layers for layers, _ in self.written}:
                known, answers, _ = journal.covering(layers, every)
                expected = {q: told for (s, q), told in self.written.items() if s == layers}
                assert np.flatnonzero(known).tolist() == sorted(expected)
                assert answers.correct[known].tolist() == [expected[q][0] for q in sorted(expected)]
                assert answers.margin is not None or not known.all()
            for layers, questions in self.failed.items():
                for question in range(QUESTIONS):
                    assert bool(journal.failure(layers, np.array([question]))) == (question in questions)

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


Journals.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None, derandomize=True)
TestJournals = Journals.TestCase
