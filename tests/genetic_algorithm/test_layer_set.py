from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genetic_algorithm import LayerSet, SearchError, SearchSpace
from genetic_algorithm.evaluator import Score, limit_questions

layer_sets = st.sets(st.integers(0, 40), max_size=6).map(LayerSet.from_indices)
spaces = st.tuples(st.integers(1, 7), st.integers(0, 3), st.integers(0, 3)).map(
    lambda t: SearchSpace(t[0], min(t[1], t[0]), min(t[0], t[1] + t[2]))
)


@settings(deadline=None, derandomize=True)
@given(layer_sets)
def test_a_set_has_one_spelling(layers: LayerSet) -> None:
    assert LayerSet.parse(str(layers)) == layers
    assert LayerSet.from_indices(reversed(layers.indices)) == layers


@settings(deadline=None, derandomize=True)
@given(layer_sets, st.integers(0, 40))
def test_adding_and_taking_out_are_inverse(layers: LayerSet, index: int) -> None:
    if index in layers:
        assert layers.without(index).with_(index) == layers
    else:
        assert layers.with_(index).without(index) == layers
        assert len(layers.with_(index)) == len(layers) + 1


@settings(deadline=None, derandomize=True)
@given(spaces)
def test_a_space_counts_what_it_holds(space: SearchSpace) -> None:
    every = list(space)
    assert len(every) == len(set(every)) == space.size
    assert all(space.contains(layers) for layers in every)


@settings(deadline=None, derandomize=True)
@given(spaces, st.integers(0, 2**32 - 1))
def test_neighbours_are_all_allowed_sets_one_step_away(space: SearchSpace, seed: int) -> None:
    layers = space.random(np.random.default_rng(seed))
    assert space.check(layers) == layers
    here = set(layers.indices)

    def is_near(other: LayerSet) -> bool:
        added, gone = set(other.indices) - here, here - set(other.indices)
        return max(len(added), len(gone)) == 1

    near = space.neighbours(layers)
    assert len(near) == len(set(near))
    assert set(near) == {other for other in space if is_near(other)}


def test_a_set_sorts_hashes_and_reads_as_people_write_it() -> None:
    assert str(LayerSet.from_indices([21, 11, 17, 13])) == "11+13+17+21"
    assert str(LayerSet(())) == "none"
    assert LayerSet.from_indices(np.array([3, 1])) == LayerSet((1, 3))
    assert sorted([LayerSet((2,)), LayerSet((1, 5))]) == [LayerSet((1, 5)), LayerSet((2,))]
    assert LayerSet((1, 3)).swap(1, 2) == LayerSet((2, 3))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LayerSet((3, 1)), "[3, 1]"),
        (lambda: LayerSet((-1,)), "[-1]"),
        (lambda: LayerSet.from_indices([1, 4, 1]), "layer 1 is named twice"),
        (lambda: LayerSet.from_indices([1, "x"]), "whole numbers"),
        (lambda: LayerSet.from_indices([True]), "whole numbers"),
        (lambda: LayerSet.from_indices([1.5]), "whole numbers"),
        (lambda: LayerSet.parse("1,2"), "'1,2' is not a layer set"),
        (lambda: LayerSet.parse(""), "is not a layer set"),
        (lambda: LayerSet((1,)).without(2), "layer 2 is not in 1"),
        (lambda: LayerSet((1,)).with_(1), "layer 1 is named twice"),
        (lambda: SearchSpace(12, 1, 4).check(LayerSet((12,))), "layer 12 does not exist; the model has layers 0 to 11"),
        (lambda: SearchSpace(12, 1, 2).check(LayerSet((1, 2, 3))), "3 layers; this search is for 1 to 2"),
        (lambda: SearchSpace(12, 1, 2).check(LayerSet(())), "0 layers"),
        (lambda: SearchSpace(3, 1, 4), "--max-layers 4 is more than the model's 3 layers"),
        (lambda: SearchSpace(12, 3, 2), "from 3 to 2"),
        (lambda: Score(0, 0, "fast"), "a score needs questions"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, told: str) -> None:
    with pytest.raises(SearchError) as error:
        make()
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_draws_use_every_size() -> None:
    rng = np.random.default_rng(0)
    sizes = [len(SearchSpace(12, 1, 4).random(rng)) for _ in range(400)]
    assert {size: sizes.count(size) > 60 for size in (1, 2, 3, 4)} == dict.fromkeys((1, 2, 3, 4), True)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 9))
def test_limits_are_the_lowest_questions_of_each_subject(subjects: list[int], limit: int, skip: int) -> None:
    array = np.array(subjects, dtype=np.int64)
    expected = sorted(
        q for subject in set(subjects) for q in [i for i, s in enumerate(subjects) if s == subject][skip : skip + limit]
    )
    assert limit_questions(array, limit, skip).tolist() == expected
    assert limit_questions(array, None).tolist() == list(range(len(subjects)))


def test_a_score_keeps_its_counts() -> None:
    score = Score(45, 60, "full")
    assert (score.accuracy, round(score.standard_error, 4)) == (0.75, 0.0559)


def test_all_sets_of_one_to_four_of_32_layers() -> None:
    assert SearchSpace(32, 1, 4).size == 41_448
    assert len(SearchSpace(32, 4, 4).neighbours(LayerSet((11, 13, 17, 21)))) == 112
    assert [s.indices for s in SearchSpace(4, 2, 2)] == list(combinations(range(4), 2))


@st.composite
def constrained_spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces with layers that must be in or out, those that hold nothing left out."""
    depth = draw(st.integers(1, 7))
    places = draw(st.lists(st.sampled_from(("free", "free", "must", "never")), min_size=depth, max_size=depth))
    must, never = ([i for i, place in enumerate(places) if place == kind] for kind in ("must", "never"))
    most = draw(st.integers(len(must), depth))
    least = draw(st.integers(0, min(most, depth - len(never))))
    return SearchSpace(depth, least, most, tuple(must), tuple(never))


@settings(deadline=None, derandomize=True)
@given(constrained_spaces(), st.integers(0, 2**32 - 1))
def test_a_constrained_space_is_what_is_left_of_all_sets(space: SearchSpace, seed: int) -> None:
    every = [LayerSet(c) for size in range(space.num_layers + 1) for c in combinations(range(space.num_layers), size)]
    must, never = set(space.must_include), set(space.forbidden)
    allowed = {s for s in every if len(s) in space.sizes and must <= set(s) and not never & set(s)}
    assert set(space) == allowed
    assert space.size == len(allowed) > 0
    for layers in every:
        assert space.contains(layers) == (layers in allowed)
        if layers in allowed:
            assert space.check(layers) is layers
        else:
            with pytest.raises(SearchError):
                space.check(layers)
    drawn = space.random(np.random.default_rng(seed))
    assert drawn in allowed
    assert set(space.neighbours(drawn)) <= allowed - {drawn}
    assert all(drawn in space.neighbours(near) for near in space.neighbours(drawn))


@settings(deadline=None, derandomize=True)
@given(layer_sets, layer_sets)
def test_order_and_equality_are_those_of_the_indices(one: LayerSet, other: LayerSet) -> None:
    assert (one == other) == (one.indices == other.indices) == (str(one) == str(other))
    assert (one < other) == (one.indices < other.indices)
    assert one != other or hash(one) == hash(other)
