"""Workers through Ray: a cluster of our own on this host, which others may join, or one that runs already.

A cluster of our own listens on the loopback interface alone unless it is told an address, and answers nobody without
its token. Its daemons end with this process, however it ends (reaper.py).
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import queue
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.cluster import reaper
from evaluation.cluster.options import ClusterOptions
from evaluation.cluster.pool import Event, Lost, Replied, Started
from evaluation.cluster.worker import Worker, limit_threads
from evaluation.errors import EvaluationError, in_words
from genetic_algorithm import Evaluator, LayerSet

SLOT = "ga_worker"
"""Ray's name of the room for one worker on a host of ours."""
CONNECT_S = 10.0
"""Seconds that the head of a cluster has to answer."""
SHORT = "/tmp"
"""Where Ray's folders lie: paths of its sockets have at most 107 bytes, which $TMPDIR of a job may use up."""
OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray's least; answers are small."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # theirs is 15: a worker would wait for whatever else a shared host does
    # A node that is gone is noticed in about 3 s, not in 30.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch between addresses that other hosts reach and the loopback interface."""

_log = logging.getLogger(__name__)


def require_ray() -> None:
    """Refuse where Ray is not installed.

    Raises:
        EvaluationError: with the command that installs it.
    """
    try:
        metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise EvaluationError(
            "several workers need Ray, which is not installed; install it with: pip install -r requirements-cluster.txt"
        ) from None


@cache
def _token() -> str:
    """Of every cluster that this process starts: Ray reads it once in the life of a process."""
    return secrets.token_hex(32)


