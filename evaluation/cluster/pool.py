"""What a driver needs of whatever starts its workers and carries calls to them."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.cluster.worker import Facts, Given
from genetic_algorithm import LayerSet


@dataclass(frozen=True, slots=True, eq=False)
class Started:
    """A worker has loaded its models."""

    worker: int
    facts: Facts


@dataclass(frozen=True, slots=True, eq=False)
class Replied:
    """A worker has answers to what it was asked, all or some."""

    worker: int
    ticket: int
    given: Given


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """A worker is gone, or never came up; `error` where its own code raised while it loaded."""

    worker: int
    reason: str
    error: BaseException | None = None


Event = Started | Replied | Lost


class Pool(Protocol):
    """Workers by number. No call waits for a worker, but for `describe`; what happens arrives in `events`."""

    events: queue.SimpleQueue[Event]

    def slots(self) -> int:
        """Workers that there is room for now; 0 where all that were started are lost."""

    def spawn(self, worker: int) -> None:
        """Start a worker; `Started` or `Lost` follows."""

    def submit(self, worker: int, ticket: int, sets: Sequence[LayerSet], questions: NDArray[np.int64]) -> None:
        """Ask a worker; `Replied` with that ticket, or `Lost`, follows."""

    def more(self, worker: int, ticket: int) -> None:
        """Let a worker go on whose reply was not the last; another follows. To ask it anew ends what it was at."""

    def describe(self, worker: int) -> tuple[dict[str, Any], float | None]:
        """See `Worker.describe`."""

    def dismiss(self, worker: int) -> None:
        """End a worker; nothing follows."""

    def announce(self, path: Path) -> None:
        """Write down where other hosts can join, if they can; the file goes when the pool is closed."""

    def close(self, *, at_once: bool = False) -> None:
        """End all workers, and whatever was started for them; `at_once`, without waiting until they have ended."""
