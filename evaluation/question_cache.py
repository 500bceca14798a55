"""Tokenised questions on disk, under a key that holds everything that shapes them.

A hit needs no lm-eval where the key is known from files alone (a pair's own task folder, a local copy of
MMLU). A damaged file is rebuilt with a warning; a folder that cannot be written costs a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.config import QuestionOrder
from evaluation.questions import ORDER_SEED, QuestionSet, build_questions
from evaluation.tasks import LoadedTasks, TaskSource, lm_eval_version, load_tasks

log = logging.getLogger(__name__)

FORMAT = 3
"""Raise it when the arrays, their meaning or the way questions are built change."""

_DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, ArithmeticError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def cached_questions(
    source: TaskSource,
    tokenizer: Any,
    *,
    max_length: int,
    order: QuestionOrder,
    limit: int | None,
    cache_dir: Path,
) -> QuestionSet:
    """The questions of `source` from disk, or rendered, tokenised and then kept there.

    Args:
        source: The tasks.
        tokenizer: A transformers tokenizer.
        max_length: Most tokens of a row.
        order: Within each subject.
        limit: Questions per subject; None for all.
        cache_dir: Folder of cache files; made when missing.
    """
    shared = {
        "format": FORMAT,
        "order": order,
        "seed": ORDER_SEED,
        "limit": limit,
        "max_length": max_length,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "lm_eval": lm_eval_version(),
    }
    from_files = source.fingerprint()
    loaded: LoadedTasks | None = None
    if from_files is None:
        loaded = load_tasks(source)
        key = shared | {"tasks": list(source.names), "loaded": loaded.fingerprint()}
    else:
        key = shared | {"source": from_files}
    path = cache_dir / f"questions-{key_digest(key)}.npz"
    if path.exists():
        try:
            return load(path, key)
        except _DAMAGE as error:
            log.warning("question cache %s is damaged (%s): building it again", path, _first_line(error))
    questions = build_questions(
        loaded or load_tasks(source), tokenizer, max_length=max_length, order=order, limit=limit
    )
    try:
        save(path, questions, key)
    except OSError as error:
        log.warning("questions are not kept in %s (%s): the next run renders them again", path, _first_line(error))
    return questions


def key_digest(key: Mapping[str, Any]) -> str:
    """SHA-256 of a key of JSON values, shortened to a file name."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:40]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of everything in a tokenizer that can move a token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if isinstance(rules, dict):
        # State of the last call, not of the tokenizer: no row is ever padded or cut by it.
        rules = {name: value for name, value in rules.items() if name not in ("padding", "truncation")}
    state = {
        "class": type(tokenizer).__name__,
        "rules": rules,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "options": {name: getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")},
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()


def save(path: Path, questions: QuestionSet, key: Mapping[str, Any]) -> None:
    """Write `questions` under a temporary name and move them into place."""
    head = {
        "key": key,
        "subject_names": questions.subject_names,
        "groups": questions.groups,
        "about": questions.about,
        "digest": questions.digest,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            text = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
            contents: dict[str, Any] = {"head": text, **questions.arrays()}
            np.savez(file, **contents)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path, key: Mapping[str, Any]) -> QuestionSet:
    """Read what `save` wrote.

    Raises:
        ValueError: if the contents are of another key or not what was written; zip, NumPy and JSON raise
            errors of their own for a torn file.
    """
    with np.load(path, allow_pickle=False) as file:
        head = json.loads(file["head"].tobytes())
        arrays = {name: file[name] for name in file.files if name != "head"}
    if head["key"] != json.loads(json.dumps(key)):
        raise ValueError("it holds the questions of another key")
    questions = QuestionSet(
        subject_names=tuple(head["subject_names"]),
        groups={name: tuple(below) for name, below in head["groups"].items()},
        about=head["about"],
        **arrays,
    )
    if questions.digest != head["digest"]:
        raise ValueError("its contents do not match their checksum")
    return questions


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
