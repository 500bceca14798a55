from __future__ import annotations

import gc
import weakref
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.walk import count_layer_calls, donor_calls, one_at_a_time, walk
from genetic_algorithm import LayerSet, SearchSpace


class ToyHybrid:
    """Layers of integer arithmetic in which order and kind matter, so agreement is exact."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.calls = 0

    def base(self, i: int, x: int) -> int:
        self.calls += 1
        return (x * 31 + i) % 1_000_003

    def donor(self, i: int, x: int) -> int:
        self.calls += 1
        return (x * 37 + 5 * i + 1) % 1_000_003

    def fork(self, x: int) -> tuple[int, int]:
        return x, x

    def back(self, ticket: int) -> int:
        return ticket


class Activation:
    """Stands for a tensor; can be watched."""


class WatchedHybrid:
    """Counts how many activations are alive whenever a layer has just run."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.alive: weakref.WeakSet[Activation] = weakref.WeakSet()
        self.most = 0

    def new(self) -> Activation:
        made = Activation()
        self.alive.add(made)
        return made

    def base(self, i: int, x: Activation) -> Activation:
        # The input is still alive here, and counts as the one that is being worked on.
        self.most = max(self.most, len(self.alive))
        return self.new()

    donor = base

    def fork(self, x: Activation) -> tuple[Activation, Activation]:
        return x, x

    def back(self, ticket: Activation) -> Activation:
        return ticket


@pytest.mark.parametrize("size", range(7))
def test_walk_agrees_with_one_at_a_time_for_every_set(size: int) -> None:
    wanted = [LayerSet(c) for c in combinations(range(6), size)]
    expected = {s: one_at_a_time(ToyHybrid(6), 7, s) for s in wanted}
    assert dict(walk(ToyHybrid(6), 7, wanted)) == expected


def test_walk_agrees_when_all_sizes_are_mixed() -> None:
    wanted = list(SearchSpace(6, 0, 6))
    assert dict(walk(ToyHybrid(6), 7, wanted)) == {s: one_at_a_time(ToyHybrid(6), 7, s) for s in wanted}


def test_the_empty_set_is_the_base_and_nothing_wanted_runs_nothing() -> None:
    model = ToyHybrid(6)
    assert list(walk(model, 7, [])) == []
    assert model.calls == 0
    assert list(walk(model, 7, [LayerSet(())])) == [(LayerSet(()), one_at_a_time(ToyHybrid(6), 7, LayerSet(())))]


def test_a_repeated_set_is_yielded_once() -> None:
    found = list(walk(ToyHybrid(4), 7, [LayerSet((1,)), LayerSet(()), LayerSet((1,))]))
    assert sorted(layers for layers, _ in found) == [LayerSet(()), LayerSet((1,))]


@pytest.mark.parametrize("seed", range(5))
def test_a_random_population_of_40_costs_at_most_0_62_of_the_layer_calls(seed: int) -> None:
    rng, space = np.random.default_rng(seed), SearchSpace(12, 1, 4)
    population: set[LayerSet] = set()
    while len(population) < 40:
        population.add(space.random(rng))
    model = ToyHybrid(12)
    assert len(list(walk(model, 7, list(population)))) == 40
    assert model.calls <= 0.62 * 40 * 12
    assert model.calls == count_layer_calls(12, population)


def test_swap_neighbours_of_every_4_set_cost_at_most_0_58_of_the_layer_calls() -> None:
    for chosen in combinations(range(12), 4):
        centre = LayerSet(chosen)
        near = [centre.swap(out, into) for out in chosen for into in range(12) if into not in chosen]
        assert count_layer_calls(12, near) <= 0.58 * len(near) * 12


def test_counted_calls_are_the_calls_made_in_whatever_order() -> None:
    wanted = [LayerSet(c) for c in ((), (0, 3), (2,), (3,))]
    for order in permutations(wanted):
        model = ToyHybrid(5)
        list(walk(model, 7, order))
        assert model.calls == count_layer_calls(5, wanted) == 5 + 5 + 3 + 2


@pytest.mark.parametrize("largest", [0, 1, 2, 4])
def test_alive_activations_are_one_per_swapped_layer_plus_one(largest: int) -> None:
    model = WatchedHybrid(8)
    gc.disable()  # reference counts alone must do
    try:
        for layers, x in walk(model, model.new(), list(SearchSpace(8, 0, largest))):
            del layers, x
    finally:
        gc.enable()
    assert model.most <= largest + 1
    assert not model.alive


def test_a_lone_deep_set_keeps_one_activation() -> None:
    model = WatchedHybrid(8)
    for layers, x in walk(model, model.new(), [LayerSet(tuple(range(8)))]):
        del layers, x
    assert model.most == 1


@st.composite
def wanted_sets(draw: st.DrawFn) -> tuple[int, list[LayerSet]]:
    """A depth and sets of any sizes up to it, some of them twice."""
    depth = draw(st.integers(1, 10))
    sets = st.sets(st.integers(0, depth - 1)).map(LayerSet.from_indices)
    return depth, draw(st.lists(sets, max_size=25))


@settings(deadline=None, derandomize=True)
@given(wanted_sets(), st.integers(0, 1_000_000))
def test_any_sets_are_walked_as_one_at_a_time_with_each_beginning_once(
    asked: tuple[int, list[LayerSet]], x: int
) -> None:
    depth, wanted = asked
    model = ToyHybrid(depth)
    found = list(walk(model, x, wanted))
    assert dict(found) == {layers: one_at_a_time(ToyHybrid(depth), x, layers) for layers in wanted}
    assert len(found) == len(set(wanted))
    beginnings = {tuple(i in layers for i in range(top + 1)) for layers in wanted for top in range(depth)}
    assert model.calls == count_layer_calls(depth, wanted) == len(beginnings)
    assert len(donor_calls(depth, wanted)) == sum(taken[-1] for taken in beginnings)


@settings(deadline=None, derandomize=True)
@given(wanted_sets())
def test_any_walk_keeps_one_activation_per_swapped_layer_plus_one(asked: tuple[int, list[LayerSet]]) -> None:
    depth, wanted = asked
    model = WatchedHybrid(depth)
    for layers, x in walk(model, model.new(), wanted):
        del layers, x
    assert model.most <= max(map(len, wanted), default=0) + 1
    assert not model.alive
