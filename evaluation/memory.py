"""Where a pair's layers are kept and how many tokens run at once, chosen from what memory is free.

`choose_plan` works on numbers alone; `read_machine` looks at the machine. Sizes are in bytes, GB are 10**9 of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evaluation.config import Memory
from evaluation.devices import gpu_bytes
from evaluation.errors import EvaluationError
from models.packed.whole import TOKEN_BYTES

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig

    from models.configuration_llamba import LlambaConfig

MemoryMode = Literal["resident", "streamed", "cpu"]

TOKENS: dict[MemoryMode, int] = {"resident": 16384, "streamed": 4096, "cpu": 768}
"""Tokens at a time where none are asked for. On a CPU, what a layer of the tiny pair makes of so many still fits into
the cache of a core: 384 and 4096 take 10 % and 30 % longer. On a GPU, enough to keep large matrix products busy; a
quarter of it where layers are streamed, which is for those who are short of memory."""
LEAST_TOKENS = 512
"""Fewest tokens at a time to go down to."""
LEAST_RESIDENT_TOKENS = 2048
"""With fewer tokens at a time than this, donor layers are streamed rather than resident."""
RESERVE = 400_000_000
"""Of a GPU, for the workspaces of matrix products and for what the allocator cannot use."""
MAX_LOGITS = 2**26
"""Most logits held at once; 256 MiB in float32."""
TOKENS_PER_READ = 8
"""Of a text, for each position at which logits are read, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a pair takes."""

    layers: int
    base_bytes: int
    """All weights of the base."""
    embedding_bytes: int = 0
    """Of these, what may lie in host memory: the embedding, unless it is the head as well."""
    donor_layer_bytes: int
    """The weights of one donor layer."""
    token_bytes: int
    """While a layer runs, for each token of a batch."""
    hidden_bytes: int
    """One token's hidden state, kept where candidates branch."""
    vocabulary: int
    read_bytes: int
    """The logits of one position, with all that is made of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What memory is free."""

    device: str
    """`cpu`, or a GPU's `cuda:N`."""
    free_bytes: int | None
    """On the device; None where this system does not tell."""
    host_free_bytes: int | None
    """Of the host, limits of containers and jobs counted in; None where this system does not tell."""
    cores: int = 1
    """Batches that run side by side, on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where layers are kept and how much runs at once; `str` is the line for the log."""

    mode: MemoryMode
    """resident: both models on the GPU; streamed: donor layers in host memory, pinned; cpu: both in host memory."""
    batch_tokens: int
    """Most tokens at a time."""
    asked_tokens: int
    """What was asked for; `batch_tokens` is less where memory is short."""
    slots: int
    """Donor layers on the device at once, where they are streamed; else 0."""
    kept_bytes: int
    """For activations kept on the device where candidates branch; what is more belongs in host memory."""
    pinned_bytes: int
    """Host memory for what does not stay on the device; pinned but for the embedding."""
    needed_bytes: int
    """On the device, all in all."""
    free_bytes: int | None

    def __str__(self) -> str:
        told = [f"memory: {self.mode}: takes {_gb(self.needed_bytes)}"]
        if self.free_bytes is not None:
            told.append(f"{_gb(self.free_bytes)} are free")
        if self.slots:
            told.append(f"donor layers through {self.slots} slots")
        if self.pinned_bytes:
            told.append(f"{_gb(self.pinned_bytes)} in host memory")
        fewer = f" ({self.asked_tokens:,} do not fit)" if self.batch_tokens < self.asked_tokens else ""
        told.append(f"{self.batch_tokens:,} tokens at a time{fewer}")
        return ", ".join(told)


