"""Several large files written side by side, in the background; the first error stops all of them."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

Advance: TypeAlias = Callable[[int], None]
"""Told how many bytes were written since the last call; raises where writing is to stop."""
_WRITERS = 8
"""At most; each file is hashed by one thread, which may be slower than the disk."""
_READ_AHEAD_SHARE = 4  # of the machine's memory, the part that may be filled ahead
_BLOCK = 16 << 20


class _Stopped(Exception):
    """Another file could not be written, or the user interrupted."""


class Writers:
    """Threads that write files while the caller goes on; made by `writing_beside`."""

    def __init__(self, pool: ThreadPoolExecutor, bar: Any) -> None:
        self._pool, self._bar = pool, bar
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._futures: list[Future[Callable[[], None]]] = []
        self._recorded: set[Future[Callable[[], None]]] = set()

    def start(self, nbytes: int, write: Callable[[Advance], Callable[[], None]]) -> None:
        """Have a file of that many bytes written.

        `write` runs in a thread. What it returns is called by `finish`, so that files are put on record one by one.
        """
        with self._lock:
            self._bar.total = (self._bar.total or 0) + nbytes
            self._bar.refresh()
        self._futures.append(self._pool.submit(write, self._advance))

    def finish(self) -> None:
        """Wait for all files.

        Raises:
            Exception: What the first `write` that failed raised.
        """
        for future in as_completed(self._futures):
            self._put_on_record(future)

    def stop(self) -> None:
        """Have all threads end at their next few megabytes, wait for them, and put on record what was whole."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        for future in self._futures:
            if not future.cancelled() and future.exception() is None:
                self._put_on_record(future)

    def _put_on_record(self, future: Future[Callable[[], None]]) -> None:
        record = future.result()
        if future not in self._recorded:
            self._recorded.add(future)
            record()

    def _advance(self, count: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._bar.update(count)


@contextmanager
def writing_beside(what: str) -> Iterator[Writers]:
    """Writers for the body of a `with`, which calls their `finish`; where it raises they are stopped."""
    import torch
    from tqdm import tqdm

    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)  # PyTorch's own threads, beside those that write, would wait by spinning
    sys.setswitchinterval(1e-4)  # a caller that imports would else hold each of the writers' many calls up for 5 ms
    bar: Any = tqdm(total=0, unit="B", unit_scale=True, desc=what, disable=not sys.stderr.isatty())
    try:
        with _no_collection(), bar, ThreadPoolExecutor(min(_WRITERS, os.cpu_count() or 1)) as pool:
            writers = Writers(pool, bar)
            try:
                yield writers
            finally:
                writers.stop()
    finally:
        torch.set_num_threads(threads)
        sys.setswitchinterval(interval)


@contextmanager
def reading_ahead(*folders: Path) -> Iterator[None]:
    """Read the weights in `folders` into the page cache during the body, which is imports that take seconds."""
    stop = threading.Event()

    def read() -> None:
        left = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _READ_AHEAD_SHARE
        buffer = bytearray(_BLOCK)
        for path in sorted(path for folder in folders for path in folder.glob("*.safetensors")):
            with suppress(OSError), path.open("rb", buffering=0) as file:  # who reads it in earnest will say so
                while not stop.is_set() and left > 0 and (count := file.readinto(buffer)):
                    left -= count

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        with _no_collection():
            yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: it would go again and again through all that the body imports, and halt every thread."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
