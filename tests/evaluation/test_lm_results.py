"""lm-eval's own files of a run, and the scores read from it."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation.accuracy import evaluate_sets
from evaluation.engine import Engine
from evaluation.errors import EvaluationError
from evaluation.hybrid_lm import HybridLM
from evaluation.lm_results import LmEvalRun, run_lm_eval
from evaluation.questions import build_questions
from evaluation.tasks import LoadedTasks, TaskSource, load_tasks
from genetic_algorithm import LayerSet
from tests.evaluation.conftest import letter_docs, make_pair, make_tokenizer, phrase_docs, write_tasks
from tests.model_preparation.conftest import files_of_at_most

LAYERS = (1, 2)


@pytest.fixture(scope="module")
def lm() -> HybridLM:
    return HybridLM(make_pair().assemble(LAYERS), make_tokenizer(), name="runs/best 4")


@pytest.fixture(autouse=True)
def no_look_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval asks pip and the drivers for versions, which takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedTasks:
    """Two groups, one within the other, and a task beside them whose metric is not acc."""
    tasks = tmp_path / "tasks"
    write_tasks(tasks / "inner", {"toy_short": letter_docs(23), "toy_long": letter_docs(17, seed=1)}, group="inner")
    norm = [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}]
    phrases = {"doc_to_choice": "choices", "metric_list": norm}
    write_tasks(tasks / "alone", {"toy_phrases": phrase_docs(19)}, options={"toy_phrases": phrases}, group="unused")
    (tasks / "outer.yaml").write_text(
        'group: outer\ntask: [inner]\naggregate_metric_list: [{"metric": "acc", "weight_by_size": true}]\n'
    )
    return load_tasks(TaskSource(("outer", "toy_phrases"), tasks))


def read(run: LmEvalRun) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The results and the samples of the only run in a folder."""
    [results] = run.folder.glob("results_*.json")
    time = results.stem.removeprefix("results_")
    names = [path.name.removeprefix("samples_").removesuffix(f"_{time}.jsonl") for path in run.folder.glob("*.jsonl")]
    lines = {name: (run.folder / f"samples_{name}_{time}.jsonl").read_text().splitlines() for name in names}
    return json.loads(results.read_text()), {name: list(map(json.loads, lines[name])) for name in names}


@pytest.mark.parametrize("limit", [None, 7])
def test_files_and_scores_are_of_the_questions_that_the_engine_would_ask(
    limit: int | None, lm: HybridLM, loaded: LoadedTasks, tmp_path: Path
) -> None:
    run = run_lm_eval(lm, loaded, limit=limit, order="shuffled", output=tmp_path / "out")
    assert run.folder == tmp_path / "out" / "runs__best 4"
    questions = build_questions(loaded, make_tokenizer(), max_length=512, order="shuffled", limit=limit)
    layers = LayerSet(LAYERS)
    expected = evaluate_sets(Engine(make_pair(), questions), [layers], limit)[layers]
    assert run.subjects == expected.subjects
    assert run.total == expected.total
    results, samples = read(run)
    for subject, name in enumerate(questions.subject_names):
        documents = questions.documents_Q[questions.subjects_Q == subject]
        assert [sample["doc_id"] for sample in samples[name]] == sorted(documents.tolist())
        assert results["n-samples"][name]["effective"] == len(documents)
    short = expected.subjects["toy_short"]
    assert results["results"]["toy_short"]["acc,none"] == pytest.approx(short.accuracy)
    assert sum(sample["acc"] for sample in samples["toy_short"]) == short.correct
    assert set(results["groups"]) == {"outer", "inner"}
    assert results["group_subtasks"] == {"outer": ["inner"], "inner": ["toy_short", "toy_long"]}
    assert results["groups"]["outer"]["acc,none"] == pytest.approx(expected.groups["outer"].accuracy)
    assert results["config"]["model_layers"] == list(LAYERS)
    assert (results["model_source"], results["model_name"]) == ("hybrid", "runs/best 4")
    assert (results["config"]["limit"], results["config"]["question_order"]) == (limit, "shuffled")


def test_in_the_order_of_the_dataset_a_limit_is_that_of_lm_eval(
    lm: HybridLM, loaded: LoadedTasks, tmp_path: Path
) -> None:
    run = run_lm_eval(lm, loaded, limit=5, order="dataset", output=tmp_path / "out")
    assert [sample["doc_id"] for sample in read(run)[1]["toy_long"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_lm_eval_shows_one_bar_on_a_terminal_and_none_elsewhere(
    is_terminal: bool,
    lm: HybridLM,
    loaded: LoadedTasks,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # no repository, of which git would complain
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    run_lm_eval(lm, loaded, limit=2, order="shuffled", output=tmp_path / "out")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert {line.split(":")[0] for line in shown.err.replace("\r", "\n").splitlines() if line} == {
        "Running loglikelihood requests" for _ in range(is_terminal)
    }


@pytest.mark.parametrize(
    ("output", "told"), [("scores.json", "its name ends in .json"), ("file/below", "file"), ("file", "file")]
)
def test_folders_that_cannot_be_are_told_before_the_work(
    output: str, told: str, lm: HybridLM, loaded: LoadedTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(lm, "loglikelihood", lambda *_: pytest.fail("worked"))
    with pytest.raises((EvaluationError, OSError), match=told):
        run_lm_eval(lm, loaded, limit=2, order="shuffled", output=tmp_path / output)


@pytest.mark.parametrize("size", [3000, 12_000])  # of the results a part, or these whole and of the samples a part
def test_files_that_are_not_whole_are_an_error(
    size: int, lm: HybridLM, loaded: LoadedTasks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.CRITICAL),
        files_of_at_most(size),
        pytest.raises(EvaluationError, match=r"could not write its results to .*best 4; free some space"),
    ):
        run_lm_eval(lm, loaded, limit=None, order="shuffled", output=tmp_path / "out")


def test_a_subject_without_questions_is_named(
    lm: HybridLM, loaded: LoadedTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(loaded.tasks["toy_long"]), "eval_docs", property(lambda task: []))
    with pytest.raises(EvaluationError, match="has no questions; leave it out"):
        run_lm_eval(lm, loaded, limit=2, order="shuffled", output=tmp_path / "out")


def test_helper_ranks_are_told_apart(
    lm: HybridLM, loaded: LoadedTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(EvaluationError, match="run without LOCAL_RANK"):
        run_lm_eval(lm, loaded, limit=2, order="shuffled", output=tmp_path / "out")


def test_groups_that_share_a_subject_are_refused_before_the_work(lm: HybridLM, tmp_path: Path) -> None:
    """lm-eval takes each subject once; a group within another, or a task beside its group, it can ask."""
    tasks = write_tasks(tmp_path / "tasks", {name: letter_docs(4) for name in "abc"}, group="all")
    for name, members in (("left", '["a", "b"]'), ("right", '["b", "c"]')):
        (tasks / f"{name}.yaml").write_text(f"group: {name}\ntask: {members}\n")
    with pytest.raises(EvaluationError, match="groups left and right share b, and lm-eval cannot ask both; name one"):
        run_lm_eval(lm, load_tasks(TaskSource(("left", "right"), tasks)), limit=2, order="dataset", output=tmp_path)
    beside = load_tasks(TaskSource(("left", "b"), tasks))
    run = run_lm_eval(lm, beside, limit=2, order="dataset", output=tmp_path / "out")
    assert list(run.subjects) == ["a", "b"]
