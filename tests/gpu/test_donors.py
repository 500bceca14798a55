"""Donors streamed to a GPU give what resident ones give, bit for bit, while matrix products keep the device busy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from models.packed.donors import Donors, ResidentDonors, StreamedDonors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEPTH, WIDTH, INNER = 12, 1024, 4096
DEVICE = torch.device("cuda", 0)


def make_layers() -> list[dict[str, Tensor]]:
    """An MLP a layer, in bfloat16 with parts in float32 and float8, 24 MB: a copy takes as long as some products."""
    rng = torch.Generator().manual_seed(0)
    layers = []
    for i in range(DEPTH):
        up = torch.randn(INNER, WIDTH, generator=rng) / WIDTH**0.5
        layers.append(
            {
                "up": up.bfloat16(),
                "down": (torch.randn(WIDTH, INNER, generator=rng) / INNER**0.5).bfloat16(),
                "scale": torch.rand(WIDTH, generator=rng) + i,
                "down.fp8": up.t().to(torch.float8_e4m3fn),
                "transposed": torch.randn(64, 32, generator=rng).t(),
            }
        )
    return layers


def run(donors: Donors, calls: Sequence[int], h_ND: Tensor, products: Sequence[int]) -> list[Tensor]:
    """What the layers called make of `h_ND`, each MLP run so many times; nothing waits for the device.

    The sums see what products round away; they are taken last, when a copy that is too early has most likely come.
    """
    found = []
    for i, times in zip(calls, products, strict=True):
        weights = donors.layer(i)
        for _ in range(times):
            inner_NF = torch.relu(h_ND @ weights["up"].t())
            h_ND = h_ND + inner_NF @ weights["down"].t() * 0.1
        h_ND = h_ND / h_ND.float().square().mean(-1, keepdim=True).sqrt().to(h_ND.dtype)
        found += [h_ND, *(weights[name].float().sum() for name in sorted(weights))]
    return found


def all_equal(got: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("slots", [2, 3, 7, DEPTH + 1])
def test_streamed_and_resident_agree_bit_for_bit(slots: int) -> None:
    layers = make_layers()
    resident = ResidentDonors({name: tensor.to(DEVICE) for name, tensor in weights.items()} for weights in layers)
    streamed = StreamedDonors(layers, DEVICE, slots)
    start_ND = torch.randn(512, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16().to(DEVICE)
    rng = np.random.default_rng(slots)
    for trial in range(12):
        calls = rng.integers(0, DEPTH, 60).tolist()
        # Few products: computing waits for copies. Many: copies wait for computing.
        products = rng.choice([0, 1, 20], 60).tolist()
        streamed.expect({0: calls, 1: rng.integers(0, DEPTH, 60).tolist(), 2: calls[:20]}[trial % 3])
        got = run(streamed, calls, start_ND, products)
        assert all_equal(got, run(resident, calls, start_ND, products)), f"trial {trial}"
    if slots > DEPTH:
        assert streamed.copies == DEPTH


@torch.inference_mode()
def test_computing_on_another_stream_is_waited_for() -> None:
    layers = make_layers()
    resident = ResidentDonors({name: tensor.to(DEVICE) for name, tensor in weights.items()} for weights in layers)
    streamed = StreamedDonors(layers, DEVICE, 2)
    start_ND = torch.randn(512, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16().to(DEVICE)
    calls = np.random.default_rng(0).integers(0, DEPTH, 60).tolist()
    expected = run(resident, calls, start_ND, [3] * 60)
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    streamed.expect(calls)
    with torch.cuda.stream(stream):
        got = run(streamed, calls, start_ND, [3] * 60)
    torch.cuda.current_stream(DEVICE).wait_stream(stream)
    assert all_equal(got, expected)


def test_host_memory_is_pinned_and_the_device_holds_the_slots_alone() -> None:
    layers = make_layers()
    layer_bytes = sum(tensor.nbytes for tensor in layers[0].values())
    torch.cuda.synchronize(DEVICE)
    before = torch.cuda.memory_allocated(DEVICE)
    streamed = StreamedDonors(layers, DEVICE, 3)
    assert all(tensor.is_pinned() for tensor in streamed.kept(0).values())
    assert torch.cuda.memory_allocated(DEVICE) - before <= 3 * layer_bytes + (3 << 21)
    for i in range(DEPTH):
        streamed.layer(i)
    assert torch.cuda.memory_allocated(DEVICE) - before <= 3 * layer_bytes + (3 << 21)


@torch.inference_mode()
def test_memory_given_back_in_the_middle_of_a_copy_is_not_written_to() -> None:
    layers = make_layers()
    size = torch.cuda.memory_allocated(DEVICE)
    for _ in range(20):
        streamed = StreamedDonors(layers[:4], DEVICE, 3)
        streamed.expect([0, 1, 2, 3])
        del streamed
        # Takes what the slots gave back, if the allocator already lets it.
        taken = [
            torch.zeros(sum(t.nbytes for t in layers[0].values()), dtype=torch.uint8, device=DEVICE) for _ in "abc"
        ]
        torch.cuda.synchronize(DEVICE)
        assert not any(bool(tensor.any()) for tensor in taken)
        del taken
    torch.cuda.synchronize(DEVICE)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated(DEVICE) == size


@torch.inference_mode()
def test_the_host_does_not_wait_for_the_device() -> None:
    """The device is asked for seconds of work; the calls come back long before it is done."""
    streamed = StreamedDonors(make_layers(), DEVICE, 2)
    calls = list(range(DEPTH))
    run(streamed, calls, torch.ones(64, WIDTH, dtype=torch.bfloat16, device=DEVICE), [1] * DEPTH)  # warms up
    torch.cuda.synchronize(DEVICE)
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    done = torch.cuda.current_stream(DEVICE).record_event()
    streamed.expect(calls)
    for i in calls:
        streamed.layer(i)
    assert not done.query()
    torch.cuda.synchronize(DEVICE)
