"""What a strategy of a user's own may do wrong is told in one line that names it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from genetic_algorithm import LayerSet, Search, SearchConfig, SearchError, SearchSpace
from genetic_algorithm.config import tiny
from genetic_algorithm.search import Outcome, run
from genetic_algorithm.strategies import STRATEGIES
from tests.genetic_algorithm.simulator import NUM_LAYERS, Simulator
from tests.genetic_algorithm.strategies.driving import Failing

SPACE = SearchSpace(NUM_LAYERS, 1, 4, forbidden=(0,))
CODE = """
from math import inf
from genetic_algorithm import LayerSet
from genetic_algorithm.ledger import Request
from genetic_algorithm.questions import FAST, FULL
from genetic_algorithm.strategies.racing import VERIFY, race_forecast, verify
from genetic_algorithm.strategies.strategy import StageForecast, ranked_on_ladder


class Mine:
    stages = ("look", VERIFY)

    def __init__(self, setting):
        self.setting = setting

    def run(self):
        ledger = self.setting.ledger
        for number in range(3):
            yield from ledger.wanted([LayerSet((2, 9)), LayerSet((4,))], FAST, "look", "some")
        yield from verify(self.setting)

    def ranking(self):
        return ranked_on_ladder(self.setting)

    def forecast(self):
        return [StageForecast("look", 2, 80, 80), race_forecast(self.setting.ledger, VERIFY, 2)]

    def details(self):
        return {"look": {"sets": 2}, "patterns": []}
"""
SOME = "[LayerSet((2, 9)), LayerSet((4,))]"
LOOP = "for number in range(3)"


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a search by CODE with texts replaced."""

    def found(*changes: tuple[str, str], evaluator: Simulator | None = None, **config: object) -> Outcome:
        code = CODE
        for before, after in changes:
            assert before in code
            code = code.replace(before, after)
        module = f"mine_{tmp_path.name}"  # no other test has imported it
        (tmp_path / f"{module}.py").write_text(code)
        monkeypatch.chdir(tmp_path)
        simulator = evaluator or Simulator(0, 60)
        settings = SearchConfig(strategy=f"{module}:Mine", fast_limit=10, full_limit=None, **config)  # type: ignore[arg-type]
        search = Search(settings, SPACE, simulator.subjects)
        search.forecast()
        return run(search, simulator)

    return found


def test_what_keeps_to_it_runs(searched) -> None:
    outcome = searched()
    assert outcome.final == [LayerSet((2, 9)), LayerSet((4,))]
    assert outcome.details == {"look": {"sets": 2}, "patterns": []}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("def __init__(self, setting):\n        self.setting = setting", "pass", "is not made of one `setting`; begin"),
        (
            "self.setting = setting",
            "self.setting = setting.all",
            r"py, line 14\): AttributeError in `__init__`: 'Setting",
        ),
        ('("look", VERIFY)', '"look"', r"made a Mine, whose stages are 'look'; name them, as in \(\"mine\", VERIFY\)"),
        (LOOP, "yield 1, 2\n        for number in range(3)", r"it yields \(1, 2\), which is no Request; let it `yield"),
        (SOME, "[[2, 9]]", r"py, line 19\): it asks for \[2, 9\], which is no LayerSet; write LayerSet\(\(0, 2\)\)"),
        (SOME, "[(2, 9)]", r"it asks for \(2, 9\), which is no LayerSet"),
        (
            'FAST, "look',
            '"fastt", "look',
            r"py, line 19\): the questions have no part 'fastt'; their parts are fast, ful",
        ),
        (
            LOOP,
            "1 / 0\n        for number in ()",
            r"py, line 18\): ZeroDivisionError in `run`: division by zero; mend it",
        ),
        (
            SOME,
            "[LayerSet((1, 2, 4, 5, 6))]",
            r"asks for 1\+2\+4\+5\+6, which is not in the space: .* is for 1 to 4 \(--min",
        ),
        (SOME, "[LayerSet((0, 2))]", r"asks for 0\+2, which is not in the space: 0\+2 holds layer 0, which --forbid"),
        (
            SOME,
            "[LayerSet((2, 12))]",
            r"asks for 2\+12, .*: layer 12 \(in 2\+12\) does not exist; the model has layers 0 to",
        ),
        (
            "ledger = self",
            "yield Request((), self.setting.ledger.parts[FAST], 'look', '')\n        ledger = self",
            "nothing; let",
        ),
        (
            'FAST, "look',
            '"holdout", "look',
            "asks questions of the hold-out, which takes no part in the choice; ask FULL,",
        ),
        ('FAST, "look', '"all", "look', "it asks questions of the hold-out, which takes no part in the choice"),
        (
            LOOP,
            "while True",
            r"it asks without anything coming of it; its loop must end when `ledger.left` no longer falls",
        ),
        (
            'StageForecast("look"',
            'StageForecast("wrong"',
            "is of the stages wrong, verification, but its stages are look, v",
        ),
        (
            "2, 80, 80",
            "2, 80, inf",
            "`forecast` of stage look says inf; give the sets and questions that it asks where",
        ),
        (
            "return [StageForecast",
            "return None and [StageForecast",
            "`forecast` returned None, not a list of StageForecast",
        ),
        ("ranked_on_ladder(self.setting)\n", "None\n", "`ranking` returned None, not a list of sets, best first"),
        ("ranked_on_ladder(self.setting)\n", "[(2, 9)]\n", r"`ranking` holds \(2, 9\), which is no LayerSet"),
        (
            "ranked_on_ladder(self.setting)\n",
            "[LayerSet(())]\n",
            "`ranking` holds none, which is not in the space: none ha",
        ),
        (
            "ranked_on_ladder(self.setting)\n",
            "[LayerSet((7,))]\n",
            "`ranking` holds 7, which has no score; rank sets of",
        ),
        (
            SOME,
            "[]",
            r"Mine ended without a set in its ranking, though none failed; end `run` with `yield from verify\(",
        ),
    ],
)
def test_what_breaks_it_is_told(searched, before: str, after: str, told: str) -> None:
    with pytest.raises(SearchError, match=told) as caught:
        searched((before, after))
    assert "\n" not in str(caught.value)
    assert "mine_" in str(caught.value)


