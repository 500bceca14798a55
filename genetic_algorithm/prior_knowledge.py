"""What a search may be told beforehand: accuracies of single layers, and sets to begin with, each from a file."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genetic_algorithm.errors import SearchError
from genetic_algorithm.layer_set import LayerSet


def read_single_scores(path: Path) -> dict[int, float]:
    """Accuracy by layer, from JSON or CSV; rows of a CSV with several layers are passed over.

    Raises:
        SearchError: naming the entry that cannot be.
    """
    text = _read(path)
    rows: list[tuple[str, Any]]
    if text.lstrip().startswith("{"):
        document = _json(path, text)
        rows = list(document.items()) if isinstance(document, dict) else []
    else:
        lines = list(csv.reader(io.StringIO(text)))
        if not lines or lines[0][:1] != ["layers"] or len(lines[0]) < 2:
            raise SearchError(f'{path} is neither JSON like {{"17": 0.51}} nor CSV with the header layers,mmlu_acc')
        rows = [(line[0], line[1] if len(line) > 1 else "") for line in lines[1:] if line]
    return checked_scores([row for row in rows if "+" not in row[0] and row[0] != "none"], str(path))


def checked_scores(rows: Iterable[tuple[str, Any]], where: str) -> dict[int, float]:
    """Accuracy by layer, from pairs of the two; `where` they stand is for messages.

    Raises:
        SearchError: naming the entry that cannot be.
    """
    scores: dict[int, float] = {}
    for layer, value in rows:
        try:
            score = math.nan if isinstance(value, bool) else float(value)
            index = int(layer)
        except (TypeError, ValueError):
            score, index = math.nan, -1
        if index < 0 or not 0 <= score <= 1:
            raise SearchError(f"{where}: {layer}: {value!r} is not a layer with an accuracy between 0 and 1")
        if index in scores:
            raise SearchError(f"{where} gives layer {index} twice; keep one")
        scores[index] = score
    if not scores:
        raise SearchError(f"{where} holds no single-layer score; give one for each layer")
    return scores


def read_elite(path: Path) -> list[LayerSet]:
    """Layer sets, from a JSON list of lists or the result of an earlier search.

    Raises:
        SearchError: naming the entry that cannot be.
    """
    document = _json(path, _read(path))
    if isinstance(document, dict):
        results = document.get("final_results")
        if not isinstance(results, list):
            raise SearchError(f"{path} is no search result (it has no final_results) and no list of layer lists")
        document = [entry.get("layers") if isinstance(entry, dict) else entry for entry in results]
    if not isinstance(document, list) or not document:
        raise SearchError(f"{path} must hold a list of layer lists such as [[11, 13, 17], [13, 17]]")
    sets = []
    for entry in document:
        if not isinstance(entry, list):
            raise SearchError(f"{path}: {entry!r} is not a list of layers such as [11, 13, 17]")
        try:
            sets.append(LayerSet.from_indices(entry))
        except SearchError as error:
            raise SearchError(f"{path}: {error}") from error
    return list(dict.fromkeys(sets))


def check_scores(scores: Mapping[int, float], num_layers: int, path: object) -> None:
    """Refuse scores of a layer that the model does not have, or none for one that it has."""
    outside = [i for i in scores if i >= num_layers]
    if outside:
        raise SearchError(
            f"{path} scores layer {outside[0]}, but the model's layers are 0 to {num_layers - 1}; give the "
            "file of this model"
        )
    lacking = [i for i in range(num_layers) if i not in scores]
    if lacking:
        raise SearchError(
            f"{path} lacks layer {lacking[0]}; give all {num_layers} layers, or leave the option out and "
            "they are measured"
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SearchError(f"{path} does not exist; check the path") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise SearchError(f"{path} is not a text file ({error})") from error


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SearchError(f"{path} is not JSON ({error})") from error