def sizes_of(base: LlambaConfig, donor: LlamaConfig, *, itemsize: int, fp8: bool = False, fused: bool = True) -> Sizes:
    """What a pair takes, from the configurations alone; biases, a thousandth at most, are left out.

    Args:
        base: Of the base.
        donor: Of the donor.
        itemsize: Bytes of a weight and of an activation.
        fp8: Whether the layers' matrices are kept in 8 bits as well.
        fused: Whether fast kernels run between the matrix products; plain PyTorch keeps float32 copies there.
    """
    # As in the legend of models/packed/kernels.py: D model, F MLP, I inner, C convolution, H heads.
    D, F, I = base.d_model, base.mlp_cfg["intermediate_size"], base.d_inner  # noqa: E741
    H = base.ssm_cfg["n_v_heads"]
    C = I + 2 * base.ssm_cfg["n_qk_heads"] * base.ssm_cfg["d_state"]
    matrices = sum(out * width for out, width in matrix_shapes(base))
    small = C * (base.ssm_cfg["d_conv"] + 1) + I + H + 2 * D
    width = donor.head_dim or donor.hidden_size // donor.num_attention_heads
    query, key = width * donor.num_attention_heads, width * (donor.num_key_value_heads or donor.num_attention_heads)
    donor_matrices = D * (2 * query + 2 * key) + 3 * donor.intermediate_size * D
    embeddings = base.padded_vocab_size * D * (1 if base.tie_embeddings else 2)
    each = itemsize + (1 if fp8 else 0)
    # The residual stream before and after the first addition, that addition and its norm stand beside an MLP's
    # [gate | up] and their product, or beside a mixer's projection, what its products take, and its result.
    mixer = itemsize * (C + 2 * I + H) + min(TOKEN_BYTES, 4 * (3 * C + 2 * I + 2 * 128 * H))
    token = itemsize * 4 * D + max(itemsize * max(3 * max(F, donor.intermediate_size), 2 * query + 2 * key), mixer)
    if not fused:  # padded to the longest text of a batch: about twice as many tokens
        token += 2 * 4 * (2 * C + 4 * I + 2 * 64 * H)
    return Sizes(
        layers=base.n_layer,
        base_bytes=base.n_layer * (matrices * each + small * itemsize) + (embeddings + D) * itemsize,
        embedding_bytes=0 if base.tie_embeddings else base.padded_vocab_size * D * itemsize,
        donor_layer_bytes=donor_matrices * each + 2 * D * itemsize,
        token_bytes=token,
        hidden_bytes=D * itemsize,
        vocabulary=base.padded_vocab_size,
        read_bytes=4 * base.padded_vocab_size * itemsize,
    )


def matrix_shapes(base: LlambaConfig) -> list[tuple[int, int]]:
    """The matrices of one layer of a base, [out, in]; those of a donor layer are about as large together."""
    D, F, ssm = base.d_model, base.mlp_cfg["intermediate_size"], base.ssm_cfg
    projected = 2 * base.d_inner + 2 * ssm["n_qk_heads"] * ssm["d_state"] + ssm["n_v_heads"]
    return [(projected, D), (D, base.d_inner), (2 * F, D), (D, F)]


def choose_plan(
    sizes: Sizes,
    machine: Machine,
    *,
    batch_tokens: int | None = None,
    choice: Memory = "auto",
    longest_text: int = 0,
    most_swapped: int = 4,
) -> MemoryPlan:
    """The fastest plan that fits: everything resident, else donor layers streamed; fewer tokens before none at all.

    Args:
        sizes: What the pair takes.
        machine: What memory is free.
        batch_tokens: Tokens at a time that are wished for; None for `TOKENS`.
        choice: Leaves the mode to this function, or names it. Who asks for streaming gets the fewest slots, the rest of
            the memory being wanted for something else. On a CPU it saves nothing, and is for tests.
        longest_text: Tokens of the longest text, which is run whole.
        most_swapped: Donor layers of the largest set, which bound how many activations are kept at a time.

    Raises:
        EvaluationError: Nothing fits; says how much the least needs and what there is.
    """
    on_cpu = machine.device == "cpu"
    least_tokens: dict[MemoryMode, int] = {"resident": LEAST_RESIDENT_TOKENS, "streamed": LEAST_TOKENS}
    if on_cpu and choice != "streamed":
        least_tokens = {"cpu": LEAST_TOKENS}
    elif choice != "auto":
        least_tokens = {choice: LEAST_TOKENS}
    for mode, least in least_tokens.items():
        asked = batch_tokens or TOKENS["cpu" if on_cpu else mode]
        for tokens in _halves(asked, least):
            plan = _plan(
                sizes,
                machine,
                mode=mode,
                asked=asked,
                tokens=tokens,
                run=max(tokens, longest_text),
                branches=1 + min(most_swapped, sizes.layers),
                is_forced=choice == mode,
            )
            shortage = _shortage(plan, machine)
            if shortage is None:
                return plan
    raise EvaluationError(f"{shortage}; {_advice(machine, choice)}")