def test_smaller_sets_alone_leave_nothing_to_rank(searched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SPACE", SearchSpace(SPACE.num_layers, 2, 4))
    with pytest.raises(
        SearchError, match=r"ended with no set of the space asked, of 2 to 4 layers; smaller ones serve"
    ):
        searched((SOME, "[LayerSet((4,))]"))


def test_a_run_that_is_no_generator_is_told(searched) -> None:
    with pytest.raises(SearchError, match=r"`run` returned None, which holds no requests; let it `yield from ledger"):
        searched(("yield from ledger", "ledger"), ("yield from verify", "verify"))


@pytest.mark.parametrize(
    ("details", "told", "kept"),
    [
        (
            '{"look": {"sets": LayerSet((2,))}, "verification": {}}',
            "of 'look' is not JSON (Object of type LayerSet is",
            1,
        ),
        ('{"look": 5, "verification": {}}', "`details` of 'look' is 5, no dict", 1),
        ('{"look": {"statement": 5}}', "`details` of 'look' has the statement 5, no text", 0),
        ('{"estimates": {"2+9": "high"}}', "`details` of 'estimates' holds what is no number", 0),
        ("[1]", "`details` returned [1], not a dict by stage", 0),
        ("1 / 0", "line 29): ZeroDivisionError in `details`: division by zero", 0),
    ],
)
def test_details_that_cannot_be_are_left_out_of_a_search_that_is_done(
    searched, details: str, told: str, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        outcome = searched(('{"look": {"sets": 2}, "patterns": []}', details))
    assert outcome.final == [LayerSet((2, 9)), LayerSet((4,))]
    assert len(outcome.details) == kept
    assert told in caplog.text
    assert "the result goes without them" in caplog.text


def test_where_sets_failed_the_warnings_are_named(searched) -> None:
    evaluator = Failing({LayerSet((2, 9)), LayerSet((4,))}, 60)
    with pytest.raises(SearchError, match="no layer set could be evaluated on all the questions; see the warnings"):
        searched(evaluator=evaluator, max_failed=1.0)


def test_base_and_smaller_sets_may_be_asked_to_measure_from() -> None:
    space = SearchSpace(NUM_LAYERS, 3, 4, must_include=(3,), forbidden=(0,))
    for layers in ((), (3,), (3, 5), (3, 5, 6), (3, 5, 6, 7)):
        assert space.allows(LayerSet(layers))
        assert space.contains(LayerSet(layers)) == (len(layers) > 2)
    for layers in ((0, 3), (5,), (3, 12), (3, 5, 6, 7, 8)):
        assert not space.allows(LayerSet(layers))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("must", [(), (4, 7)])
def test_ours_keep_to_it(strategy: str, must: tuple[int, ...]) -> None:
    simulator = Simulator(0, 30)
    config = SearchConfig(
        strategy=strategy, population=6, generations=2, fast_limit=8, full_limit=20, max_passes=tiny().max_passes
    )
    assert run(Search(config, SearchSpace(NUM_LAYERS, 2, 3, must, (0,)), simulator.subjects), simulator).final