class RayPool:
    """See `Pool`.

    Args:
        options: Which workers.
        make: Makes the evaluator in a worker's process; picklable.
    """

    def __init__(self, options: ClusterOptions, make: Callable[[], Evaluator]) -> None:
        """Start Ray, or join it."""
        require_ray()
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._options, self._make = options, make
        self._workers: dict[int, Any] = {}
        self._ray: Any = None
        self._watch: Any = None
        self._announced: Path | None = None
        self._before: dict[str, str | None] = {}
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        """On a busy machine Ray's daemons may come up too late: those of our own are given a second chance."""
        with _own_signals():
            if self._options.address is not None:
                self._join(self._options.address)
                return
            try:
                self._start()
            except EvaluationError as error:
                _log.warning("%s: that is done here, once", error)
                self.close()
                self._start()

    def _join(self, address: str) -> None:
        _require_answer(address)
        self._set(ENVIRONMENT)
        import ray

        self._ray = ray
        try:
            ray.init(
                address=address,
                runtime_env={"env_vars": _settings(os.environ)},  # else workers have those of whoever started Ray
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as error:
            raise EvaluationError(f"--ray-address {address}: {in_words(error)}") from error

    def _start(self) -> None:
        options = self._options
        self._set(ENVIRONMENT)
        mark, self._token = secrets.token_hex(8), _token()
        self._folder = folder = Path(tempfile.mkdtemp(prefix="ga_ray_", dir=SHORT))
        self._set({reaper.MARK: mark, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token})
        self._watch = reaper.start(mark, folder)
        self._set({} if options.listen else LOOPBACK)
        self._set({"CUDA_VISIBLE_DEVICES": visible_devices(options.gpus)} if options.gpus else {})
        import ray

        self._ray = ray
        try:
            ray.init(
                address="local",
                num_cpus=options.here,
                num_gpus=len(options.gpus),
                resources={SLOT: options.here},
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address=options.listen or "127.0.0.1",
                _temp_dir=str(folder),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as error:
            raise EvaluationError(f"Ray does not start on this machine ({in_words(error)}); try again") from error

    def announce(self, path: Path) -> None:
        """Write where hosts can join, for this user's eyes only, until the pool is closed."""
        if self._options.address is not None:
            return
        address = self._ray.get_runtime_context().gcs_address
        document = {
            "address": address,
            "token": self._token,
            "ray": metadata.version("ray"),
            "host": socket.gethostname(),
            "loopback": ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback,
            "gpus": bool(self._options.gpus),
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file)
        os.replace(temporary, path)
        self._announced = path

    def slots(self) -> int:
        """One for each GPU of the cluster, or each room for a worker; none when all had to start again."""
        try:
            if self._options.address is None and not self._is_in_its_cluster():
                self._start_again()
                return 0
            has = self._ray.cluster_resources()
        except Exception as error:  # Ray itself is gone
            raise EvaluationError(
                f"the Ray cluster does not answer ({in_words(error)}); start again to resume"
            ) from error
        if self._options.address is None:
            return int(has.get(SLOT, 0))
        if self._options.cpu_workers:
            return min(int(has.get("CPU", 0)), self._options.cpu_workers)
        return int(has.get("GPU", 0))

    def _is_in_its_cluster(self) -> bool:
        """Whether Ray's daemon of this host lives; all workers are lost with it, and no new ones come up."""
        here = self._ray.get_runtime_context().get_node_id()
        return any(node["Alive"] for node in self._ray.nodes() if node["NodeID"] == here)

    def _start_again(self) -> None:
        _log.warning("Ray's daemon of this host died: Ray starts again, and all workers do")
        workers, announced = list(self._workers), self._announced
        self.close()
        self._connect()
        if announced is not None:
            self.announce(announced)
        for worker in workers:
            self.events.put(Lost(worker, "Ray's daemon of the driver's host died"))

    def spawn(self, worker: int) -> None:
        """An actor; Ray waits where the room of one that died is not free yet."""
        on_gpu = bool(self._options.gpus) or (self._options.address is not None and not self._options.cpu_workers)
        device = "cuda:0" if on_gpu else "cpu"
        needs = {} if self._options.address is not None else {SLOT: 1}
        kind = self._ray.remote(
            num_cpus=0 if needs else 1, num_gpus=1 if on_gpu else 0, resources=needs, max_restarts=0, max_task_retries=0
        )(RayWorker)
        actor = kind.remote(self._make, device, None if on_gpu else self._options.threads)
        self._workers[worker] = actor
        self._when_done(actor.facts.remote(), partial(Started, worker), worker, starting=True)

    def submit(self, worker: int, ticket: int, sets: Sequence[LayerSet], questions: NDArray[np.int64]) -> None:
        """A call of the actor."""
        actor = self._workers.get(worker)
        if actor is not None:  # else it was lost with its cluster, which the driver has yet to hear of
            self._when_done(actor.answers.remote(list(sets), questions), partial(Replied, worker, ticket), worker)

    def more(self, worker: int, ticket: int) -> None:
        """A call of the actor."""
        if (actor := self._workers.get(worker)) is not None:
            self._when_done(actor.more.remote(), partial(Replied, worker, ticket), worker)

    def describe(self, worker: int) -> tuple[dict[str, Any], float | None]:
        """A call of the actor, waited for."""
        try:
            found: tuple[dict[str, Any], float | None] = self._ray.get(self._workers[worker].describe.remote())
        except Exception as error:
            raise EvaluationError(f"worker {worker} cannot tell of itself: {in_words(error)}") from error
        return found

    def dismiss(self, worker: int) -> None:
        """Kill the actor."""
        if (actor := self._workers.pop(worker, None)) is not None:
            with contextlib.suppress(Exception):  # it may be dead
                self._ray.kill(actor)

    def close(self, *, at_once: bool = False) -> None:
        """Leave the cluster; one of our own ends. `at_once` leaves that to the watch, for a process that ends now."""
        if self._announced is not None:
            self._announced.unlink(missing_ok=True)
        if at_once and self._watch is not None:
            self._watch.stdin.close()
            return
        for worker in list(self._workers):
            self.dismiss(worker)
        if self._ray is not None:
            with contextlib.suppress(Exception):
                self._ray.shutdown()
        if self._watch is not None:
            self._watch.stdin.close()
            self._watch.wait()
            self._watch = None
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def _set(self, environment: Mapping[str, str]) -> None:
        """Of this process and all that it starts, until the pool is closed."""
        for name, value in environment.items():
            self._before.setdefault(name, os.environ.get(name))
            os.environ[name] = value

    def _when_done(self, call: Any, event: Callable[[Any], Event], worker: int, *, starting: bool = False) -> None:
        """Put an event into the queue once a call is over, from a thread of Ray's."""

        def done(future: Future[Any]) -> None:
            error = future.exception()
            if error is None:
                self.events.put(event(future.result()))
                return
            own = getattr(error, "cause", None)
            is_own = isinstance(own, Exception) and not type(own).__module__.startswith("ray.")
            if is_own and not starting:
                self.dismiss(worker)  # a worker that cannot even reply
            self.events.put(Lost(worker, in_words(own if is_own and own else error), own if is_own else None))

        call.future().add_done_callback(done)


def _require_answer(address: str) -> None:
    """Refuse where nobody listens: Ray itself would try for more than a minute, and then end this process."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and "://" not in address):
        return  # `auto`, or what Ray says of it
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise EvaluationError(
            f"--ray-address {address}: nobody answers there ({in_words(error)}); `ray status` on the cluster's head "
            "names its address"
        ) from error


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that say where models and questions are, and how they are run; no secrets, which all would see."""
    prefixes = ("GA_", "HF_", "MODELSCOPE_", "TRITON_", "TORCH")
    return {name: value for name, value in environment.items() if name.startswith(prefixes) and "TOKEN" not in name}


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes the signals that end a process for itself; the search has ends of its own for them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # nobody may change them here
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class RayWorker(Worker):
    """A worker as Ray's actor."""

    def __init__(self, make: Callable[[], Evaluator], device: str, threads: int | None) -> None:
        """Take what makes the evaluator."""
        if threads is not None:
            limit_threads(threads)
        super().__init__(make, device)


def visible_devices(gpus: Sequence[int]) -> str:
    """CUDA_VISIBLE_DEVICES for these of the GPUs that are visible now."""
    now = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return ",".join(now[gpu] if now else str(gpu) for gpu in gpus)
