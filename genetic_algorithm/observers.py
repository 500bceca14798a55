"""Other places that a running search tells how far it is: TensorBoard and Weights & Biases, where asked for.

Their packages are imported only then. Nothing that fails in here ends a search.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import netrc
import os
import re
import sysconfig
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from genetic_algorithm import run_folder
from genetic_algorithm.errors import SearchError

Values = Mapping[str, float | str | None]
NEEDS = {"wandb": ("wandb",), "tensorboard": ("torch", "tensorboard")}
"""By the name that --log-to takes: the packages that must be there."""
_WANDB_BEGIN_S = 30.0  # to reach a service that may be down
_WANDB_FINISH_S = 60.0  # for what is not uploaded when the search is over; it stays on disk for `wandb sync`
_WANDB_FLUSH_S = 1.0  # what is younger is lost where the search is killed
_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Takes numbers and words by name. Steps are question-evaluations; they never go back."""

    def log(self, step: int, values: Values) -> None:
        """Write what holds after `step` question-evaluations."""

    def finish(self, step: int, values: Values) -> None:
        """Write what the search found."""

    def close(self) -> None:
        """Let go of files and processes, whether the search is over or not."""


def require_packages(names: Sequence[str]) -> None:
    """Check, before anything is loaded, that these observers can be made.

    Raises:
        SearchError: if a package is not installed, or wandb would have to ask for a key.
    """
    for name in names:
        lacking = [package for package in NEEDS[name] if not _is_installed(package)]
        if lacking:
            remedy = f"install it with: pip install {' '.join(lacking)}"
            if not os.access(sysconfig.get_path("purelib"), os.W_OK):  # as in the image
                remedy = (
                    "this environment cannot be written, so leave --log-to out: report.html shows how the search goes"
                )
            raise SearchError(f"--log-to {name} needs the package {lacking[0]}, which is not here; {remedy}")
    mode = os.environ.get("WANDB_MODE") or "offline"
    if "wandb" in names and mode not in ("offline", "disabled", "dryrun") and not _has_wandb_key():
        raise SearchError(
            f"WANDB_MODE is {mode}, but there is no key for wandb; run `wandb login`, set WANDB_API_KEY, or leave "
            "WANDB_MODE out to log offline"
        )


class Observers:
    """Those of a run by name. One that fails is warned of once and left out from then on.

    What is told again by a resumed search, which goes through its journal, is written once: how far each observer is
    stands in `record`, with the id of the wandb run.

    Args:
        names: of `NEEDS`.
        record: a JSON file in the run's folder.
        config: what the run is: JSON values.
    """

    def __init__(self, names: Sequence[str], record: Path, config: Mapping[str, Any]) -> None:
        self._record = record
        self._steps, self._run_id = _read(record)
        self._observers: dict[str, Observer] = {}
        for name in names:
            with self._leaving_out(name):
                self._observers[name] = _make(name, record.parent, self._run_id, config)

    def log(self, step: int, values: Values) -> None:
        """As an observer does; skipped by those that are further."""
        told = {name: step for name in self._observers if step > self._steps.get(name, -1)}
        for name in told:
            with self._leaving_out(name):
                self._observers[name].log(step, values)
        self._note({name: step for name in told if name in self._observers})

    def finish(self, step: int, values: Values) -> None:
        """As an observer does."""
        for name in list(self._observers):
            with self._leaving_out(name):
                self._observers[name].finish(step, values)

    def close(self) -> None:
        """As an observer does."""
        for name in list(self._observers):
            with self._leaving_out(name):
                self._observers.pop(name).close()

    @contextlib.contextmanager
    def _leaving_out(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a service or a disk that fails must not end a search of days
            self._leave_out(name, error)

    def _note(self, steps: Mapping[str, int]) -> None:
        if not steps:
            return
        self._steps.update(steps)
        try:
            run_folder.write_json(self._record, {"steps": self._steps, "wandb_run": self._run_id})
        except OSError as error:
            for name in list(self._observers):
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _log.warning("--log-to %s fails (%s): it is left out, and the search goes on without it", name, reason)
        left = self._observers.pop(name, None)
        if left is not None:
            with contextlib.suppress(Exception):
                left.close()


def _make(name: str, folder: Path, run_id: str, config: Mapping[str, Any]) -> Observer:
    if name == "wandb":
        return WandB(folder, run_id, config)
    return TensorBoard(folder / "tensorboard")


class TensorBoard:
    """Writes event files: numbers as scalars, words as text.

    Args:
        folder: where; each sitting adds a file.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late: needs a package that few have

        self._writer = SummaryWriter(str(folder))
        self._words: dict[str, str] = {}

    def log(self, step: int, values: Values) -> None:
        """Write and flush; words only where they changed."""
        for name, value in values.items():
            if isinstance(value, str):
                if self._words.get(name) != value:
                    self._writer.add_text(name, value, step)
                self._words[name] = value
            elif value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, step: int, values: Values) -> None:
        """The result, under `final/`."""
        self.log(step, {f"final/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """One run of Weights & Biases, gone on with by every sitting of the search.

    Offline where there is no key and WANDB_MODE says nothing, so that it neither asks nor reaches for the network;
    `wandb sync` uploads such a run later. The project is WANDB_PROJECT, else ga-layer-search.

    Args:
        folder: of the search; wandb makes a folder `wandb` there.
        run_id: of the wandb run.
        config: what the search is.
    """

    def __init__(self, folder: Path, run_id: str, config: Mapping[str, Any]) -> None:
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
        if mode == "offline":  # its reports of errors are sent even from an offline run
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # late: few have it, and it is slow to import

        self._is_finished = False
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ga-layer-search"),
            dir=str(folder),
            id=run_id,
            name=folder.name,
            config=dict(config),
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                silent=True,  # our own lines stay the only ones on stderr
                console="off",
                disable_git=True,
                init_timeout=_WANDB_BEGIN_S,
                finish_timeout=_WANDB_FINISH_S,
                x_transaction_log_flush_interval=_WANDB_FLUSH_S,
            ),
        )

    def log(self, step: int, values: Values) -> None:
        """Add a row to the run's history."""
        self._run.log({name: value for name, value in values.items() if value is not None}, step=step, commit=True)

    def finish(self, step: int, values: Values) -> None:
        """The result, as the run's summary under `final/`."""
        self._run.summary.update({f"final/{name}": value for name, value in values.items()})
        self._is_finished = True

    def close(self) -> None:
        """End this sitting; the run counts as finished only with a result."""
        self._run.finish(exit_code=0 if self._is_finished else 1)


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of that name, as wandb itself makes one, is none."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


def _has_wandb_key() -> bool:
    """Whether wandb finds a key by itself: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    names = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for name in names:
        with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            if netrc.netrc(Path(name).expanduser()).authenticators(host):
                return True
    return False


def _read(record: Path) -> tuple[dict[str, int], str]:
    """How far each observer is, and the id of the wandb run; fresh ones where nothing can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        document = json.loads(record.read_text(encoding="utf-8"))
        steps = {str(name): int(step) for name, step in document["steps"].items()}
        if re.fullmatch(r"[\w-]{1,64}", run_id := str(document["wandb_run"])):  # what wandb takes
            return steps, run_id
    return {}, uuid.uuid4().hex[:8]
