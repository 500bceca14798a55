"""Which workers a run has, and how they are reached; nothing here loads Ray."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass

from evaluation.devices import gpu_count
from evaluation.errors import EvaluationError


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """Workers of this host, of a Ray cluster that runs already, and of hosts that join."""

    gpus: tuple[int, ...] = ()
    """A worker on each of these GPUs, counted within CUDA_VISIBLE_DEVICES."""
    cpu_workers: int = 0
    """Workers without a GPU; of a cluster that runs already, at most so many."""
    address: str | None = None
    """A Ray cluster that runs already, HOST:PORT or auto; None to start one here."""
    listen: str | None = None
    """Address of this host at which others may join; None to be reached from this host alone."""
    threads: int = 1
    """Cores of a worker without a GPU."""

    @property
    def here(self) -> int:
        """Workers of this host."""
        return len(self.gpus) or self.cpu_workers


def parse_options(
    *,
    gpus: str | None,
    cpu_workers: int | None,
    address: str | None,
    listen: str | None,
    gpu: str | None = None,
) -> ClusterOptions | None:
    """The flags of the command line; None where none of them is given.

    Args:
        gpus: `0,2` or `all`.
        cpu_workers: How many.
        address: Of a Ray cluster.
        listen: Of this host.
        gpu: What says the same for a single process, so that both cannot be given.

    Raises:
        EvaluationError: for flags that contradict one another, or devices that are not there.
    """
    if gpus is None and cpu_workers is None and address is None:
        if listen is not None:
            raise EvaluationError(
                "--listen says where others may join; say what runs here, too: --gpus or --cpu-workers"
            )
        return None
    if gpu is not None:
        others = "--ray-address" if gpus is None and cpu_workers is None else "--gpus or --cpu-workers"
        raise EvaluationError(f"--gpu {gpu} and {others} contradict one another; leave one out")
    if cpu_workers is not None and gpus is not None:
        raise EvaluationError(f"--cpu-workers {cpu_workers} and --gpus {gpus} contradict one another; leave one out")
    if address is not None and (gpus is not None or listen is not None):
        raise EvaluationError("--ray-address takes the workers of that cluster; leave --gpus and --listen out")
    if cpu_workers is not None and cpu_workers < 1:
        raise EvaluationError(f"--cpu-workers {cpu_workers} is below 1")
    if listen is not None:
        listen = _address(listen)
    cores = len(os.sched_getaffinity(0))
    return ClusterOptions(
        gpus=() if gpus is None else parse_gpus(gpus),
        cpu_workers=cpu_workers or 0,
        address=address,
        listen=listen,
        threads=max(1, cores // cpu_workers) if cpu_workers else 1,
    )


def parse_gpus(text: str) -> tuple[int, ...]:
    """`0,2`, or `all` that are visible.

    Raises:
        EvaluationError: naming what is no GPU here.
    """
    count = gpu_count()
    here = f"GPUs 0 to {count - 1}" if count else "no GPU that torch can use"
    words = [str(i) for i in range(count)] if text == "all" else text.split(",")
    for word in words:
        if not (word.isascii() and word.isdecimal()):
            raise EvaluationError(f"--gpus {text}: {word!r} is no GPU; give numbers like 0,1, or all")
        if int(word) >= count:
            raise EvaluationError(f"--gpus {text}: this machine has {here}; give others, or --cpu-workers")
    if not words:
        raise EvaluationError(f"--gpus {text}: this machine has {here}; give --cpu-workers")
    if len({*map(int, words)}) < len(words):
        raise EvaluationError(f"--gpus {text} names a GPU twice")
    return tuple(map(int, words))


def _address(text: str) -> str:
    """An address of this host in numbers, as Ray wants it."""
    try:
        found = ipaddress.ip_address(text or "no name")
    except ValueError:
        try:
            found = ipaddress.ip_address(socket.gethostbyname(text or "no name"))
        except (OSError, UnicodeError) as error:
            raise EvaluationError(
                f"--listen {text}: no address of that name ({error}); give this host's address"
            ) from error
    if found.is_loopback:  # and Ray would listen at another address instead, one that others do reach
        raise EvaluationError(
            f"--listen {text}: no other host reaches {found}; give this host's address, or leave it out to work alone"
        )
    try:
        with socket.socket(socket.AF_INET6 if found.version == 6 else socket.AF_INET) as probe:
            probe.bind((str(found), 0))
        is_here = not found.is_unspecified  # 0.0.0.0 would tell others nothing
    except OSError:
        is_here = False
    if not is_here:
        raise EvaluationError(f"--listen {text} is no address of this host; give one at which others reach it")
    return str(found)
