"""What is kept where follows from what is free, alone; and what is free is read right."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation import memory
from evaluation.errors import EvaluationError
from evaluation.memory import Machine, MemoryPlan, Sizes, choose_plan, host_free_bytes, read_machine, sizes_of

GB = 10**9


def configs_8b(**changes: Any) -> tuple[Any, Any]:
    from transformers import LlamaConfig

    from models.configuration_llamba import LlambaConfig

    donor = LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
    )
    return LlambaConfig(n_layer=32, **changes), donor


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return sizes_of(*configs_8b(), itemsize=2)


def gpu(free: float, host: float | None = 1000) -> Machine:
    """`free` and `host` in GB."""
    return Machine(device="cuda:0", free_bytes=int(free * GB), host_free_bytes=None if host is None else int(host * GB))


def test_sizes_of_the_8b_pair(sizes: Sizes) -> None:
    assert sizes.layers == 32
    assert sizes.base_bytes / GB == pytest.approx(17.68, abs=0.01)  # 8.84 G parameters
    assert sizes.donor_layer_bytes / GB == pytest.approx(0.436, abs=0.001)
    assert sizes.hidden_bytes == 8192


def test_sizes_are_those_of_the_weights_of_the_bundled_pair() -> None:
    from models.hybrid import HybridPair
    from models.pairs import PAIRS

    pair = PAIRS["tiny"]
    loaded = HybridPair.load(pair.base.folder or "", pair.donor.folder)
    for itemsize in (2, 4):
        found = sizes_of(loaded.model.config, loaded.donor_config, itemsize=itemsize)
        base = sum(p.numel() for p in loaded.model.parameters())
        donor = sum(p.numel() for p in loaded.donor_layers[0].parameters())
        assert found.base_bytes == base * itemsize
        assert found.donor_layer_bytes == donor * itemsize


def test_tied_embeddings_and_8_bits_count(sizes: Sizes) -> None:
    tied = sizes_of(*configs_8b(tie_embeddings=True), itemsize=2)
    assert sizes.base_bytes - tied.base_bytes == 128256 * 4096 * 2
    fp8 = sizes_of(*configs_8b(), itemsize=2, fp8=True)
    assert 1.4 < fp8.donor_layer_bytes / sizes.donor_layer_bytes <= 1.5
    assert fp8.base_bytes > sizes.base_bytes


def test_plain_kernels_take_more(sizes: Sizes) -> None:
    assert sizes_of(*configs_8b(), itemsize=2, fused=False).token_bytes > 1.5 * sizes.token_bytes


def test_a_large_gpu_holds_both_models(sizes: Sizes) -> None:
    plan = choose_plan(sizes, gpu(140))
    assert (plan.mode, plan.batch_tokens, plan.slots, plan.pinned_bytes) == ("resident", 16384, 0, 0)
    assert 32 < plan.needed_bytes / GB < 36
    assert plan.kept_bytes == 5 * 16384 * 8192
    assert str(plan) == "memory: resident: takes 35.2 GB, 140.0 GB are free, 16,384 tokens at a time"


def test_a_smaller_gpu_streams_the_donor(sizes: Sizes) -> None:
    plan = choose_plan(sizes, gpu(25))
    assert (plan.mode, plan.batch_tokens) == ("streamed", 4096)
    assert plan.slots > 6
    assert 24.5 < plan.needed_bytes / GB <= 25
    assert str(plan) == (
        "memory: streamed: takes 24.8 GB, 25.0 GB are free, donor layers through 16 slots, 18.2 GB in host memory, "
        "4,096 tokens at a time"
    )


def test_streaming_that_is_asked_for_takes_little_however_much_is_free(sizes: Sizes) -> None:
    plan = choose_plan(sizes, gpu(140), choice="streamed")
    assert (plan.mode, plan.batch_tokens, plan.slots) == ("streamed", 4096, 2)
    assert plan.needed_bytes / GB < 19.5  # of a card of 20 GB, the context of CUDA takes half of one
    assert plan.kept_bytes == 5 * 4096 * 8192


@pytest.mark.parametrize("choice", ["auto", "resident", "streamed"])
def test_whatever_is_planned_fits_and_more_memory_is_never_worse(sizes: Sizes, choice: Any) -> None:
    before: MemoryPlan | None = None
    rank = {"streamed": 0, "resident": 1}
    for tenth in range(150, 420):
        try:
            plan = choose_plan(sizes, gpu(tenth / 10), choice=choice)
        except EvaluationError:
            assert before is None
            continue
        assert plan.free_bytes is not None
        assert plan.needed_bytes <= plan.free_bytes
        assert plan.mode == choice or choice == "auto"
        assert plan.slots >= 2 or plan.mode == "resident"
        if before is not None:
            assert rank[plan.mode] >= rank[before.mode]
            if plan.mode == before.mode:
                assert plan.batch_tokens >= before.batch_tokens
        before = plan
    assert before is not None


def test_fewer_tokens_before_streaming_and_streaming_before_none(sizes: Sizes) -> None:
    fewer = choose_plan(sizes, gpu(33.1))
    assert fewer.mode == "resident"
    assert 2048 <= fewer.batch_tokens < 16384
    assert f"{fewer.batch_tokens:,} tokens at a time (16,384 do not fit)" in str(fewer)
    assert choose_plan(sizes, gpu(32.3)).mode == "streamed"
    assert choose_plan(sizes, gpu(32.3), choice="resident").batch_tokens < 2048
    small = choose_plan(sizes, gpu(18.2))
    assert small.mode == "streamed"
    assert small.slots == 2
    assert small.batch_tokens < 4096


def test_tokens_that_are_asked_for_are_never_exceeded(sizes: Sizes) -> None:
    for tokens in (1, 300, 700, 8192, 30000):
        for free in (19.5, 25, 34, 140):
            assert choose_plan(sizes, gpu(free), batch_tokens=tokens).batch_tokens <= tokens


def test_what_is_kept_at_branches_gives_way(sizes: Sizes) -> None:
    whole = choose_plan(sizes, gpu(140), choice="streamed")
    less = choose_plan(sizes, gpu((whole.needed_bytes - 100_000_000) / GB), choice="streamed")
    assert less.batch_tokens == whole.batch_tokens
    assert less.kept_bytes == pytest.approx(whole.kept_bytes - 100_000_000, abs=10)
    assert less.pinned_bytes == pytest.approx(whole.pinned_bytes + 100_000_000, abs=10)
    assert choose_plan(sizes, gpu(140), most_swapped=32).kept_bytes == 33 * 16384 * 8192
    assert choose_plan(sizes, gpu(140), most_swapped=999).kept_bytes == 33 * 16384 * 8192


def test_a_text_longer_than_a_batch_has_its_room(sizes: Sizes) -> None:
    short, long = (choose_plan(sizes, gpu(140), longest_text=tokens) for tokens in (100, 100_000))
    assert long.needed_bytes - short.needed_bytes > 80_000 * sizes.token_bytes
    with pytest.raises(EvaluationError, match=r"at 512 tokens .* needs \d\d\.\d\d GB"):
        choose_plan(sizes, gpu(25), longest_text=100_000)


@pytest.mark.parametrize(
    ("machine", "choice", "told"),
    [
        (gpu(16), "auto", r"needs 17\.\d\d GB of the memory of cuda:0, and 16\.00 GB are free; give another --gpu"),
        (gpu(25), "resident", r"\(memory resident\) .* 32\.\d\d GB .* 25\.00 GB are free; give --memory auto$"),
        (gpu(25, host=10), "auto", r"needs 18\.\d\d GB of the memory of the host, and 10\.00 GB are free"),
        (gpu(140, host=10), "streamed", r"needs 18\.\d\d GB of the memory of the host"),
        (
            Machine(device="cpu", free_bytes=GB, host_free_bytes=GB),
            "auto",
            r"memory cpu.* and 1\.00 GB are free; close",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(sizes: Sizes, machine: Machine, choice: Any, told: str) -> None:
    with pytest.raises(EvaluationError, match=told) as refused:
        choose_plan(sizes, machine, choice=choice)
    assert "\n" not in str(refused.value)


def test_the_host_does_not_matter_where_nothing_goes_there(sizes: Sizes) -> None:
    assert choose_plan(sizes, gpu(140, host=1)).mode == "resident"
    assert choose_plan(sizes, gpu(25, host=None)).mode == "streamed"


def test_a_cpu_holds_everything(sizes: Sizes) -> None:
    machine = Machine(device="cpu", free_bytes=64 * GB, host_free_bytes=64 * GB)
    for choice in ("auto", "resident"):
        plan = choose_plan(sizes, machine, choice=choice)  # type: ignore[arg-type]
        assert (plan.mode, plan.batch_tokens, plan.slots, plan.pinned_bytes) == ("cpu", 768, 0, 0)
    assert choose_plan(sizes, replace(machine, free_bytes=None, host_free_bytes=None)).mode == "cpu"
    streamed = choose_plan(sizes, machine, choice="streamed")
    assert (streamed.mode, streamed.batch_tokens, streamed.slots) == ("streamed", 768, 2)


def test_pinned_memory_is_rounded_up_as_pytorch_does() -> None:
    assert [memory.pinned_bytes(n) for n in (1, 2, 3, 4096, 4097)] == [1, 2, 4, 4096, 8192]


def test_this_machine_can_be_read() -> None:
    machine = read_machine(torch.device("cpu"))
    assert machine.device == "cpu"
    assert machine.free_bytes == machine.host_free_bytes
    assert machine.free_bytes is None or machine.free_bytes > 0
    json.dumps([machine.device, machine.free_bytes])


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:       32000 kB\nMemFree:        100 kB\nMemAvailable:   20000 kB\nCached: x kB\n"


@pytest.mark.parametrize(
    ("files", "kilobytes"),
    [
        ({}, 20000),
        # Version 2, in a namespace of its own, files counted as free.
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "10240000\n",
                "sys/fs/cgroup/memory.current": "9216000\n",
                "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 1024000\nactive_file 2048000\nshmem 7\n",
            },
            4000,
        ),
        # A job's limit lies above the process's own cgroup.
        (
            {
                "proc/self/cgroup": "0::/slurm/job_1/step_0\n",
                "sys/fs/cgroup/slurm/job_1/step_0/memory.max": "max\n",
                "sys/fs/cgroup/slurm/job_1/step_0/memory.current": "1024\n",
                "sys/fs/cgroup/slurm/job_1/memory.max": "5120000\n",
                "sys/fs/cgroup/slurm/job_1/memory.current": "1024000\n",
            },
            4000,
        ),
        # Version 1; a path that only the host has leads to what is mounted here.
        (
            {
                "proc/self/cgroup": "5:cpu:/a\n4:memory:/docker/abc\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "10240000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "9216000\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 5\ntotal_inactive_file 1024000\n",
            },
            2000,
        ),
        # No limit at all, as version 1 spells it; and more in use than a limit that was lowered.
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
            },
            20000,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "1000\n",
                "sys/fs/cgroup/memory.current": "9000\n",
            },
            0,
        ),
    ],
)
def test_free_host_memory_heeds_every_limit(tmp_path: Path, files: dict[str, str], kilobytes: int) -> None:
    root = write(tmp_path, {"proc/meminfo": MEMINFO} | files)
    assert host_free_bytes(root) == kilobytes * 1024


def test_a_system_that_tells_nothing_is_believed(tmp_path: Path) -> None:
    assert host_free_bytes(tmp_path) is None
    write(tmp_path, {"proc/self/cgroup": "0::/\nnonsense\n", "sys/fs/cgroup/memory.max": "many\n"})
    assert host_free_bytes(tmp_path) is None


def test_the_line_for_the_log_is_one_line(sizes: Sizes) -> None:
    for free in (19.2, 25, 33.1, 140):
        assert re.fullmatch(
            r"memory: (resident|streamed): [^\n]*tokens at a time[^\n]*", str(choose_plan(sizes, gpu(free)))
        )
