"""Gives this host's devices to a run whose driver is elsewhere: `run_search --output-dir RUN --join`."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from evaluation.cluster import reaper
from evaluation.cluster.options import ClusterOptions
from evaluation.cluster.ray_pool import ENVIRONMENT, OBJECT_STORE_BYTES, SHORT, SLOT, require_ray, visible_devices
from evaluation.errors import EvaluationError
from genetic_algorithm.report.words import plural

POLL_S = 0.5
HINT_S = 30.0
"""After so long without a run that can be joined it is told what one needs."""
_ANNOUNCED = {"address": str, "token": str, "ray": str, "host": str, "gpus": bool, "loopback": bool}

_HINT = (
    "a run can be joined once its workers are up, if it was started with --listen and --gpus or --cpu-workers; "
    "one that was not can be stopped and started again with them, and goes on where it was"
)
_log = logging.getLogger(__name__)


def join(folder: Path, options: ClusterOptions) -> int:
    """Wait for the run in `folder`, and help until it is over; returns the exit code.

    A driver that is started again is joined again.

    Raises:
        EvaluationError: if Ray is missing here or is of another version, or the run cannot be reached.
    """
    require_ray()
    folder = folder.expanduser().absolute()
    print(f"run_search: waiting for the run in {folder}", file=sys.stderr, flush=True)
    refused: Mapping[str, Any] = {}
    hint_at = time.monotonic() + HINT_S
    while not _is_over(folder):
        cluster = _read(folder / "cluster.json", refused)
        if not cluster or cluster == refused:
            if time.monotonic() > hint_at:
                hint_at = math.inf
                print(f"run_search: still waiting; {_HINT}", file=sys.stderr, flush=True)
            time.sleep(POLL_S)
            continue
        _check(cluster, options)
        with_what = plural(options.here, "worker")
        print(f"run_search: joining {cluster['address']} with {with_what}", file=sys.stderr, flush=True)
        if not _help(folder / "cluster.json", cluster, options):
            refused = cluster  # that driver is gone, or cannot be reached
    print(f"run_search: the run in {folder} is over", file=sys.stderr)
    return 0


def _is_over(folder: Path) -> bool:
    return any(folder.glob("search_result_*.json"))


def _read(path: Path, otherwise: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a run announces; nothing where it does not, and `otherwise` where that cannot be told now."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return otherwise
    if not isinstance(document, dict):
        return otherwise
    is_whole = all(isinstance(document.get(name), kind) for name, kind in _ANNOUNCED.items())
    return document if is_whole else otherwise


def _check(cluster: Mapping[str, Any], options: ClusterOptions) -> None:
    if cluster["gpus"] != bool(options.gpus):
        kind, flag = ("GPUs", "--gpus all") if cluster["gpus"] else ("the CPU", "--cpu-workers N")
        raise EvaluationError(f"the run's workers are on {kind}, and all must be; join with {flag}")
    here = metadata.version("ray")
    if cluster["ray"] != here:
        raise EvaluationError(f"the run's Ray is {cluster['ray']}, that of this host is {here}; install the same")
    if cluster["loopback"]:
        raise EvaluationError(
            f"the run can be reached from within {cluster['host']} alone; stop it and start it again with --listen and "
            "an address of that host that others reach: it goes on where it was"
        )


def _help(path: Path, cluster: Mapping[str, Any], options: ClusterOptions) -> bool:
    """Be a node of the run's cluster for as long as it is announced; whether this host was one."""
    mark = secrets.token_hex(8)
    environment = {**os.environ, **ENVIRONMENT, reaper.MARK: mark}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster["token"]}
    if options.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = visible_devices(options.gpus)
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start"]
    command += [f"--address={cluster['address']}", "--block", f"--num-cpus={options.here}"]
    command += [f"--num-gpus={len(options.gpus)}", f"--resources={json.dumps({SLOT: options.here})}"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
    if options.listen:
        command += [f"--node-ip-address={options.listen}"]
    folder = Path(tempfile.mkdtemp(prefix="ga_join_", dir=SHORT))
    command += [f"--temp-dir={folder}"]  # else Ray makes one here that has the name of the driver's, and leaves it
    watch = reaper.start(mark, folder)
    try:
        with tempfile.TemporaryFile("w+") as said:
            node = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
            )
            while node.poll() is None and _read(path, cluster) == cluster:
                time.sleep(POLL_S)
            said.seek(0)
            lines = [line.strip() for line in said if line.strip()]
        was_in = any("Ray runtime started" in line for line in lines)
        if node.returncode and not was_in:
            _log.warning("could not join %s: %s", cluster["address"], lines[-1] if lines else "Ray says nothing")
    finally:  # the node ends with the watch
        assert watch.stdin is not None
        watch.stdin.close()
        watch.wait()
    return was_in
