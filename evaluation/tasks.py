"""Finds lm-eval's task objects by name: those of a task folder, lm-eval's own, or MMLU from a local folder.

Prompts, few-shot examples, splits and gold answers stay those of lm-eval: nothing is rendered here.
Importing lm-eval takes a second and starting its TaskManager on all its tasks five to nine, so both happen
only when tasks are loaded, and only as much of the TaskManager as the names need.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from evaluation.errors import EvaluationError
from evaluation.mmlu_folder import MMLU, check_mmlu_dir, check_mmlu_task, mmlu_task_dir, write_groups
from evaluation.task_files import check_complete, names_in, refuse_nested, spell_names

log = logging.getLogger(__name__)

# What `lm_eval` itself seeds with, so that tasks which draw at random draw the same.
_PYTHON_SEED, _OTHER_SEED = 0, 1234
_LOCAL_FORMATS = {"json", "csv", "parquet", "text"}  # of `datasets`, which reads their files itself


@dataclass(frozen=True)
class TaskSource:
    """Where the tasks of a run come from."""

    names: tuple[str, ...]
    """Tasks or groups."""
    task_dir: Path | None = None
    """Folder of task files, looked through before lm-eval's own tasks."""
    mmlu_dir: Path | None = None
    """Local copy of the hub dataset `cais/mmlu`."""
    num_fewshot: int | None = None
    """Solved examples before each question; None for what each task says."""
    own_dir: Path | None = None
    """A user's folder of task files, whose tasks go before all others of the same name."""

    @property
    def folders(self) -> list[Path]:
        """Folders of task files; of two tasks of one name that of the later folder is taken."""
        return [folder for folder in (self.task_dir, self.own_dir) if folder is not None]

    def fingerprint(self) -> dict[str, Any] | None:
        """All that shapes the tasks, from files alone; None where the tasks must be loaded to know it.

        So it is with a user's folder, which may hold or read anything.
        """
        if self.own_dir is not None:
            return None
        found = {"tasks": list(self.names), "num_fewshot": self.num_fewshot, "lm_eval": lm_eval_version()}
        left = set(self.names)
        if self.mmlu_dir is not None:
            check_mmlu_dir(self.mmlu_dir)
            prompts = list(mmlu_task_dir().rglob("*yaml"))
            found |= {"mmlu": _hash_mmlu(self.mmlu_dir), "prompts": hash_files(mmlu_task_dir(), prompts)}
            left -= names_in(mmlu_task_dir())
        if left and self.task_dir is not None and left <= names_in(self.task_dir):
            files = [file for file in self.task_dir.rglob("*") if file.is_file() and file.suffix != ".pyc"]
            if _reads_only_its_folder(files):
                found["task_dir"] = hash_files(self.task_dir, files)
                left = set()
        return None if left else found


@dataclass(frozen=True)
class LoadedTasks:
    """Task objects of lm-eval, ready to render."""

    tasks: Mapping[str, Any]
    """Subjects by name, in lm-eval's order."""
    groups: Mapping[str, tuple[str, ...]]
    """Each group asked for, or within one, with all subjects below it."""
    names: Mapping[str, tuple[str, ...]]
    """Each task, group or tag asked for, with all its subjects."""
    manager: Any
    """The TaskManager that knows their names."""

    def fingerprint(self) -> dict[str, Any]:
        """Configuration and data of every task, for sources without a fingerprint of their own."""
        return {name: _task_fingerprint(task) for name, task in self.tasks.items()}


def lm_eval_version() -> str:
    """The installed version, read without importing lm-eval."""
    return metadata.version("lm_eval")


def load_tasks(source: TaskSource) -> LoadedTasks:
    """Load every task that `source` names, groups and tags spread out into their subjects.

    A subject that several names share is there once. One whose name is taken by other questions, or by the same ones
    asked otherwise, is called `NAME::SUBJECT`, as lm-eval calls the tasks that a group defines itself.

    Raises:
        EvaluationError: for an unknown name (with the nearest known ones), a task that is not multiple choice
            or scores answers in its own way, a folder that is not MMLU, questions that cannot be loaded.
    """
    with _as_lm_eval_seeds(), _quiet_loading(), TemporaryDirectory(prefix="mmlu_tasks_") as include:
        manager = _manager_for(source)
        _check_output_types(manager, source.names)
        in_folder, of_folder = _from_folder(source, Path(include)) if source.mmlu_dir else ({}, manager)
        gathered = _Gathered()
        for name in source.names:
            known_as = in_folder.get(name, name)
            found = _load(of_folder if name in in_folder else manager, known_as, name, _hint(source, manager, name))
            gathered.add(name, known_as, found)
        for subject, task in gathered.tasks.items():
            _check_scorable(subject, task.OUTPUT_TYPE, vars(task.config))
            _set_fewshot(subject, task, source.num_fewshot)
        return LoadedTasks(gathered.tasks, gathered.groups, gathered.names, manager)


