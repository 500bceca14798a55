"""The folder of one search: its paths, its configuration on disk, and what may be done in it again."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from genetic_algorithm import result
from genetic_algorithm.differences import differences, told
from genetic_algorithm.errors import SearchError
from genetic_algorithm.layer_set import LayerSet

try:
    import fcntl
except ImportError:  # Windows: nothing then stops a second search in the same folder
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
_CONFIG = "config.json"
_log = logging.getLogger(__name__)
_TIMESTAMP = re.compile(r"[0-9A-Za-z_]{1,64}")


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Every file of one run; no other place puts these names together."""

    folder: Path
    timestamp: str

    @property
    def config(self) -> Path:
        """What this run is; written first."""
        return self.folder / _CONFIG

    @property
    def journal(self) -> Path:
        """Every answer, appended as it comes."""
        return self.folder / "journal.jsonl"

    @property
    def workers(self) -> Path:
        """The state of the workers, where a search has several."""
        return self.folder / "workers.json"

    @property
    def cluster(self) -> Path:
        """Where other hosts can join, while a search that has several workers runs."""
        return self.folder / "cluster.json"

    @property
    def holder(self) -> Path:
        """Who runs the search, while it runs."""
        return self.folder / "holder.json"

    @property
    def log(self) -> Path:
        """For `tail -f`."""
        return self.folder / f"search_log_{self.timestamp}.txt"

    @property
    def observers(self) -> Path:
        """How far --log-to is; written only where that is asked for."""
        return self.folder / "log_to.json"

    @property
    def report(self) -> Path:
        """A page for people, rewritten while the run goes on."""
        return self.folder / "report.html"

    @property
    def report_data(self) -> Path:
        """What the page shows and neither the result nor the configuration says."""
        return self.folder / "report.json"

    @property
    def result(self) -> Path:
        """Written last, whole."""
        return self.folder / f"search_result_{self.timestamp}.json"


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run folder that is ours. `finished` is the result document where the run is over."""

    paths: RunPaths
    is_resumed: bool
    finished: dict[str, Any] | None


def timestamp_now() -> str:
    """Local time, as it appears in file names."""
    return time.strftime("%Y%m%d_%H%M%S")


def project_root() -> Path:
    """The project this package was installed from; the working folder when it was installed as a copy."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def peek(folder: Path, run: Mapping[str, Any]) -> tuple[RunPaths, dict[str, Any]] | None:
    """Check, before anything is loaded or written, that a run may use `folder`.

    Returns:
        The paths and the result document where that run is over, else None.

    Raises:
        SearchError: if the folder holds something else or another configuration.
    """
    folder = folder.expanduser().absolute()
    if not (folder / _CONFIG).exists():
        _check_empty(folder)
        return None
    paths = _take_up(folder, json.loads(json.dumps(dict(run))))
    document = _finished(paths)
    if document is not None:
        return paths, document
    with _lockable(paths.config) as file:
        _lock(file.fileno(), paths)  # that somebody holds it is told before models are loaded
    return None


