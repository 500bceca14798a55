"""Tasks of a user's own: one file in a folder that --task-dir names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation import tasks
from evaluation.build import load_questions, task_source
from evaluation.config import EvalConfig
from evaluation.entry import run_tool
from evaluation.errors import EvaluationError
from evaluation.questions import QuestionSet
from evaluation.tasks import load_tasks
from genetic_algorithm import run_search
from models.loading import read_llamba_config
from models.pairs import TINY_DIR
from models.tokenizer import load_tokenizer

QUESTIONS = [
    {"question": f"By heart, what is {key}?", "choices": ["glacier", "oasis", "button", "anvil"], "answer": i % 4}
    for i, key in enumerate(["konex", "lav", "fov", "dav", "pizo", "funex", "gab", "lob"])
]
REST = """
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
READERS: dict[str, Callable[[Path], str]] = {
    "listed": lambda folder: (
        "custom_dataset: !function evaluation.own_questions.listed\n"
        f"dataset_kwargs: {json.dumps({'questions': QUESTIONS})}"
    ),
    "from_file": lambda folder: (
        "custom_dataset: !function evaluation.own_questions.from_file\ndataset_kwargs: {file: own.jsonl}"
    ),
    "datasets": lambda folder: (
        f"dataset_path: json\ndataset_kwargs: {json.dumps({'data_files': {'test': str(folder / 'own.jsonl')}})}"
    ),
}