def unknown_task(name: str, known: Iterable[str], *, where: str = "") -> EvaluationError:
    """An error that names what `name` may have been meant to be."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists those of lm-eval"
    return EvaluationError(f"unknown task or subject {name!r}{where}; {hint}")


def hash_files(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the names relative to `root` and the contents of `files`, whatever their order."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _hash_mmlu(folder: Path) -> str:
    """SHA-256 of all that shapes a question in a copy of MMLU."""
    files = [file for file in (*folder.glob("*.md"), *folder.glob("*/*.parquet")) if file.is_file()]
    # The hub's training split, 47 MB of it, is no part of any question.
    return hash_files(folder, [file for file in files if file.parent.name != "auxiliary_train"])


def _manager(*folders: Path | str) -> Any:
    """A TaskManager of these folders alone: milliseconds."""
    return _start_manager(*folders, include_defaults=False)


@cache
def _full_manager(*folders: Path) -> Any:
    """A TaskManager of lm-eval's own tasks and those of these folders: five to nine seconds."""
    return _start_manager(*folders, include_defaults=True)


def _start_manager(*folders: Path | str, include_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    paths = [str(Path(folder).absolute()) for folder in folders]
    try:
        return TaskManager(include_path=paths, include_defaults=include_defaults)
    except TypeError as error:  # it sorts the names
        raise EvaluationError(
            f"a task file in {' or '.join(paths)} has a name that is no text ({error}); write the name in quotes"
        ) from error


def _manager_for(source: TaskSource) -> Any:
    """The smallest TaskManager that knows every name."""
    folders = source.folders
    for folder in folders:
        refuse_nested(folder)
    if source.mmlu_dir is not None:
        check_mmlu_dir(source.mmlu_dir)
        known = _manager(mmlu_task_dir()).all_tasks
        if not set(source.names) & set(known):
            raise unknown_task(source.names[0], known, where=" of MMLU, all that --mmlu-dir serves")
        folders = [mmlu_task_dir(), *folders]
    if folders:
        manager = _manager(*folders)
        if set(source.names) <= set(manager.all_tasks):
            return manager
    manager = _full_manager(*source.folders)
    for name in source.names:
        if name not in manager.all_tasks:
            where = ""
            if source.own_dir is not None:
                where = f"; {spell_names(source.own_dir)}"  # or names a file that lm-eval cannot read and passes over
            raise unknown_task(name, manager.all_tasks, where=where)
    return manager


def _from_folder(source: TaskSource, include: Path) -> tuple[dict[str, str], Any]:
    """As what lm-eval knows each name of MMLU when its questions come from the folder, and who knows it so."""
    assert source.mmlu_dir is not None
    plain = _manager(mmlu_task_dir())
    names = [name for name in source.names if name in plain.all_tasks]
    for leaf in _leaves(plain, names):
        check_mmlu_task(source.mmlu_dir, leaf.cfg)
    import datasets

    cache_dir = Path(datasets.config.HF_DATASETS_CACHE, f"mmlu_{_hash_mmlu(source.mmlu_dir)[:16]}")
    written = write_groups(names, plain, source.mmlu_dir, include, cache_dir)
    return written, _manager(mmlu_task_dir(), include)


def _load(manager: Any, known_as: str, name: str, hint: str) -> Mapping[str, Any]:
    """What lm-eval loads for one name: `tasks`, and `groups` where there are any."""
    try:
        found: Mapping[str, Any] = manager.load([known_as])
    except Exception as error:  # what lm-eval and datasets make of data that are damaged is any error
        reason = _of_first_question(error) or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EvaluationError(f"task {name} cannot be loaded: {reason}; {hint}") from error
    return found


def _of_first_question(error: Exception) -> str:
    """What is wrong with the question that lm-eval tries a task on, which its error does not say; empty otherwise."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    found = {} if innermost is None else innermost.tb_frame.f_locals
    answer, choices = found.get("test_target"), found.get("test_choice")
    if not isinstance(error, IndexError) or not isinstance(choices, list):
        return ""
    if isinstance(answer, int) and answer >= len(choices):
        return f"question 0 (counted from 0) is answered by {answer}, which is none of its {len(choices)} choices"
    return "a choice of question 0 (counted from 0) is empty"


class _Gathered:
    """Subjects and groups of one name after the other; arguments as `LoadedTasks`."""

    def __init__(self) -> None:
        self.tasks: dict[str, Any] = {}
        self.groups: dict[str, tuple[str, ...]] = {}
        self.names: dict[str, tuple[str, ...]] = {}

    def add(self, name: str, known_as: str, found: Mapping[str, Any]) -> None:
        """Take in what lm-eval loaded for `name`, which it knows as `known_as`."""
        for subject, task in found["tasks"].items():
            if subject in self.tasks and _settings(task) != _settings(self.tasks[subject]):
                task.set_config(key="task", value=f"{name}::{subject}")
            self.tasks.setdefault(task.task_name, task)
        self.names[name] = tuple(task.task_name for task in found["tasks"].values())
        for group_name, group in found.get("groups", {}).items():
            below = tuple(task.task_name for task in group.get_all_tasks())
            if self.groups.get(group_name, below) != below:
                group_name = f"{name}::{group_name}"
            if group_name != known_as or name == known_as:
                self.groups[group_name] = below


def _hint(source: TaskSource, manager: Any, name: str) -> str:
    """What to do when the data of a task cannot be read."""
    paths = {entry.cfg.get("dataset_path") for entry in _leaves(manager, [name])}
    if MMLU in paths and source.mmlu_dir is not None:
        return f"check that {source.mmlu_dir} is a whole copy of {MMLU}"
    if MMLU in paths:
        return f"give a local copy of {MMLU} as --mmlu-dir, name other --tasks, or check the network"
    if paths == {None}:
        return f"check the files in {source.own_dir or source.task_dir}"
    if paths <= _LOCAL_FORMATS:
        return f"relative data_files count from the working folder, {Path.cwd()}, as in lm-eval; give whole paths"
    return "check the network and HF_ENDPOINT"


def _leaves(manager: Any, members: Iterable[Any]) -> Iterator[Any]:
    """Index entries of all tasks below `members`, as far as they are known before any data is loaded.

    A member is a name, or what a group file may hold instead: a mapping that names a group or a task.
    """
    for member in members:
        below = member if isinstance(member, dict) else {}
        name = below.get("group", below.get("task")) if below else member
        entry = manager.task_index.get(name) if isinstance(name, str) else None
        if entry is None:
            inline = below.get("task")
            yield from _leaves(manager, inline if isinstance(inline, list) else [])
        elif name in manager.all_tags:
            yield from _leaves(manager, sorted(entry.tags))
        elif name in manager.all_groups:
            yield from _leaves(manager, entry.cfg.get("task") or [])
        elif entry.cfg and "class" not in entry.cfg:
            yield replace(entry, cfg={**entry.cfg, **below})


def _check_output_types(manager: Any, names: Iterable[str]) -> None:
    """Refuse what cannot be scored here before its data is fetched."""
    for entry in _leaves(manager, names):
        if entry.yaml_path is not None and not entry.yaml_path.is_relative_to(mmlu_task_dir().parent):
            check_complete(entry.name, entry.yaml_path, entry.cfg)  # lm-eval's own tasks are
        _check_scorable(entry.name, entry.cfg.get("output_type", "generate_until"), entry.cfg)


def _check_scorable(name: str, output_type: object, config: Mapping[str, Any]) -> None:
    """Refuse a task unless an answer to it is right or wrong by the log-probabilities of its choices."""
    if output_type != "multiple_choice":
        raise EvaluationError(
            f"task {name} is of type {output_type}, not multiple_choice; choose a multiple-choice task"
        )
    if config.get("process_results"):
        raise EvaluationError(
            f"task {name} scores answers with a function of its own; choose a task whose metric is acc"
        )
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise EvaluationError(f"task {name} shows images or sound; choose a task of text alone")


def _set_fewshot(name: str, task: Any, num_fewshot: int | None) -> None:
    """Set shots and seed as lm-eval's `simple_evaluate` does, which leaves a task that says 0 at 0."""
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own == 0 and num_fewshot != 0:
        log.warning("task %s is zero-shot by its own configuration: %d examples ignored", name, num_fewshot)
    elif num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_OTHER_SEED)
    shots = task.get_config("num_fewshot")
    pool = len(task.sampler.df) if hasattr(task, "sampler") else 0
    if shots > pool:
        raise EvaluationError(f"task {name} has {pool} solved examples, not {shots}; ask for fewer")


