"""One model on one hub: what the two hubs have in common."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from models.errors import ModelError
from models.pairs import HubModel

UNFINISHED = ".incomplete"
"""How the name ends of a file that has come in part, in the caches of both hubs."""
_OF_DISKS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
}


class HubError(ModelError):
    """A hub does not give a model; the line says which, why and what to do, and stands well beside another."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model as its hub lists it."""

    name: str
    size: int
    """Bytes; 0 where the hub does not tell."""
    sha256: str | None = None


class Hub(ABC):
    """A model on a hub, reached through that hub's own library.

    Attributes:
        model: Which one.
        host: Where its files come from.
        cache: Folder of the library's cache.
    """

    cache_variable: str
    """Of the environment; names another cache."""
    endpoint_variable: str
    token_variable: str
    own_hosts: tuple[str, ...]
    """Those that the user's token is for; any other is a mirror, and its owner no one to show the token to."""

    def __init__(self, model: HubModel, cache: Path, endpoint: str) -> None:
        self.model = model
        self.cache = cache
        self.use(endpoint)

    def use(self, endpoint: str) -> None:
        """Take the model from there."""
        parts = urlsplit(endpoint)
        self.endpoint = endpoint
        self.host = parts.netloc or endpoint
        self.is_mirror = parts.scheme != "https" or parts.hostname not in self.own_hosts

    @abstractmethod
    def folder(self) -> Path | None:
        """Where the library finds the model, or some of it, on this machine."""

    @abstractmethod
    def files(self) -> list[HubFile]:
        """All files that the hub has of it."""

    @abstractmethod
    def places(self, file: HubFile) -> list[Path]:
        """Where a file may lie on this machine, whole or in part."""

    @abstractmethod
    def fetch(self, small: Sequence[HubFile], weights: Sequence[HubFile]) -> Path:
        """Download files, weights last, so that with them everything is there; return their folder."""

    @abstractmethod
    def settle(self) -> None:
        """Put down, where the cache needs it, that what was fetched is the model that was asked for."""

    @abstractmethod
    def explain(self, error: BaseException) -> str | None:
        """`reason`, for errors of the library."""

    def bytes_here(self, file: HubFile) -> int:
        """How much of a file need not be sent again."""
        for place in self.places(file):
            size = place.stat().st_size if place.is_file() else 0
            if size == file.size or (size < file.size and place.suffix == UNFINISHED):
                return size
        return 0

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what the library raises into one line.

        Raises:
            HubError: says what went wrong.
        """
        try:
            yield
        except ModelError:
            raise
        except Exception as error:
            if (reason := self.reason(error)) is None:
                raise
            raise HubError(reason) from error

    def reason(self, error: BaseException) -> str | None:
        """One line on an error; None for one that is no user's to put right."""
        root = _root(error)
        if isinstance(root, OSError) and root.errno in _OF_DISKS:
            return f"{self.model.id} cannot be written to {self.cache} ({root.strerror})"
        return self.explain(error)

    def about_status(self, status: int, error: BaseException) -> str:
        """What an answer means that the library has no name for."""
        if status >= 500:
            return f"{self.host} is out of order (HTTP {status}), {self.model.id} does not come; run again later"
        if status == 429:
            return f"{self.host} gets too many requests (HTTP 429) to send {self.model.id}; run again in some minutes"
        return f"{self.host} refuses {self.model.id} (HTTP {status}: {brief(error)}); {self.about_token()}"

    def about_network(self, error: BaseException) -> str:
        """That nobody answers, or stops to in the middle."""
        reason = f"{self.host} cannot be reached for {self.model.id} ({brief(_root(error))})"
        return f"{reason}; check the network and {self.endpoint_variable}, and run again to go on"

    def about_missing(self) -> str:
        """That the hub knows no such model, or says so to strangers."""
        at = f" at revision {self.model.revision!r}" if self.model.revision else ""
        return f"{self.host} shows no model {self.model.id}{at}; check the id, or {self.about_token()}"

    def about_token(self) -> str:
        """How to come with a token."""
        if self.is_mirror:
            return f"unset {self.endpoint_variable}, because mirrors get no token"
        return f"check {self.token_variable}"

    def about_content(self, name: str) -> str:
        """That a file is not what was listed."""
        reason = f"{self.host} sends another {name} of {self.model.id} than it lists"
        return f"{reason}; run again, or choose a mirror with {self.endpoint_variable}"


def brief(error: BaseException) -> str:
    """The first line of what a library says."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]


def _root(error: BaseException) -> BaseException:
    """Where a chain of errors began; libraries wrap "connection refused" many times over."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error
