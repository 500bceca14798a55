"""Streamed donors give what resident ones give, whatever the order and however copies and computing interleave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import ModelError
from models.packed.donors import ResidentDonors, StreamedDonors

CPU = torch.device("cpu")
Weights = dict[str, Tensor]


def make_layers(count: int, seed: int = 0) -> list[Weights]:
    """Layers of every kind of tensor that an engine keeps; all of them alike but for the numbers."""
    rng = torch.Generator().manual_seed(seed)
    layers = []
    for i in range(count):
        matrix = torch.randn(6, 16, generator=rng)
        layers.append(
            {
                "norm": torch.full((5,), float(i)),
                "in": matrix.bfloat16(),
                "transposed": torch.randn(16, 6, generator=rng).t(),
                "in.fp8": matrix.to(torch.float8_e4m3fn),
                "in.scale": torch.rand(6, 1, generator=rng),
                "scalar": torch.tensor(float(i)),
                "flags": torch.tensor([i % 2 == 0, True, False]),
                "nothing": torch.empty(0, 4),
            }
        )
    return layers


def number(weights: Weights) -> int:
    """Which layer it is."""
    return int(weights["norm"][0])


def assert_same(got: Weights, expected: Weights) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].stride() == tensor.stride(), name
        assert torch.equal(got[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def byte_view_of_scalars(layers: list[Weights]) -> list[Weights]:
    """Scalars as vectors, for torch compares bytes of vectors only."""
    return [{name: t.reshape(-1) if t.dim() == 0 else t for name, t in weights.items()} for weights in layers]


def test_what_is_asked_for_is_given_bit_for_bit() -> None:
    layers = byte_view_of_scalars(make_layers(5))
    layers[1]["in"][0, :3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    resident, streamed = ResidentDonors(layers), StreamedDonors(layers, CPU, 2)
    calls = [0, 1, 4, 4, 2, 0, 3, 1]
    for donors in (resident, streamed):
        donors.expect(calls)
    for i in calls:
        assert_same(streamed.layer(i), resident.layer(i))
        assert_same(streamed.kept(i), layers[i])


def test_scalars_strides_and_alignment_survive() -> None:
    gappy = torch.arange(20.0).view(4, 5)[:, :3]  # rows with gaps between them lose the gaps
    streamed = StreamedDonors(
        [{"odd": torch.ones(3, dtype=torch.uint8), "s": torch.tensor(7.0), "gappy": gappy}], CPU, 2
    )
    weights = streamed.layer(0)
    assert weights["s"].shape == ()
    assert weights["s"].item() == 7
    assert torch.equal(weights["gappy"], gappy)
    assert weights["gappy"].is_contiguous()
    assert all((w.data_ptr() - weights["odd"].data_ptr()) % 256 == 0 for w in weights.values())


def test_layers_of_unlike_shapes_share_slots() -> None:
    layers = [{"norm": torch.full((n,), float(i)), "x": torch.randn(i, 3)} for i, n in enumerate([3, 90, 1, 40])]
    streamed = StreamedDonors(iter(layers), CPU, 2)
    for i in (0, 1, 2, 3, 1, 0, 2):
        assert_same(streamed.layer(i), layers[i])


def test_the_layers_given_are_copied_once_and_not_kept() -> None:
    layers = make_layers(3)
    alive = []

    def one_by_one() -> Iterator[Weights]:
        for weights in make_layers(3):
            alive.append(weights["in"].data_ptr())
            yield weights

    streamed = StreamedDonors(one_by_one(), CPU, 2)
    assert torch.equal(streamed.layer(2)["in"], layers[2]["in"])
    assert streamed.layer(2)["in"].data_ptr() not in alive


@pytest.mark.parametrize("slots", [-1, 0, 1])
def test_fewer_than_two_slots_are_refused(slots: int) -> None:
    with pytest.raises(ValueError, match=f"{slots} slots"):
        StreamedDonors(make_layers(2), CPU, slots)


def test_layers_that_do_not_exist_are_refused() -> None:
    streamed = StreamedDonors(make_layers(3), CPU, 2)
    for i in (-1, 3):
        with pytest.raises(IndexError):
            streamed.layer(i)
        with pytest.raises(IndexError):
            streamed.expect([0, i])
    assert number(streamed.layer(2)) == 2


def test_memory_of_the_host_that_does_not_suffice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = make_layers(1)

    def empty(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("CUDA error: out of memory\nmore lines")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ModelError, match=r"0\.00 GB more host memory .* CUDA error: out of memory; free memory"):
        StreamedDonors(layers, CPU, 2)


@pytest.mark.parametrize("built_in", [True, False])
def test_inference_mode_may_begin_and_end_anywhere(built_in: bool) -> None:
    layers = make_layers(4)
    with torch.inference_mode(built_in):
        streamed = StreamedDonors(layers, CPU, 2)
        streamed.layer(0)
    with torch.inference_mode(not built_in):
        assert [number(streamed.layer(i)) for i in (3, 1, 2)] == [3, 1, 2]


def copies(calls: Sequence[int], slots: int, expected: Sequence[int] | None = None) -> int:
    streamed = StreamedDonors(make_layers(8), CPU, slots)
    streamed.expect(calls if expected is None else expected)
    for i in calls:
        assert number(streamed.layer(i)) == i
    return streamed.copies


def test_what_the_slots_hold_is_not_copied_again() -> None:
    assert copies([0, 1, 2] * 5, slots=3) == 3
    assert copies([0, 0, 0, 1, 1, 0], slots=2) == 2
    assert copies([5] * 4, slots=2, expected=[]) == 1


def test_the_layer_needed_last_gives_way() -> None:
    # 7 comes once, in between, for a layer that is not needed soon: giving away the oldest would copy 13.
    assert copies([0, 1, 2, 3, 4, 5, 7, *[0, 1, 2, 3, 4] * 5, 5], slots=6) <= 9
    # In turns through one layer more than there are slots: giving away the oldest would copy all 70.
    assert copies([0, 1, 2, 3, 4, 5, 6] * 10, slots=6) < 35


@pytest.mark.parametrize("slots", [2, 3, 5])
def test_wrong_expectations_cost_time_alone(slots: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        calls, wrong = rng.integers(0, 8, (2, 30)).tolist()
        copies(calls, slots, expected=wrong)  # asserts that each layer is the one asked for
        copies(calls, slots, expected=calls[1:])
        copies(calls, slots, expected=calls[:10])


class Mark(NamedTuple):
    """A point in one of two queues."""

    queue: str
    done: int


class Race:
    """A device with two queues that run apart from the host and from each other, but for the marks they wait for."""

    def __init__(self) -> None:
        self.queues: dict[str, list[Mark | Callable[[], None]]] = {"copies": [], "computing": []}

    def mark(self) -> Mark:
        return Mark("computing", len(self.queues["computing"]))

    def copy(self, target: Tensor, source: Tensor, after: Mark) -> Mark:
        self.queues["copies"] += [after, lambda: target.copy_(source)]
        return Mark("copies", len(self.queues["copies"]))

    def wait(self, mark: Mark) -> None:
        self.queues["computing"].append(mark)

    def compute(self, work: Callable[[], None]) -> None:
        self.queues["computing"].append(work)

    def run(self, pick: Callable[[list[str]], str]) -> None:
        """Run all that was asked for; where both queues could go on, `pick` says which."""
        done = dict.fromkeys(self.queues, 0)
        while any(done[name] < len(queue) for name, queue in self.queues.items()):
            able = []
            for name, queue in self.queues.items():
                head = queue[done[name]] if done[name] < len(queue) else None
                if head is not None and (not isinstance(head, Mark) or done[head.queue] >= head.done):
                    able.append(name)
            assert able, "both queues wait for each other"
            name = pick(able)
            head = self.queues[name][done[name]]
            if not isinstance(head, Mark):
                head()
            done[name] += 1


def run_race(race: Race, calls: Sequence[int], expected: Sequence[int], slots: int, pick: Any) -> list[int]:
    """Which layers computing found in the slots, when it came to look."""
    streamed = StreamedDonors(make_layers(8), CPU, slots, lane=race)
    streamed.expect(expected)
    found: list[int] = []
    for i in calls:
        weights = streamed.layer(i)
        race.compute(lambda weights=weights: found.append(number(weights)))
        race.compute(lambda weights=weights: found.append(int(weights["scalar"])))
    race.run(pick)
    return found


PICKS = {
    "copies first": lambda seed: lambda able: able[0],
    "computing first": lambda seed: lambda able: able[-1],
    "by chance": lambda seed: np.random.default_rng(seed).choice,
}


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("slots", [2, 3, 6])
def test_no_interleaving_reads_another_layer(pick: str, slots: int) -> None:
    rng = np.random.default_rng(slots)
    for seed in range(25):
        calls = rng.integers(0, 8, 40).tolist()
        expected = calls if seed % 2 else rng.integers(0, 8, 40).tolist()
        found = run_race(Race(), calls, expected, slots, PICKS[pick](seed))
        assert found == [i for i in calls for _ in range(2)]


class CopiesTooEarly(Race):
    """Does not wait until a slot is free."""

    def copy(self, target: Tensor, source: Tensor, after: Mark) -> Mark:
        return super().copy(target, source, Mark("computing", 0))


class ComputesTooEarly(Race):
    """Does not wait until a slot is filled."""

    def wait(self, mark: Mark) -> None:
        return None


@pytest.mark.parametrize(("race", "pick"), [(CopiesTooEarly, "copies first"), (ComputesTooEarly, "computing first")])
def test_the_race_finds_what_is_not_waited_for(race: type[Race], pick: str) -> None:
    calls = np.random.default_rng(0).integers(0, 8, 40).tolist()
    assert run_race(race(), calls, calls, 2, PICKS[pick](0)) != [i for i in calls for _ in range(2)]


class Clock:
    """A device on which every layer takes `compute` and every copy `copy` seconds."""

    def __init__(self, copy: float) -> None:
        self.seconds, self._copied, self._copy = 0.0, 0.0, copy

    def mark(self) -> float:
        return self.seconds

    def copy(self, target: Tensor, source: Tensor, after: float) -> float:
        self._copied = max(self._copied, after) + self._copy
        return self._copied

    def wait(self, mark: float) -> None:
        self.seconds = max(self.seconds, mark)


def test_copies_hide_behind_the_computing_between_them() -> None:
    """With the least number of slots, and a copy that takes longer than a layer."""
    clock = Clock(copy=1.5)
    streamed = StreamedDonors(make_layers(8), CPU, 2, lane=clock)
    calls = [0, 3, 5, 1, 3, 6, 0, 2] * 4
    streamed.expect(calls)
    for i in calls:
        streamed.layer(i)
        clock.seconds += 4.0  # one donor layer and three base layers
    assert clock.seconds <= 4.0 * len(calls) + 1.5  # only the first is waited for