@contextlib.contextmanager
def opened(folder: Path | None, run: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[OpenedRun]:
    """Make a run folder, or take up the one that is there, and keep others out of it meanwhile.

    Args:
        folder: where; None makes `results/real_<timestamp>` below the project.
        run: JSON values that must be the same for a run to go on.
        about: JSON values that are only kept: command, versions.

    Raises:
        SearchError: if the folder holds something else, another configuration or a search that is running.
        OSError: if it cannot be written.
    """
    run = json.loads(json.dumps(dict(run)))  # as it will read back: tuples become lists
    if folder is None:
        folder = _new_folder(project_root() / "results")
    folder = folder.expanduser().absolute()
    config = folder / _CONFIG
    is_resumed = config.exists()
    if is_resumed:
        paths = _take_up(folder, run)
    else:
        _make(folder)
        paths = RunPaths(folder, timestamp_now())
        document = {"format": FORMAT, "timestamp": paths.timestamp, "run": run, **about}
        write_json(paths.config, document)
    with _only_one(paths):
        yield OpenedRun(paths, is_resumed, _finished(paths))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON, so that the file is whole or not there."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name and move into place, so that the file is whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def versions() -> dict[str, str | None]:
    """Of this project, its commit and what it runs on; libraries only as far as they are loaded."""
    found: dict[str, str | None] = {"python": platform.python_version(), "commit": _commit()}
    for name in ("ga-layer-search", "numpy", "torch", "transformers", "lm_eval"):
        if name in sys.modules or name == "ga-layer-search":
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:  # run from a folder, not installed
                found[name] = None
    return found


def _commit() -> str | None:
    command = ["git", "-C", str(project_root()), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _new_folder(results: Path) -> Path:
    stamp = timestamp_now()
    for attempt in range(1, 1000):
        folder = results / (f"real_{stamp}" if attempt == 1 else f"real_{stamp}_{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # two searches in one second
            continue
        return folder
    raise SearchError(f"{results} is full of folders named real_{stamp}; name one with --output-dir")


def _make(folder: Path) -> None:
    _check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        entry.unlink(missing_ok=True)  # left by a run that was killed before it began


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SearchError(f"--output-dir {folder} is a file; name a folder")
    for entry in folder.iterdir() if folder.exists() else ():
        if not (entry.name.startswith(f".{_CONFIG}.") and entry.name.endswith(".tmp")):
            raise SearchError(
                f"--output-dir {folder} is not empty and not a search run (it has {entry.name} and no "
                f"{_CONFIG}); choose a new or empty folder"
            )


def _take_up(folder: Path, run: Mapping[str, Any]) -> RunPaths:
    path = folder / _CONFIG
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        timestamp, theirs = str(document["timestamp"]), dict(document["run"])
        if not _TIMESTAMP.fullmatch(timestamp):  # it becomes part of file names
            raise ValueError(f"its timestamp is {timestamp[:40]!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SearchError(
            f"{path} is not the configuration of a search run ({type(error).__name__}: {error}); choose "
            "another --output-dir"
        ) from error
    differing = ", ".join(told(*difference) for difference in differences(theirs, run))
    if differing:
        raise SearchError(
            f"{folder} holds a run of another configuration: {differing}; set it back to resume, or choose "
            "another --output-dir"
        )
    return RunPaths(folder, timestamp)


def _finished(paths: RunPaths) -> dict[str, Any] | None:
    if not paths.result.exists():
        return None
    try:
        document = json.loads(paths.result.read_text(encoding="utf-8"))
        result.table(document)  # what cannot be told is damaged
        usage, best, _ = document["usage"]["in_all"], document["final_results"][0], document["base"]
        _ = usage["question_evaluations"], usage["seconds"], best["holdout_accuracy"]
        if not isinstance(best["layers"], list):
            raise TypeError("layers are a list")
        LayerSet.from_indices(best["layers"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
        raise SearchError(
            f"{paths.result} is damaged ({type(error).__name__}: {error}); delete that file and give the "
            "same command again: the answers are in the journal"
        ) from error
    return dict(document)


@contextlib.contextmanager
def _only_one(paths: RunPaths) -> Iterator[None]:
    """Hold the run for this process; the system lets go of it however the process ends."""
    with _lockable(paths.config) as file:
        if not _lock(file.fileno(), paths):
            _log.warning("the disk of %s has no locks: see to it that no second search runs there", paths.folder)
        if os.fstat(file.fileno()).st_ino != os.stat(paths.config).st_ino:
            raise SearchError(f"another search has just begun in {paths.folder}; give the command again to follow it")
        paths.cluster.unlink(missing_ok=True)  # of a driver that was killed
        write_json(paths.holder, {"host": platform.node(), "pid": os.getpid(), "since": timestamp_now()})
        try:
            yield
        finally:
            paths.holder.unlink(missing_ok=True)


def _lockable(path: Path) -> BinaryIO:
    """The open file. NFS locks only what is open for writing; on a volume that is read-only nobody writes."""
    try:
        return path.open("r+b")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return path.open("rb")


def _lock(descriptor: int, paths: RunPaths) -> bool:
    """Until the file is closed; returns whether there are locks here.

    Raises:
        SearchError: if another holds it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SearchError(
            f"another search is running in {paths.folder}{_holder(paths.holder)}; wait for it, "
            f"{_how_to_help(paths)}, or choose another --output-dir"
        ) from None
    except OSError:  # a file system without locks: the journal stays sound with several writers
        return False
    return True


def _how_to_help(paths: RunPaths) -> str:
    try:
        told = json.loads(paths.cluster.read_text(encoding="utf-8"))
        if told["loopback"] is False:
            return "help it with --join"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return "stop it and start it with --listen and --gpus or --cpu-workers so that --join can help it"


def _holder(path: Path) -> str:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        words = f"process {told['pid']} on {told['host']}, since {told['since']}".split()
        return f" ({' '.join(words)})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
