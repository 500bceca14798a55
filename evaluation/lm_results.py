"""lm-eval's whole run on one model: its scores, and its own files, which its tools and leaderboards read.

OUTPUT/<model>/results_<time>.json and, with a line for each question, samples_<task>_<time>.jsonl.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.config import QuestionOrder
from evaluation.errors import EvaluationError
from evaluation.hybrid_lm import HybridLM
from evaluation.questions import gold_choices, question_order
from evaluation.tasks import LoadedTasks
from genetic_algorithm import Score
from genetic_algorithm.evaluator import together


@dataclass(frozen=True)
class LmEvalRun:
    """What lm-eval made of a model."""

    subjects: dict[str, Score]
    total: Score
    folder: Path
    """Where its files lie."""


def run_lm_eval(
    lm: HybridLM, loaded: LoadedTasks, *, limit: int | None, order: QuestionOrder, output: Path
) -> LmEvalRun:
    """Ask the first `limit` questions of each subject (None: all) and write lm-eval's files below `output`.

    Raises:
        EvaluationError: a subject has no questions, two groups share one, an answer cannot be scored, the files could
            not be written, or lm-eval takes this process for a helper rank.
        OSError: the folder cannot be made.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    chosen = {name: _first(name, task, order, limit) for name, task in loaded.tasks.items()}
    golds = {name: _golds(task, chosen[name]) for name, task in loaded.tasks.items()}
    roots = list(_roots(loaded))
    if output.suffix == ".json":  # lm-eval would take it for a file
        raise EvaluationError(f"{output} is to be a folder, but its name ends in .json; give another")
    output.mkdir(parents=True, exist_ok=True)  # before hours of work
    tracker = EvaluationTracker(output_path=str(output))
    with _one_bar(), _quiet_git():
        results = simple_evaluate(
            model=lm,
            model_args={"pretrained": lm.name},
            tasks=roots,
            samples=None if limit is None else chosen,
            evaluation_tracker=tracker,
            task_manager=loaded.manager,
        )
    if results is None:
        raise EvaluationError("lm-eval gives no results where LOCAL_RANK is not 0; run without LOCAL_RANK")
    samples = results.pop("samples")
    subjects = {name: _score(task, samples[name], golds[name], limit) for name, task in loaded.tasks.items()}
    results["config"] |= {"model": "hybrid", "limit": limit, "question_order": order}
    tracker.general_config_tracker.model_source = "hybrid"
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in loaded.tasks:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    folder = output / str(tracker.general_config_tracker.model_name_sanitized)
    _check_written(folder, getattr(tracker, "date_id", ""), {name: len(samples[name]) for name in loaded.tasks})
    return LmEvalRun(subjects, together(subjects.values(), _part(limit)), folder)


@contextmanager
def _one_bar() -> Iterator[None]:
    """Leave out lm-eval's bar for the rendering of each subject, of which MMLU has 57."""
    import lm_eval.api.task as noisy

    bar, noisy.tqdm = noisy.tqdm, lambda documents, **_: documents
    try:
        yield
    finally:
        noisy.tqdm = bar


@contextmanager
def _quiet_git() -> Iterator[None]:
    """Leave out what git says where there is no repository: lm-eval asks it for the commit of the working folder."""
    import lm_eval.evaluator as asking

    asked, asking.get_git_commit_hash = asking.get_git_commit_hash, _commit
    try:
        yield
    finally:
        asking.get_git_commit_hash = asked


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _first(name: str, task: Any, order: QuestionOrder, limit: int | None) -> list[int]:
    """The documents that are asked, increasing, as lm-eval wants them."""
    documents = question_order(name, len(task.eval_docs), order)[:limit]
    if not len(documents):
        raise EvaluationError(f"task {name} has no questions; leave it out")
    return sorted(documents.tolist())


def _roots(loaded: LoadedTasks) -> Iterator[Any]:
    """lm-eval's groups and tasks that lie in no other group."""
    groups = {name: _group(loaded, name) for name in loaded.groups}
    inner = {child.name for group in groups.values() for child in group.get_all_groups()}
    covered = {name for below in loaded.groups.values() for name in below}
    outer = {name: group for name, group in groups.items() if name not in inner}
    _check_apart(loaded, outer)
    yield from outer.values()
    yield from (task for name, task in loaded.tasks.items() if name not in covered)


def _check_apart(loaded: LoadedTasks, outer: Iterable[str]) -> None:
    """Refuse groups that share a subject, which lm-eval cannot ask together."""
    seen: dict[str, str] = {}
    for name in outer:
        for subject in loaded.groups[name]:
            if subject in seen:
                raise EvaluationError(
                    f"groups {seen[subject]} and {name} share {subject}, and lm-eval cannot ask both; name one"
                )
            seen[subject] = name


def _group(loaded: LoadedTasks, name: str) -> Any:
    """lm-eval's Group of that name: its settings, over the tasks as they were loaded."""
    from lm_eval.api.group import Group
    from lm_eval.config.group import GroupConfig

    entry = loaded.manager.task_index.get(name)
    config = {} if entry is None else entry.cfg or {}
    known = {field: config[field] for field in GroupConfig.__dataclass_fields__ if field in config}
    group = Group.from_config(GroupConfig(**{**known, "group": name}))
    inner = [member for member in config.get("task") or [] if isinstance(member, str) and member in loaded.groups]
    covered = {task for member in inner for task in loaded.groups[member]}
    for member in inner:
        group.add(_group(loaded, member))
    for task in loaded.groups[name]:
        if task not in covered:
            group.add(loaded.tasks[task])
    return group


def _golds(task: Any, documents: list[int]) -> dict[int, frozenset[int]]:
    """The right choices of each document, before any is asked: one without any would end hours of work."""
    docs = task.eval_docs
    return {document: gold_choices(task, document, docs[document]) for document in documents}


def _score(task: Any, samples: list[dict[str, Any]], golds: dict[int, frozenset[int]], limit: int | None) -> Score:
    """How many questions the likeliest choice is right on; of equals the first counts, as in lm-eval's `acc`."""
    by_document = {sample["doc_id"]: sample for sample in samples}  # a task with several filters has each several times
    correct = 0
    for document, sample in by_document.items():
        choices = task.doc_to_choice(sample["doc"])
        # Behind the choices lm-eval may have put the same ones without context, for acc_mutual_info.
        log_probs = [replies[0][0] for replies in sample["resps"][: len(choices)]]
        correct += int(np.argmax(log_probs)) in golds[document]
    return Score(correct=correct, asked=len(by_document), part=_part(limit))


def _part(limit: int | None) -> str:
    return "all" if limit is None else f"limit {limit}"


def _check_written(folder: Path, time: str, lines: dict[str, int]) -> None:
    """Look for lm-eval's files, as it goes on where it cannot write them."""
    results = folder / f"results_{time}.json"
    files = {name: folder / f"samples_{name}_{time}.jsonl" for name in lines}
    try:
        json.loads(results.read_text(encoding="utf-8"))
        whole = all(file.read_bytes().count(b"\n") == lines[name] for name, file in files.items())
    except (OSError, ValueError):
        whole = False
    if not whole:
        raise EvaluationError(
            f"lm-eval could not write its results to {folder}; free some space there, or give another folder"
        )
