"""What monitor_progress.sh and check_results.sh read, damaged in every way: shown, or one line that says what is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.run_folders import locks
from scripts.run_folders.__main__ import main
from tests.fuzzing import NESTED, Damage, altered_json, always, damaged, damaged_json, fuzz, put, spelled
from tests.scripts.test_run_folders import LAST, LINES, LOG, STAMP, make_run, write_result

WORKERS = {"time": 1767261600.0, "lost": 1, "workers": [{"state": "busy"}, {"state": "lost"}]}


@pytest.fixture(autouse=True, params=["a local disk", "a shared one"])
def disk(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Where locks tell whether a search runs, and where only its files do."""
    monkeypatch.setattr(locks, "_is_shared", lambda path: request.param == "a shared one")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "results" / "real_1")


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every view ends with an exit code of its own, and says in a line why where it shows nothing."""
    for view in (
        ["progress", "--once"],
        ["progress", "--once", "--json"],
        ["progress", "--once", "--all"],
        ["results"],
        ["results", "--json"],
    ):
        where = ["--dir", str(folder.parent)] if "--all" in view else [str(folder)]
        code = main([*view, *where])
        out, err = capsys.readouterr()
        assert code in (0, 1, 2)
        if code == 2:
            (line,) = err.splitlines()
            assert line.startswith("error: ")
            assert str(folder.parent) in line
        elif "--json" in view:
            json.loads(out)


@fuzz(15)
@always(None, NESTED, b'{"timestamp": "a\\u0000b", "run": {}}')
@given(content=damaged_json({"timestamp": STAMP, "run": {"search": {"goal": "accuracy"}}}))
def test_fuzzed_config(folder: Path, capsys: pytest.CaptureFixture[str], content: Damage) -> None:
    put(folder / "config.json", content)
    shown(folder, capsys)


lines = st.lists(st.one_of(*(altered_json(line) for line in [*LINES, LAST])).map(spelled), max_size=5)


@fuzz(15)
@always(None, NESTED, *(json.dumps({**LAST, "seconds": odd}).encode() + b"\n" for odd in (1e308, -1, 10**400)))
@given(content=st.one_of(lines.map(b"\n".join), damaged("\n".join(map(json.dumps, [*LINES, LAST])).encode())))
def test_fuzzed_journal(folder: Path, capsys: pytest.CaptureFixture[str], content: Damage) -> None:
    put(folder / "journal.jsonl", content)
    shown(folder, capsys)


words = st.sampled_from(["2+9", "2++9", "+", "none", "0.8100", "0.8.1", ".", "40,000", ",", "1014", "٣", "9" * 5000])


@st.composite
def other_words(draw: st.DrawFn) -> bytes:
    """The log with words of it replaced by others that look alike."""
    text = LOG
    for old in ("2+9", "0.8100", "0.0200", "(128", "1,014", "40,000", "2 min"):
        if draw(st.booleans()):
            text = text.replace(old, draw(words))
    return text.encode()


@fuzz(20)
@always(None, LOG.replace("0.8100", "0.8.1").encode(), LOG.replace("40,000", ",").encode())
@given(content=st.one_of(other_words(), damaged(LOG.encode())))
def test_fuzzed_log(folder: Path, capsys: pytest.CaptureFixture[str], content: Damage) -> None:
    put(folder / f"search_log_{STAMP}.txt", content)
    shown(folder, capsys)


@fuzz(15)
@always(None, NESTED, json.dumps({**WORKERS, "time": math.nan}).encode())
@given(content=damaged_json(WORKERS))
def test_fuzzed_workers(folder: Path, capsys: pytest.CaptureFixture[str], content: Damage) -> None:
    put(folder / "workers.json", content)
    shown(folder, capsys)


@pytest.mark.parametrize("more", [{}, {"value": 0.8, "value_error": 0.01}], ids=["accuracy", "another goal"])
def test_fuzzed_result(folder: Path, capsys: pytest.CaptureFixture[str], more: dict[str, float]) -> None:
    whole = write_result(folder, search={"goal": "kl"}, evaluator={"pair": "tiny"})
    whole["final_results"][0] |= more
    odd = [("rank", "\ud800"), ("accuracy", 10**400), ("accuracy", math.nan), ("layers", ["x"])]
    changed = [{**whole, "final_results": [{**whole["final_results"][0], name: value}]} for name, value in odd]

    @fuzz(15)
    @always(
        None,
        NESTED,
        *(spelled(document) for document in changed),
        spelled(whole | {"usage": {"in_all": None}, "evaluator": []}),
    )
    @given(content=damaged_json(whole))
    def holds(content: Damage) -> None:
        put(folder / f"search_result_{STAMP}.json", content)
        shown(folder, capsys)

    holds()