@pytest.fixture(params=READERS)
def own(request: pytest.FixtureRequest, tmp_path: Path, datasets_cache: Path) -> Path:
    """A folder with the task `own`, whose questions are read in each of the ways."""
    folder = tmp_path / "my tasks"
    folder.mkdir()
    (folder / "own.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "own.yaml").write_text(f"task: own\n{READERS[request.param](folder)}{REST}")
    return folder


def listed(questions: object) -> str:
    """A task file that holds its questions."""
    reader = "custom_dataset: !function evaluation.own_questions.listed"
    return f"task: own\n{reader}\ndataset_kwargs: {json.dumps({'questions': questions})}{REST}"


def without(*texts: str) -> str:
    """A task file without the lines that begin so, and without that text in others."""
    lines = [line for line in listed(QUESTIONS).splitlines() if not line.startswith(texts)]
    return "".join(f"{line}\n" for line in lines).replace("!function " if "!function " in texts else "\0", "")


Search = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Search:
    """A small search of the bundled pair, from the folder `tmp_path`."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # drawings take longer than the search
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GA_CACHE_DIR", str(tmp_path / "cache"))
    few = ["--population", "4", "--generations", "1", "--fast-limit", "4", "--full-limit", "8", "--final-limit", "0"]

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = ["--pair", "tiny", "--gpu", "cpu", *few, *flags]
        code = run_tool("run_search", run_search.main, command)
        return subprocess.CompletedProcess(command, code, *capsys.readouterr())

    return run


def asked(folder: Path, *tasks: str, **options: Any) -> QuestionSet:
    config = EvalConfig(tasks=tasks or ("own",), task_dir=folder, cache_dir=folder.parent / "cache", **options)
    base = TINY_DIR / "base"
    return load_questions(config, load_tokenizer(base, base), read_llamba_config(base), max_limit=None)


def test_it_is_asked_alone_beside_bundled_tasks_and_from_the_cache(own: Path) -> None:
    alone = asked(own)
    assert (len(alone), alone.subject_names) == (8, ("own",))
    assert len(list((own.parent / "cache").iterdir())) == 1
    assert asked(own).digest == alone.digest
    assert len(list((own.parent / "cache").iterdir())) == 1
    mixed = asked(own, "own", "tiny_recall")
    assert mixed.subject_names == ("own", "tiny_recall")


def test_whatever_changes_in_it_changes_the_fingerprint_of_the_questions(own: Path) -> None:
    digests = {asked(own).digest}
    for name in ("own.yaml", "own.jsonl"):
        path = own / name
        text = path.read_text()
        if "konex" in text:
            path.write_text(text.replace("konex", "vorax"))
            digests.add(asked(own).digest)
            path.write_text(text.replace("anvil", "helmet"))
            digests.add(asked(own).digest)
    (own / "own.yaml").write_text((own / "own.yaml").read_text().replace("Answer:", "Answer is"))
    digests.add(asked(own).digest)
    assert len(digests) == 4


def test_it_goes_before_a_task_of_the_same_name(own: Path) -> None:
    (own / "own.yaml").write_text((own / "own.yaml").read_text().replace("task: own", "task: tiny_recall"))
    assert len(asked(own, "tiny_recall")) == 8
    assert len(asked(own, "tiny_position")) == 1024


@pytest.mark.parametrize("own", ["listed"], indirect=True)
def test_weights_are_of_its_tasks_as_of_others(own: Path, tmp_path: Path, search: Search) -> None:
    done = search("--tasks", "own:1,tiny_recall:0.5", "--task-dir", str(own), "--dry-run")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout.splitlines()[-1])
    assert (plan["questions"], plan["subjects"]) == (1032, 2)


@pytest.mark.parametrize("own", ["from_file"], indirect=True)
def test_a_search_on_it_resumes_wherever_it_lies_unless_its_questions_changed(
    own: Path, tmp_path: Path, search: Search
) -> None:
    flags = ["--tasks", "own", "--output-dir", "run"]
    done = search(*flags, "--task-dir", "my tasks")
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["task_dir"] == str(own)
    result = next((tmp_path / "run").glob("search_result_*.json"))
    before = json.loads(result.read_text())["final_results"]
    result.unlink()  # as if it had been killed before its end
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    own = own.rename(tmp_path / "elsewhere")
    again = search(*flags, "--task-dir", str(own))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal
    assert json.loads(next((tmp_path / "run").glob("search_result_*.json")).read_text())["final_results"] == before
    next((tmp_path / "run").glob("search_result_*.json")).unlink()
    for path in own.iterdir():
        path.write_text(path.read_text().replace("konex", "vorax"))
    changed = search(*flags, "--task-dir", str(own))
    assert changed.returncode == 2
    assert "holds answers of another configuration: questions was " in changed.stderr


@pytest.mark.parametrize(
    ("yaml", "lines", "told"),
    [
        (
            "task: other\n" + REST,
            "",
            "unknown task or subject 'own'; --task-dir {folder} has other; `lm_eval ls tasks`",
        ),
        (REST, "", "--task-dir {folder} has no task: no file there says `task: NAME`; write one as"),
        (without("doc_to_text"), "", "own.yaml) has no doc_to_text; add it, such as `doc_to_text: "),
        (without("doc_to_target"), "", "own.yaml) has no doc_to_target; add it, such as `doc_to_target: answer`"),
        (without("doc_to_choice"), "", "own.yaml) has no doc_to_choice; add it, such as `doc_to_choice: choices`"),
        (without("test_split"), "", "own.yaml) has no test_split; add `test_split: test`"),
        (without("output_type"), "", "own.yaml) has no output_type; add `output_type: multiple_choice`"),
        (without("!function "), "", "own_questions.listed`, a text; write `custom_dataset: !function evaluation.own_"),
        (
            "task: own\nx: [",
            "",
            "own.yaml, line 2, is not YAML (expected the node content, but found '<stream end>'); mend it",
        ),
        (None, "[1]\n", "own.jsonl, line 1 is no JSON object; write one question a line"),
        (None, '{"question": "x"}\n{', "own.jsonl, line 2 is no JSON object"),
        (
            None,
            '{"question": "x"}\n\n{"question": "y", "answer": 0}',
            "own.jsonl, line 1 has no `answer`, which others have",
        ),
        (None, "\n", "there are no questions; write at least one"),
        (
            listed([*QUESTIONS[:2], {"question": "x", "answer": 0}]),
            "",
            "question 2 (counted from 0) has no `choices`, which",
        ),
        (listed(["x"]), "", "`questions` is no list of mappings; write one line like {question: ..., answer: 0} each"),
        (
            listed([QUESTIONS[0] | {"answer": 7}]),
            "",
            "question 0 (counted from 0) is answered by 7, which is none of its 4",
        ),
        (
            listed([QUESTIONS[0] | {"choices": ["a", ""]}]),
            "",
            "a choice of question 0 (counted from 0) is empty; check the",
        ),
        (
            listed([QUESTIONS[0] | {"choices": ["a", 2]}]),
            "",
            "question 0 (counted from 0): the choice 2 is no text; put it in quotes",
        ),
        (None, None, "own.jsonl: No such file or directory; `file` counts from where the task's file lies"),
    ],
)
def test_what_is_wrong_with_it_is_told(
    tmp_path: Path,
    yaml: str | None,
    lines: str | None,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tasks, "_full_manager", tasks._manager)  # or it reads thousands of files
    (tmp_path / "own.yaml").write_text(yaml or f"task: own\n{READERS['from_file'](tmp_path)}{REST}")
    if lines is not None:
        (tmp_path / "own.jsonl").write_text(lines)
    with pytest.raises(EvaluationError) as caught:
        load_tasks(task_source(EvalConfig(tasks=("own",), task_dir=tmp_path)))
    assert told.replace("{folder}", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_a_task_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_full_manager", tasks._manager)
    with pytest.raises(EvaluationError, match=r"has no task: there is no file \*\.yaml in it; write one as ARCH"):
        load_tasks(task_source(EvalConfig(tasks=("own",), task_dir=tmp_path)))


def test_what_a_task_lacks_may_stand_in_the_file_that_it_includes_or_in_its_group(
    tmp_path: Path, datasets_cache: Path
) -> None:
    (tmp_path / "_shared").write_text(without("doc_to_text", "task: own"))
    (tmp_path / "own.yaml").write_text("task: own\ninclude: _shared\n")
    member = json.dumps({"task": "own", "doc_to_text": "{{question}}"})
    (tmp_path / "both.yaml").write_text(f"group: both\ntask: [{member}]\n")
    assert list(load_tasks(task_source(EvalConfig(tasks=("both",), task_dir=tmp_path))).tasks)
    with pytest.raises(EvaluationError, match="has no doc_to_text"):
        load_tasks(task_source(EvalConfig(tasks=("own",), task_dir=tmp_path)))


def test_data_files_of_datasets_count_from_the_working_folder_and_the_error_says_so(
    tmp_path: Path, datasets_cache: Path
) -> None:
    reader = "dataset_path: json\ndataset_kwargs: {data_files: {test: own.jsonl}}"
    (tmp_path / "own.yaml").write_text(f"task: own\n{reader}{REST}")
    with pytest.raises(EvaluationError) as caught:
        load_tasks(task_source(EvalConfig(tasks=("own",), task_dir=tmp_path)))
    assert f"relative data_files count from the working folder, {Path.cwd()}, as in lm-eval" in str(caught.value)


def test_a_folder_that_is_none_and_a_file_in_its_place_are_told(tmp_path: Path, search: Search) -> None:
    for flags, told in (
        (["--tasks", "own", "--task-dir", "none"], f"--task-dir {tmp_path}/none is no folder; give the one that holds"),
        (["--task-dir", "."], "--task-dir says where tasks lie, not which are asked; name them with --tasks"),
        (["--tasks", "own.yaml"], "own.yaml is a file; give the name of its task, and its folder as --task-dir"),
    ):
        done = search(*flags, "--dry-run")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert told in done.stderr
