"""What is shown of searches that run, were stopped, or are damaged."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.run_folders import locks, tails
from scripts.run_folders.__main__ import main
from scripts.run_folders.folders import open_run
from scripts.run_folders.progress import Progress, Watch
from scripts.run_folders.spelling import spell_block, spell_table

STAMP = "20260101_100000"
OLD_LOG = """2026-01-01 10:00:00 I search in here
2026-01-01 10:01:00 I stage 1, generation 1: 18 sets x 128 questions in 2.0 s; best 2+9 0.8100 +- 0.0200 \
(128 questions); about 1 min left, at most 3 min 10 s
2026-01-01 10:01:00 I something else
"""
LOG = """2026-01-01 10:00:00 I search in here
2026-01-01 10:00:01 I begins stage 1, first sets: 34 sets x 128 questions; 0 of about 40,000 done, at most 50,000
2026-01-01 10:01:00 I stage 1, generation 1: 18 sets x 128 questions in 2.0 s; best: layers 2+9, 0.8100 +- 0.0200 \
(128 questions); 2,304 of about 1,014 done, at most 50,000; about 1 min left, at most 3 min 10 s
2026-01-01 10:02:00 I stage 1, generation 2: 5 of 18 sets
"""
LINES: list[dict[str, Any]] = [
    {"journal": 1, "header": {}},
    {"set": "2+9", "questions": "0-9,20", "status": "ok", "seconds": 2.0},
    {"set": "2+9", "questions": "30-32", "status": "ok", "seconds": 0.0},
    {"set": "1", "questions": "0-9", "status": "failed", "seconds": 0.0},
]
LAST = {"set": "3", "questions": "0-9,20", "status": "ok", "seconds": 2.0}


@pytest.fixture(autouse=True)
def _on_a_local_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests' folders lie."""
    monkeypatch.setattr(locks, "_MOUNTS", Path("/nowhere"))


def make_run(folder: Path, log: str = LOG) -> Path:
    """A search that was stopped in the midst of a journal line."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"timestamp": STAMP, "run": {}}))
    (folder / f"search_log_{STAMP}.txt").write_text(log)
    text = "\n".join(json.dumps(line) for line in [*LINES, LAST])
    (folder / "journal.jsonl").write_text(text[:-30])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "results" / "real_1")


def look(folder: Path, now: float | None = None) -> Progress:
    return Watch(open_run(folder)).look(now)


def rows_of(progress: Progress) -> dict[str, str]:
    """What the block of a search says, by what it is called."""
    return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in spell_block(progress).splitlines()[1:])


def write_result(folder: Path, **more: Any) -> dict[str, Any]:
    best = {"rank": 1, "layers": [2, 9], "accuracy": 0.8, "standard_error": 0.02, "questions": 400}
    best |= {"estimate": 0.79, "holdout_accuracy": 0.78, "full_accuracy": None}
    base = {"layers": [], "accuracy": 0.4, "standard_error": 0.05, "questions": 96, "holdout_accuracy": None}
    document = {
        "final_results": [best],
        "base": base,
        "ranked_by": "rank: by the estimate.",
        "conclusion": "2+9 it is.",
    }
    document |= {"usage": {"in_all": {"question_evaluations": 500, "seconds": 10.0}}} | more
    (folder / f"search_result_{STAMP}.json").write_text(json.dumps(document))
    return document


class Lock:
    """What a running search holds."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "config.json"

    def __enter__(self) -> None:
        self._file = self._path.open("rb")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def test_a_stopped_search(folder: Path) -> None:
    progress = look(folder)
    assert (progress.state, progress.stage, progress.label) == ("stopped", "stage 1", "generation 2")
    assert progress.best is not None
    assert (progress.best.layers, progress.best.score, progress.best.standard_error) == ([2, 9], 0.81, 0.02)
    assert (progress.best.questions, progress.best.measure) == (128, "accuracy")
    assert (progress.layer_sets, progress.question_evaluations, progress.failures) == (1, 14, 1)
    assert (progress.question_evaluations_expected, progress.workers.alive) == (1014, 0)
    assert progress.left == "about 1 min left, at most 3 min 10 s"
    rows = rows_of(progress)
    assert rows["best of those asked most"] == "2+9 0.8100 +- 0.0200 (128 questions)"
    assert rows["question-evaluations"] == "14 of about 1,014 on 1 set"
    assert rows["failures"] == "1 set could not be evaluated"
    assert (progress.seconds_left, progress.questions_per_second) == (None, None)
    assert "give the same command, with --output-dir" in spell_block(progress)


