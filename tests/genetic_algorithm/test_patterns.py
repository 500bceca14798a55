from __future__ import annotations

import numpy as np

from genetic_algorithm import LayerSet, SearchSpace
from genetic_algorithm.strategies.patterns import draw, mine


def _landscape() -> dict[LayerSet, float]:
    """2 is good, 9 only with 2, the others do nothing."""
    space = SearchSpace(12, 1, 3)
    return {s: 0.4 + 0.3 * (2 in s) + 0.2 * (2 in s and 9 in s) for s in space}


def test_the_pair_that_works_together_is_the_heaviest_pattern() -> None:
    patterns = mine(_landscape(), good_share=0.1)
    assert LayerSet((2,)) in [p.layers for p in patterns[:2]]
    assert LayerSet((2, 9)) in [p.layers for p in patterns[:3]]
    gains = {p.layers: p.gain for p in patterns}
    assert gains[LayerSet((2, 9))] > gains[LayerSet((2,))] > 0
    assert [p.weight for p in patterns] == sorted((p.weight for p in patterns), reverse=True)


def test_patterns_have_one_to_three_layers_and_are_shared() -> None:
    patterns = mine({LayerSet((1, 2, 3, 4)): 0.9, LayerSet((1, 2, 3, 5)): 0.9, LayerSet((6,)): 0.1})
    assert {p.layers for p in patterns} == {LayerSet(s) for s in [(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]}
    assert all(p.frequency == 1.0 for p in patterns)


def test_what_is_good_and_how_many_must_share_it_may_be_given() -> None:
    accuracies = {LayerSet(s): 0.5 + 0.1 * (4 in s) for s in [(1, 2), (1, 3), (1, 4), (2, 4), (3, 4), (5,)]}
    good = [LayerSet(s) for s in [(2, 4), (3, 4), (1, 4)]]
    assert {p.layers: p.frequency for p in mine(accuracies, good=good, least=3)} == {LayerSet((4,)): 1.0}
    assert mine(accuracies, good=good[:2], least=3) == []


def test_nothing_to_mine_gives_nothing() -> None:
    assert mine({}) == []
    assert mine({LayerSet((1,)): 0.5, LayerSet((2,)): 0.5}) == []


def test_draws_follow_the_weights() -> None:
    patterns = mine(_landscape(), good_share=0.1)
    rng = np.random.default_rng(0)
    drawn = [draw(patterns, rng) for _ in range(500)]
    assert drawn.count(patterns[0].layers) > drawn.count(patterns[-1].layers)