def _plan(
    sizes: Sizes,
    machine: Machine,
    *,
    mode: MemoryMode,
    asked: int,
    tokens: int,
    run: int,
    branches: int,
    is_forced: bool,
) -> MemoryPlan:
    """Of that mode and so many tokens at a time, at most `run` of them in truth, whether it fits or not."""
    logits = min(MAX_LOGITS * sizes.read_bytes // sizes.vocabulary, run // TOKENS_PER_READ * sizes.read_bytes)
    needed = sizes.base_bytes + machine.cores * max(run * sizes.token_bytes, logits)  # not at the same time
    needed += sizes.donor_layer_bytes * (2 if mode == "streamed" else sizes.layers)
    needed -= sizes.embedding_bytes if mode == "streamed" else 0
    needed += 0 if machine.device == "cpu" else RESERVE
    kept = wished = machine.cores * branches * run * sizes.hidden_bytes
    slots, pinned = 0, 0
    left = wished if machine.free_bytes is None else max(0, machine.free_bytes - needed)
    if machine.device != "cpu":  # else what does not stay would go to the same memory
        kept = min(wished, left)
        pinned = wished - kept
    if mode == "streamed":
        more = 0 if is_forced else (left - kept) // sizes.donor_layer_bytes
        slots = 2 + max(0, min(more, sizes.layers - 2))
        needed += (slots - 2) * sizes.donor_layer_bytes
        pinned += sizes.layers * pinned_bytes(sizes.donor_layer_bytes) + sizes.embedding_bytes
    return MemoryPlan(
        mode=mode,
        batch_tokens=tokens,
        asked_tokens=asked,
        slots=slots,
        kept_bytes=kept,
        pinned_bytes=pinned,
        needed_bytes=needed + kept,
        free_bytes=machine.free_bytes,
    )


def _halves(tokens: int, least: int) -> Iterator[int]:
    while tokens > least:
        yield tokens
        tokens = max(tokens // 2, least)
    yield tokens


def _shortage(plan: MemoryPlan, machine: Machine) -> str | None:
    """What a plan needs that there is not; None where it fits."""
    on_cpu = machine.device == "cpu"
    needs = [
        (plan.needed_bytes, machine.free_bytes, "memory" if on_cpu else f"memory of {machine.device}"),
        (plan.pinned_bytes + (plan.needed_bytes if on_cpu else 0), machine.host_free_bytes, "memory of the host"),
    ]
    for needed, free, where in needs:
        if free is not None and needed > free:
            at = f"{plan.batch_tokens:,} tokens at a time (memory {plan.mode})"
            return f"at {at} the pair needs {needed / 1e9:.2f} GB of the {where}, and {free / 1e9:.2f} GB are free"
    return None


def _advice(machine: Machine, choice: Memory) -> str:
    if machine.device == "cpu":
        return "close other programs, or take a smaller pair"
    if choice == "resident":
        return "give --memory auto"
    return "give another --gpu, close other programs, or take a smaller pair"


def pinned_bytes(size: int) -> int:
    """What pinned host memory of that size takes: PyTorch rounds it up to a power of two."""
    return 1 << max(0, size - 1).bit_length()


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 100_000_000 else f"{size / 1e6:.1f} MB"


def read_machine(device: torch.device) -> Machine:
    """What memory is free on this machine, what PyTorch holds without using it counted in."""
    import torch

    host = host_free_bytes()
    if device.type != "cuda":
        return Machine(device="cpu", free_bytes=host, host_free_bytes=host, cores=torch.get_num_threads())
    free, _ = gpu_bytes(str(device))
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Machine(device=str(device), free_bytes=free + idle, host_free_bytes=host)


def host_free_bytes(root: Path = Path("/")) -> int | None:
    """Host memory that this process can still take: what Linux calls available, within the limits of its cgroups.

    Args:
        root: Of the file system.
    """
    free = []
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(1024 * int(line.split()[1]))
    for folder in _cgroups(root):
        unified = (folder / "memory.max").exists()
        limit = _number(folder / ("memory.max" if unified else "memory.limit_in_bytes"))
        used = _number(folder / ("memory.current" if unified else "memory.usage_in_bytes"))
        if limit is not None and used is not None:
            free.append(max(0, limit - used + _reclaimable(folder, "" if unified else "total_")))
    return min(free, default=None)


def _cgroups(root: Path) -> Iterator[Path]:
    """Folders of the memory cgroups that this process is in, as far as they can be seen: its own and all above."""
    top = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, found, path = rest.partition(":")
        if number and found and (not controllers or "memory" in controllers.split(",")):
            mounted = top / "memory" if controllers else top
            own = mounted / path.lstrip("/")
            for folder in (own, *own.parents):
                if not folder.is_relative_to(mounted):
                    break
                yield folder


def _reclaimable(folder: Path, prefix: str) -> int:
    """Cached files of a cgroup, which give way."""
    counts = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat") if " " in line)
    return sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