def test_a_log_of_before_there_were_counts_in_it(tmp_path: Path) -> None:
    progress = look(make_run(tmp_path / "run", OLD_LOG))
    assert progress.best is not None
    assert progress.best.layers == [2, 9]
    assert (progress.stage, progress.question_evaluations_expected) == ("stage 1", None)
    assert rows_of(progress)["time left"] == "about 1 min, at most 3 min 10 s"


@pytest.mark.parametrize(
    ("told", "measure", "score"),
    [
        ("a weighted accuracy of 0.5000 +- 0.0100", "weighted accuracy", 0.5),
        ("a mean divergence of 0.2500 +- 0.0100 nats from the donor's answers", "divergence", 0.25),
    ],
)
def test_the_best_by_another_goal(told: str, measure: str, score: float, tmp_path: Path) -> None:
    best = look(make_run(tmp_path / "run", LOG.replace("0.8100 +- 0.0200", told))).best
    assert best is not None
    assert (best.measure, best.score, best.standard_error, best.questions) == (measure, score, 0.01, 128)


def test_a_running_search_holds_its_folder(folder: Path) -> None:
    with Lock(folder):
        progress = look(folder)
    assert (progress.state, progress.workers.alive, progress.workers.of) == ("running", 1, 1)
    assert progress.questions_per_second == 7.0  # 14 questions in 2 s
    assert progress.seconds_left == pytest.approx(1000 / 7, abs=0.1)
    with Lock(folder):  # the look did not keep it
        pass


def test_a_silence_lowers_the_pace_only_where_it_is_longer_than_those_before(folder: Path) -> None:
    with Lock(folder):
        now = time.time()
        assert look(folder, now + 1.9).questions_per_second == 7.0
        slow = look(folder, now + 100).questions_per_second
    assert slow == pytest.approx(14 / 100, rel=0.05)


def test_the_pace_is_that_of_the_last_minute(folder: Path) -> None:
    lines = [LINES[0]]
    lines += [{"set": str(i), "questions": "0-9", "status": "ok", "seconds": 1.0} for i in range(500)]
    lines += [{"set": str(i), "questions": "0-99", "status": "ok", "seconds": 1.0} for i in range(60)]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Lock(folder):
        progress = look(folder)
    assert progress.questions_per_second == 100.0
    assert progress.question_evaluations == 500 * 10 + 60 * 100


def test_only_what_was_appended_is_read_and_a_torn_line_once_it_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, journal = Watch(open_run(folder)), folder / "journal.jsonl"
    taken: list[bytes] = []
    take = tails.JournalTail.take
    monkeypatch.setattr(tails.JournalTail, "take", lambda self, line: (taken.append(line), take(self, line))[1])
    assert watch.look().question_evaluations == 14
    assert len(taken) == len(LINES)
    with journal.open("a") as file:
        file.write(json.dumps(LAST)[-30:])
    assert watch.look().question_evaluations == 14
    with journal.open("a") as file:
        file.write("\n")
    assert watch.look().question_evaluations == 25
    assert len(taken) == len(LINES) + 1
    journal.write_text(json.dumps(LINES[0]) + "\n" + json.dumps(LAST) + "\n")  # moved away, and begun anew
    assert watch.look().question_evaluations == 11


def test_a_set_that_failed_and_was_answered_since_is_no_failure(folder: Path) -> None:
    with (folder / "journal.jsonl").open("w") as file:
        for line in (*LINES, {"set": "1", "questions": "0-9", "status": "ok", "seconds": 1.0}):
            file.write(json.dumps(line) + "\n")
    assert look(folder).failures == 0


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"\xff\xfe\n{}\n[1]\n", b'{"set": 1, "questions": 5, "status": ""}\n', None]
)
def test_a_journal_that_is_empty_damaged_or_not_there(content: bytes | None, folder: Path) -> None:
    (folder / "journal.jsonl").unlink()
    if content is not None:
        (folder / "journal.jsonl").write_bytes(content)
    with Lock(folder):
        progress = look(folder)
    assert (progress.question_evaluations, progress.questions_per_second, progress.seconds_left) == (0, None, None)
    assert progress.state == "running"


def test_a_search_that_has_just_begun(folder: Path) -> None:
    for path in folder.glob("[!c]*"):
        path.unlink()
    with Lock(folder):
        rows = rows_of(look(folder))
    assert list(rows.values()).count("not known yet") == 3
    assert rows["workers"] == "1 of 1 alive"


