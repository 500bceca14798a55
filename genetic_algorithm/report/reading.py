"""What lies in the folder of a run, read for its report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genetic_algorithm.errors import SearchError
from genetic_algorithm.run_folder import RunPaths


@dataclass(frozen=True, slots=True)
class RunDocuments:
    """The documents of one run.

    `result` is what it found, or would find if it ended now; None before the first sets are ranked. `data` is
    `report.json`, None where a run has none.
    """

    paths: RunPaths
    config: dict[str, Any]
    result: dict[str, Any] | None
    data: dict[str, Any] | None
    is_over: bool

    @classmethod
    def read(cls, paths: RunPaths) -> RunDocuments:
        """Read them.

        Raises:
            SearchError: if one is damaged, or there is nothing yet to tell of.
            OSError: if one cannot be read.
        """
        config = _json(paths.config)
        data, result = _json(paths.report_data), _json(paths.result)
        if config is None or (data is None and result is None):
            raise SearchError(
                f"{paths.folder} has no {paths.report_data.name} and no result yet: the search writes them when it has "
                "run for a little while; give its command again to go on with it"
            )
        is_over = result is not None
        return cls(paths, config, result if is_over else (data or {}).get("result"), data, is_over)

    @property
    def search(self) -> dict[str, Any]:
        """How was searched."""
        return dict(self.config["run"]["search"])

    @property
    def evaluator(self) -> dict[str, Any]:
        """What answered."""
        return dict(self.config["run"]["evaluator"])

    @property
    def name(self) -> str:
        """What was searched: the pair, or the evaluator given in its place."""
        return str(self.evaluator.get("pair") or self.evaluator.get("factory") or "unknown")


def paths_of(folder: Path) -> RunPaths:
    """The paths of the run in a folder.

    Raises:
        SearchError: if there is none.
    """
    folder = folder.expanduser().absolute()
    config = folder / "config.json" if folder.is_dir() else None
    if config is None or not config.is_file():
        raise SearchError(
            f"{folder} is not the folder of a search (it has no config.json); name one, as results/real_..."
        )
    with damage_told(folder):
        document = json.loads(config.read_text(encoding="utf-8"))
        timestamp = str(document["timestamp"])
        _ = document["run"]["search"], document["run"]["evaluator"]
    return RunPaths(folder, timestamp)


@contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """Run a body that takes documents apart; one that is not as it should be becomes one clear line.

    Raises:
        SearchError: in place of what the body raises.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        raise SearchError(
            f"a file of the search in {folder} is damaged ({type(error).__name__}: {error}); give the search's command "
            "again, which writes report.json and, where that is deleted, the result anew from the journal"
        ) from error


def _json(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise SearchError(
            f"{path} is damaged ({type(error).__name__}); delete it and give the search's command again"
        ) from error
    if not isinstance(document, dict):
        raise SearchError(f"{path} is damaged (no JSON object); delete it and give the search's command again")
    return document
