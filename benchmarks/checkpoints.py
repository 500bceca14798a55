"""How long extraction and checkpoint creation take at full size beside `cp`, and how much memory.

python benchmarks/checkpoints.py --work /fast/disk                 8B shapes: 34 GB of generated weights, 56 GB of disk
python benchmarks/checkpoints.py --work /tmp/x --shapes small      a look at the tool itself

The pair has the shapes of llamba-8b and generated weights. Before every timed command what it reads is put out of the
page cache. Times are of the command, and until all it wrote is on the disk (`sync`). `cp` copies the bytes that the
tool beside it wrote. No GPU is used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.configuration_llamba import LlambaConfig
from models.loading import empty_model

ROOT = Path(__file__).resolve().parents[1]
SHARD_BYTES = 5_000_000_000
BLOCK_BYTES = 64 << 20
LAYERS = {"8b": (11, 13, 17, 21), "small": (0, 2)}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True, slots=True)
class Timing:
    """One command."""

    seconds: float
    synced: float
    """Seconds until all was on the disk."""
    peak_bytes: int
    """Largest resident size of the process."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder on the disk to measure")
    parser.add_argument("--shapes", choices=tuple(LAYERS), default="8b", help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="of each command [%(default)s]")
    arguments = parser.parse_args(argv)
    work = arguments.work / "ga_layer_search_benchmark"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        rows = measure(work, arguments.shapes, arguments.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(table(rows, arguments.shapes))
    return 0


def measure(work: Path, shapes: str, rounds: int) -> dict[str, tuple[int, list[Timing]]]:
    """Bytes written and timings of each command."""
    donor, base = work / "donor", work / "base"
    layers, checkpoint, copy = work / "layers", work / "checkpoint", work / "copy"
    tool = [sys.executable, "-m"]
    rows: dict[str, tuple[int, list[Timing]]] = {}

    def one(name: str, command: Sequence[str | Path], target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        os.sync()
        forget(work)
        timing = run([str(word) for word in command])
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        rows.setdefault(name, (size, []))[1].append(timing)
        print(f"{name}: {timing.seconds:.1f} s, {timing.synced:.1f} s with sync", file=sys.stderr)

    write_donor(donor, shapes)
    for _ in range(rounds):
        extract = [*tool, "model_preparation.extract_layers", "--model_name", donor, "--output_dir", layers]
        one("extraction", extract, layers)
        one("cp of the extracted layers", ["cp", "-r", layers, copy], copy)
        shutil.rmtree(copy)
    for path in (*donor.glob("*.safetensors"), *layers.glob("layer_*.pt")):  # the disk need not hold what is not used
        if path.parent == donor or int(path.stem[6:]) not in LAYERS[shapes]:
            path.unlink()
    write_base(base, shapes)
    for _ in range(rounds):
        create = [*tool, "model_preparation.create_replaced_model_checkpoint", "--base", base, "--donor", donor]
        create += ["--llama_layers_dir", layers, "--layers", *map(str, LAYERS[shapes])]
        one("creation (safetensors)", [*create, "--formats", "safetensors", "--output_dir", checkpoint], checkpoint)
        one("cp of the checkpoint", ["cp", "-r", checkpoint, copy], copy)
        shutil.rmtree(copy)
    return rows


def run(command: list[str]) -> Timing:
    """Run one command on the CPU."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    began = time.perf_counter()
    peak = 0
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid))
            time.sleep(0.02)
    seconds = time.perf_counter() - began
    os.sync()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Timing(seconds, time.perf_counter() - began, peak)


def peak_bytes(process: int) -> int:
    """Largest resident size of a process until now; what `wait4` tells includes that of the process it came from."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def forget(folder: Path) -> None:
    """Put the files of a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_donor(folder: Path, shapes: str) -> None:
    """A Llama model of generated weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    large = shapes == "8b"
    config = LlamaConfig(
        vocab_size=128256 if large else 256,
        hidden_size=4096 if large else 64,
        intermediate_size=14336 if large else 160,
        num_hidden_layers=32 if large else 4,
        num_attention_heads=32 if large else 4,
        num_key_value_heads=8 if large else 2,
        rope_parameters=ROPE,
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    _write(folder, config, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})


def write_base(folder: Path, shapes: str) -> None:
    """A Llamba model of generated weights."""
    large = shapes == "8b"
    config = LlambaConfig(
        vocab_size=128256 if large else 256,
        d_model=4096 if large else 64,
        n_layer=32 if large else 4,
        mlp_cfg={"intermediate_size": 14336 if large else 160},
        ssm_cfg={"d_state": 64 if large else 8, "n_v_heads": 32 if large else 4, "n_qk_heads": 32 if large else 4},
    )
    model = empty_model(config, "meta")
    _write(folder, config, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})


def _write(folder: Path, config: object, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A model folder in bfloat16, in shards; all values are drawn from one block of normal numbers."""
    folder.mkdir()
    config.save_pretrained(folder)  # type: ignore[attr-defined]
    for path in (ROOT / "models" / "tiny_pair" / "donor").glob("tokenizer*"):
        shutil.copy(path, folder)
    normal = torch.randn(BLOCK_BYTES // 2, generator=torch.Generator().manual_seed(0)) * 0.02
    block = memoryview(normal.bfloat16().view(torch.uint8).numpy())
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if size + 2 * _count(shape) > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * _count(shape)
    where = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        where |= dict.fromkeys(shard, file)
        offset, header = 0, {}
        for name, shape in shard.items():
            end = offset + 2 * _count(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as target:
            target.write(struct.pack("<Q", len(text)) + text)
            while offset:
                offset -= target.write(block[: min(offset, len(block))])
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _count(shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def table(rows: Mapping[str, tuple[int, list[Timing]]], shapes: str) -> str:
    """The timings as Markdown."""
    head = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    lines = [
        f"{shapes} shapes; {os.cpu_count()} CPU cores, {_processor()}; {versions}; commit {head.stdout.strip()}; "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}",
        "",
        "| command | GB written | s, each | s with sync, each | against cp | against cp, with sync | peak memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = list(rows.items())
    for (name, (size, timings)), (copy, (_, copies)) in zip(pairs[::2], pairs[1::2], strict=True):
        ratio = _median(timings, "seconds") / _median(copies, "seconds")
        synced = _median(timings, "synced") / _median(copies, "synced")
        peak = max(timing.peak_bytes for timing in timings) / 1e6
        lines += [
            f"| {name} | {size / 1e9:.2f} | {_each(timings, 'seconds')} | {_each(timings, 'synced')} | {ratio:.2f} | "
            f"{synced:.2f} | {peak:.0f} |",
            f"| {copy} | {size / 1e9:.2f} | {_each(copies, 'seconds')} | {_each(copies, 'synced')} | 1 | 1 | |",
        ]
    return "\n".join(lines)


def _median(timings: Sequence[Timing], field: str) -> float:
    return statistics.median(getattr(timing, field) for timing in timings)


def _each(timings: Sequence[Timing], field: str) -> str:
    return ", ".join(f"{getattr(timing, field):.1f}" for timing in timings)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