def _task_fingerprint(task: Any) -> dict[str, Any]:
    splits = task.dataset.items() if hasattr(task.dataset, "items") else ()
    return {
        "config": _settings(task),
        "data": {str(name): str(getattr(split, "_fingerprint", None)) for name, split in splits},
    }


def _settings(task: Any) -> Any:
    """How a task asks, as JSON values; its functions are given as their source."""
    return json.loads(json.dumps(task.dump_config(), default=str))


def _reads_only_its_folder(files: Iterable[Path]) -> bool:
    """Whether the task files name no data elsewhere: neither a hub dataset nor an include above the folder.

    Only then do the folder's contents say all; what its own Python functions read is taken to be in it too.
    """
    for file in files:
        if file.suffix in (".jsonl", ".json", ".py", ".md", ".parquet"):
            continue
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(line.lstrip(" \"'").startswith("dataset_path") or ".." in line for line in lines):
            return False
    return True


@contextmanager
def _as_lm_eval_seeds() -> Iterator[None]:
    """Run the body under the seeds of `lm_eval`, as some tasks shuffle when they load; give chance back."""
    # NumPy's old global generator is what such tasks draw from.
    before, before_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - see above
    try:
        random.seed(_PYTHON_SEED)
        np.random.seed(_OTHER_SEED)  # noqa: NPY002 - see above
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)  # noqa: NPY002 - see above


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Load data without a bar for each subject and without lm-eval's hint for each task that reads own files."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    noisy = logging.getLogger("lm_eval.api.task")
    datasets.disable_progress_bars()
    noisy.addFilter(_is_no_hint)
    try:
        yield
    finally:
        noisy.removeFilter(_is_no_hint)
        if shown:
            datasets.enable_progress_bars()


def _is_no_hint(record: logging.LogRecord) -> bool:
    return "Custom kwargs can be passed" not in record.getMessage()
