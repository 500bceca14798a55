#!/usr/bin/env python
"""How often several workers of one host read the weights from its disk: once, as the page cache serves the others.

    python benchmarks/reads.py                    # Linux; 0.6 GB of disk, 1.2 GB of memory for each worker

The bundled pair with an MLP 85 times as wide, random there, is put out of the page cache before workers load it.
Counted are the bytes that each worker's process caused to be read from the disk (`read_bytes` in /proc/PID/io).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
import torch
from checkpoints import forget
from safetensors.torch import load_file, save_file

from evaluation.build import build_evaluator
from evaluation.cluster.driver import ClusterEvaluator
from evaluation.cluster.options import ClusterOptions
from evaluation.cluster.ray_pool import RayPool
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.entry import run_tool
from model_preparation.sources import locate
from models.pairs import Role, get_pair

NARROW, WIDE = 384, 32768
ROLES: tuple[Role, ...] = ("base", "donor")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each number of workers, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="%(default)s")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).resolve()
        size = sum(write_wide(folder / role, role) for role in ROLES)
        found = {}
        for count in args.workers:
            for role in ROLES:
                forget(folder / role)
            found[count] = read_by_workers(count, folder)
            each = ", ".join(f"{read / 1e6:.0f}" for read in found[count])
            print(
                f"{count} workers: {sum(found[count]) / 1e6:.0f} MB read of files of {size / 1e6:.0f} MB (each {each})"
            )
    print(json.dumps({"files": size, "read": found}))
    return 0


def write_wide(folder: Path, role: Role) -> int:
    """A model of the bundled pair with wide random MLPs; returns the bytes of its weights."""
    source = Path(get_pair("tiny").source(role).folder or "")
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (config["mlp_cfg"] if role == "base" else config)["intermediate_size"] = WIDE
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(source / "model.safetensors")
    for key, tensor in state.items():
        if ".mlp." in key:
            shape = [WIDE if size == NARROW else size for size in tensor.shape]
            state[key] = (0.001 * torch.randn(shape)).to(tensor.dtype)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return (folder / "model.safetensors").stat().st_size


def read_by_workers(count: int, folder: Path) -> list[int]:
    """Bytes that each worker read from the disk until all had loaded the models."""
    options = ClusterOptions(gpus=(), cpu_workers=count)
    with ClusterEvaluator(RayPool(options, partial(evaluator, folder))) as asked:
        while asked.ready < count:
            asked.wait()
        processes = psutil.Process().children(recursive=True)
        return [
            process.io_counters().read_bytes for process in processes if process.name().startswith("ray::RayWorker")
        ]


def evaluator(folder: Path) -> Engine:
    """Of the wide pair, with as few questions as can be."""
    config = EvalConfig(pair=f"{folder}/base:{folder}/donor", tasks=("tiny",), device="cpu")
    return build_evaluator(config, max_limit=1, locate=locate)


if __name__ == "__main__":
    import reads  # this file under its own name, by which workers can import it

    sys.exit(run_tool("reads.py", reads.main))
