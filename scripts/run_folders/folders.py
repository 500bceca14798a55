"""Which folders are searches, and where their files lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class RunError(Exception):
    """A folder that cannot be shown; the message is one line that says what to do."""


@dataclass(frozen=True)
class Run:
    """The files of one search, those that are not there yet as well."""

    folder: Path
    timestamp: str

    @property
    def config(self) -> Path:
        """What the search is; a running one holds a lock on it."""
        return self.folder / "config.json"

    @property
    def journal(self) -> Path:
        """Every answer, appended as it comes."""
        return self.folder / "journal.jsonl"

    @property
    def log(self) -> Path:
        """Lines for people, appended."""
        return self.folder / f"search_log_{self.timestamp}.txt"

    @property
    def workers(self) -> Path:
        """Who works on the search, rewritten every few seconds; only where there are several."""
        return self.folder / "workers.json"

    @property
    def report(self) -> Path:
        """A page for people, rewritten while the search goes on."""
        return self.folder / "report.html"

    @property
    def result(self) -> Path:
        """Written last, whole."""
        return self.folder / f"search_result_{self.timestamp}.json"


def open_run(folder: Path) -> Run:
    """The search in a folder.

    Raises:
        RunError: there is none.
    """
    config = folder / "config.json"
    try:
        document = json.loads(config.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"{folder} is not the folder of a search: it has no config.json") from error
    except OSError as error:
        raise RunError(f"{config} cannot be read ({error.strerror})") from error
    except ValueError:
        document = None
    if not isinstance(document, dict) or not {"timestamp", "run"} <= document.keys():
        raise RunError(f"{folder} is not the folder of a search: its config.json is of something else")
    return Run(folder, str(document["timestamp"]))


def find_runs(named: Sequence[Path], results: Path, *, is_all: bool) -> list[Run]:
    """The searches named, else all below `results`, the oldest first, or the newest of them.

    Raises:
        RunError: there is none, or a named folder is no search.
    """
    if named:
        return [open_run(folder) for folder in named]
    found = []
    for config in results.glob("*/config.json"):
        try:
            found.append((config.stat().st_mtime, open_run(config.parent)))
        except (OSError, RunError):  # of something else, or just now taken away
            continue
    if not found:
        raise RunError(f"there is no search in {results}; start one with scripts/quick_test_real.sh")
    runs = [run for _, run in sorted(found, key=lambda item: (item[0], item[1].folder))]
    return runs if is_all else runs[-1:]