def test_an_error_that_ended_a_search_is_told_until_it_goes_on(folder: Path) -> None:
    log = folder / f"search_log_{STAMP}.txt"
    with log.open("a") as file:
        file.write("2026-01-01 10:03:00 E the search ended by SearchError: 5 of 9 layer sets could not\n")
    progress = look(folder)
    assert (progress.state, progress.notes) == ("failed", ["SearchError: 5 of 9 layer sets could not"])
    with log.open("a") as file:
        file.write("2026-01-01 10:04:00 I resuming the search in here\n")
    assert look(folder).state == "stopped"


@pytest.mark.parametrize(("kind", "is_shared"), [("ext4", False), ("nfs4", True), ("fuse.sshfs", True)])
def test_without_locks_to_see_what_wrote_of_late_is_running(
    kind: str, is_shared: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    point = str(folder.parent).replace(" ", "\\040")
    mounts.write_text(f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / {point} rw,relatime shared:1 - {kind} a:/b rw\n")
    monkeypatch.setattr(locks, "_MOUNTS", mounts)
    now = time.time()
    states = [look(folder, now + later) for later in (10, 3000)]
    assert [progress.state for progress in states] == (["running", "stopped"] if is_shared else ["stopped", "stopped"])
    notes = [f"locks cannot be seen on this file system; it last wrote {ago} ago" for ago in ("10 s", "50 min")]
    assert [progress.notes for progress in states] == ([[note] for note in notes] if is_shared else [[], []])


def test_workers_are_counted(folder: Path) -> None:
    states = ["ready", "ready", "starting", "lost"]
    workers = [{"name": f"a:{i}", "device": "cuda:0", "state": state, "questions": 5} for i, state in enumerate(states)]
    path = folder / "workers.json"
    path.write_text(json.dumps({"time": time.time(), "workers": workers, "lost": 2}))
    with Lock(folder):
        progress = look(folder)
        assert (progress.workers.alive, progress.workers.of, progress.workers.lost) == (3, 4, 2)
        assert "3 of 4 alive, 2 lost" in spell_block(progress)
        path.write_text(json.dumps({"time": time.time() - 600, "workers": workers, "lost": 2}))
        assert look(folder).notes == [
            "workers.json is 10 min old, or the clock where the search runs is behind this one"
        ]
        path.write_text(json.dumps({"time": time.time() + 600, "workers": workers, "lost": 2}))
        ahead = look(folder)
        assert ahead.state == "running"
        assert ahead.notes == ["the clock where the search runs is 10 min ahead of this one"]
        path.write_text('{"time": 1')
        assert look(folder).workers.of == 1
    path.write_text(json.dumps({"time": time.time(), "workers": workers, "lost": 2}))
    assert look(folder).workers.alive == 0


def test_a_finished_search(folder: Path) -> None:
    write_result(folder)
    progress = look(folder)
    assert (progress.state, progress.seconds_left, progress.questions_per_second) == ("finished", 0.0, 50.0)
    assert progress.best is not None
    assert (progress.best.layers, progress.best.score) == ([2, 9], 0.8)
    rows = rows_of(progress)
    assert not {"time left", "stage"} & set(rows)
    assert rows["best"] == "2+9 0.8000 +- 0.0200 (400 questions)"


def test_a_finished_search_counts_as_its_result_does(folder: Path) -> None:
    """The journal also holds what the donor was asked afterwards."""
    write_result(folder, usage={"in_all": {"question_evaluations": 10, "new_layer_sets": 1, "seconds": 10.0}})
    assert rows_of(look(folder))["question-evaluations"] == "10 on 1 set"


def test_a_search_that_was_stopped_when_all_was_answered(folder: Path) -> None:
    with (folder / f"search_log_{STAMP}.txt").open("a") as file:
        file.write(
            "2026-01-01 10:03:00 I hold-out, finalists: 2 sets x 9 questions in 2.0 s; best: layer 3, 0.9000 +- 0.0100 "
        )
        file.write("(128 questions, of those asked most); 14 of 14 done\n")
    rows = rows_of(look(folder))
    assert rows["best of those asked most"] == "3 0.9000 +- 0.0100 (128 questions)"
    assert (rows["question-evaluations"], rows["time left"]) == ("14 of about 14 on 1 set", "nothing")


@pytest.mark.parametrize("request_", ["1 set x 1 question in 2.0 s", "1 of 1 set"])
def test_a_log_that_counts_one(request_: str, folder: Path) -> None:
    with (folder / f"search_log_{STAMP}.txt").open("a") as file:
        file.write(f"2026-01-01 10:03:00 I stage 1, generation 3: {request_}; best 2 1.0000 +- 0.0000 (1 question); ")
        file.write("about 1 s left, at most 2 s\n")
    progress = look(folder)
    assert progress.label == "generation 3"
    assert progress.best is not None
    assert progress.best.questions == 1


def test_many_searches_are_a_table_in_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"real_20261127_18000{i}" for i in range(4)]
    for i, name in enumerate(names):
        os.utime(make_run(tmp_path / name) / "config.json", (i, i))
    write_result(tmp_path / names[0])
    (tmp_path / names[1] / f"search_result_{STAMP}.json").write_text("{")
    (tmp_path / "a model").mkdir()
    (tmp_path / "a model" / "config.json").write_text('{"model_type": "llama"}')
    with Lock(tmp_path / names[3]):
        assert main(["progress", "--all", "--once", "--dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:5]] == [
        ["run", "state"],
        [names[0], "finished"],
        [names[1], "failed"],
        [names[2], "stopped"],
        [names[3], "running"],
    ]
    assert max(map(len, lines[:5])) <= 80
    assert lines[4].split()[2:] == ["stage", "1", "2+9", "0.8100", "1%", "7.0", "2", "min", "1"]
    assert lines[5].startswith(f"{names[1]}: ")
    assert "is damaged" in lines[5]
    assert len(lines) == 6


def test_a_table_of_long_names_and_all_columns_is_no_wider(folder: Path) -> None:
    workers = [{"name": "a:1", "device": "cpu", "state": "ready", "questions": 0}] * 16
    (folder / "workers.json").write_text(json.dumps({"time": time.time(), "workers": workers, "lost": 0}))
    long = folder.rename(folder.with_name("a very long name of a run_20261127_180000"))
    with Lock(long):
        lines = spell_table([look(long)], 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].endswith("workers failed")
    assert lines[1].startswith("~")
    assert "180000 " in lines[1]


def test_json_has_the_fields_that_the_help_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Lock(folder):
        assert main(["progress", "--once", "--json", str(folder)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    (run,) = json.loads(line)["runs"]
    script = (Path(__file__).parents[2] / "scripts" / "monitor_progress.sh").read_text()
    described = script.partition("--json: {")[2].partition("What is not known")[0]
    assert not [name for name in (*run, *run["best"], *run["workers"]) if name not in described]
    assert (run["state"], run["failures"], run["workers"]) == ("running", 1, {"alive": 1, "of": 1, "lost": 0})


def test_it_looks_again_until_nothing_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock(folder)
    lock.__enter__()
    monkeypatch.setattr(time, "sleep", lambda _: (lock.__exit__(), make_run(folder.with_name("real_2"))))
    assert main(["progress", "--all", "--json", "--dir", str(folder.parent)]) == 0
    looks = [json.loads(line)["runs"] for line in capsys.readouterr().out.splitlines()]
    assert [[run["state"] for run in runs] for runs in looks] == [["running"], ["stopped", "stopped"]]


@pytest.mark.parametrize("content", ["{", "{}", '{"final_results": []}', '{"final_results": [{"layers": [1]}]}'])
@pytest.mark.parametrize("what", ["results", "progress"])
def test_a_damaged_result_is_named(what: str, content: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / f"search_result_{STAMP}.json").write_text(content)
    assert main([what, str(folder)]) == 2
    error = capsys.readouterr().err
    assert f"search_result_{STAMP}.json is damaged" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("what", ["results", "progress"])
def test_what_is_no_search(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([what, "--dir", str(tmp_path)]) == 2
    assert "there is no search in" in capsys.readouterr().err
    assert main([what, str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
    for content in ('{"model_type": "llama"}', "{", "[]"):
        (tmp_path / "config.json").write_text(content)
        assert main([what, str(tmp_path)]) == 2
        assert "its config.json is of something else" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([what, str(tmp_path / "file")]) == 2
    assert "has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "-1", "nan", "soon"])
def test_an_interval_that_cannot_be_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["progress", "--interval", given])
    error = capsys.readouterr().err
    assert f"'{given}' is no number of seconds" in error
    assert error.count("\n") == 1
