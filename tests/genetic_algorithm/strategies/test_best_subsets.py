from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genetic_algorithm import LayerSet, SearchSpace
from genetic_algorithm.strategies.best_subsets import best_subsets
from genetic_algorithm.strategies.quadratic import Quadratic, fit
from genetic_algorithm.surrogate import Observations


def model_of(num_layers: int, spread: float, seed: int) -> Quadratic:
    rng = np.random.default_rng(seed)
    pair = np.triu(rng.normal(0, spread, (num_layers, num_layers)), 1)
    return Quadratic(-0.5, rng.normal(-0.1, 0.3, num_layers), pair + pair.T)


@st.composite
def problems(draw) -> tuple[Quadratic, SearchSpace, int]:
    depth = draw(st.integers(1, 10))
    layers = draw(st.permutations(range(depth)))
    must = tuple(layers[: draw(st.integers(0, min(2, depth)))])
    forbidden = tuple(layers[len(must) :][: draw(st.integers(0, min(2, depth - len(must))))])
    size = draw(st.integers(len(must), depth - len(forbidden)))
    model = model_of(depth, draw(st.sampled_from([0.0, 0.01, 0.1, 1.0, 10.0])), draw(st.integers(0, 10**6)))
    return model, SearchSpace(depth, size, size, must, forbidden), draw(st.integers(1, 8))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(problems())
def test_the_best_sets_are_those_of_brute_force(problem: tuple[Quadratic, SearchSpace, int]) -> None:
    model, space, count = problem
    solution = best_subsets(model, space, space.max_layers, count, node_limit=10**6)
    values = sorted((model.value(layers) for layers in space), reverse=True)
    assert solution.is_exact
    assert np.allclose([value for value, _ in solution.sets], values[:count])
    assert len({layers for _, layers in solution.sets}) == min(count, space.size)
    for value, layers in solution.sets:
        assert space.contains(layers)
        assert model.value(layers) == pytest.approx(value)
    if len(values) > count:
        assert solution.bound >= values[count] - 1e-9


def test_twelve_of_eighty_layers_are_solved_exactly_within_the_node_limit() -> None:
    space = SearchSpace(80, 12, 12)
    for seed in range(3):
        model = model_of(80, 0.05, seed)
        solution = best_subsets(model, space, 12, 20)
        assert solution.is_exact
        best = solution.sets[0][1]
        near = (model.value(layers) for layers in space.neighbours(best))
        assert max(near) <= model.value(best)


def test_a_node_limit_is_kept_and_told_with_a_bound_that_holds() -> None:
    missed = 0
    for seed in range(8):
        model, space = model_of(20, 1.0, seed), SearchSpace(20, 8, 8)
        exact = best_subsets(model, space, 8, node_limit=10**6)
        cut = best_subsets(model, space, 8, node_limit=5)
        assert exact.is_exact
        assert not cut.is_exact
        assert cut.nodes == 5
        assert cut.sets[0][0] <= exact.sets[0][0] + 1e-9 <= cut.bound + 2e-9
        missed += cut.sets[0][0] < exact.sets[0][0] - 1e-9
    assert missed


def test_the_fit_tells_effects_from_noise() -> None:
    rng = np.random.default_rng(0)
    truth = model_of(8, 0.1, 1)
    sets = tuple(LayerSet(c) for k in (0, 1, 2, 3) for c in combinations(range(8), k))
    blocks = np.zeros(len(sets), dtype=np.int64)
    for noise, most in ((1e-4, 0.02), (0.1, 0.25)):
        values = np.array([truth.value(s) for s in sets]) + rng.normal(0, noise**0.5, len(sets))
        data = Observations(
            sets, np.arange(len(sets)), blocks, values, np.full(len(sets), noise), np.array([noise / 10])
        )
        found = fit(data, 8)
        four = [LayerSet(c) for c in combinations(range(8), 4)]
        errors = np.array([found.value(s) - truth.value(s) for s in four])
        assert float(np.std(errors)) < most
        assert np.allclose(found.pair, found.pair.T)
