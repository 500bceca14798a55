"""Packed layers against the modules they are made of, text by text."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.walk import one_at_a_time, walk
from genetic_algorithm import LayerSet, SearchSpace
from models.errors import ModelError
from models.hybrid import HybridPair
from models.packed.donors import ResidentDonors, StreamedDonors
from models.packed.layers import PackedLayers
from models.packed.layout import make_layout
from models.packed.matrices import linear, to_fp8
from models.packed.plain import PlainKernels
from tests.evaluation.conftest import make_pair

CPU = torch.device("cpu")
SETS = list(SearchSpace(4, 0, 4))


@pytest.fixture(scope="module")
def pair() -> HybridPair:
    return make_pair()


def packed(pair: HybridPair, **options: Any) -> PackedLayers:
    return PackedLayers.of_pair(pair, PlainKernels(), ResidentDonors, **options)


def texts(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 50, (n,), generator=generator) for n in lengths]


def last_states(layers: PackedLayers, whole: list[torch.Tensor], prefix_of_row: list[int], prefixes: list[int]) -> Any:
    """[texts, D] after the last layer at the last token of each, for every set; by text if there are no prefixes."""
    own = [text[prefixes[g] if g >= 0 else 0 :] for text, g in zip(whole, prefix_of_row, strict=True)]
    shared = [whole[prefix_of_row.index(g)][:n] for g, n in enumerate(prefixes)]
    ends = np.cumsum([len(t) for t in (*shared, *own)])
    layout = make_layout(
        np.array([len(t) for t in own]),
        ends[len(shared) :] - 1,
        device=CPU,
        prefix_lengths=np.array(prefixes, np.int64),
        prefix_of_row=np.array(prefix_of_row),
    )
    with torch.inference_mode():
        return {s: x.sum() for s, x in walk(layers.on(layout), layers.embed(torch.cat([*shared, *own])), SETS)}


def module_states(pair: HybridPair, text: torch.Tensor, layers: LayerSet) -> torch.Tensor:
    class Modules:
        depth = pair.depth

        def base(self, i: int, x: torch.Tensor) -> torch.Tensor:
            return pair.base(i, x)

        def donor(self, i: int, x: torch.Tensor) -> torch.Tensor:
            return pair.donor(i, x)

    with torch.inference_mode():
        return one_at_a_time(Modules(), pair.embed(text[None]), layers)[0, -1]


def check(pair: HybridPair, whole: list[torch.Tensor], prefix_of_row: list[int], prefixes: list[int]) -> None:
    found = last_states(packed(pair), whole, prefix_of_row, prefixes)
    assert len(found) == 16
    for layers, states in found.items():
        expected = torch.stack([module_states(pair, text, layers) for text in whole])
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("lengths", [[1], [7, 7, 7], [1, 2, 3, 30, 90], [200, 1]])
def test_texts_without_a_common_beginning(pair: HybridPair, lengths: list[int]) -> None:
    check(pair, texts(lengths), [-1] * len(lengths), [])


@pytest.mark.parametrize("prefixes", [[1], [2, 9], [3, 70]])
def test_texts_that_continue_beginnings(pair: HybridPair, prefixes: list[int]) -> None:
    """Also some that are shorter than the convolution is wide, and one that continues none."""
    rows = texts([1, 2, 5, 40, 3], seed=1)
    prefix_of_row = [0, len(prefixes) - 1, 0, len(prefixes) - 1, -1]
    begin = texts(prefixes, seed=2)
    whole = [torch.cat([begin[g], row]) if g >= 0 else row for row, g in zip(rows, prefix_of_row, strict=True)]
    check(pair, whole, prefix_of_row, prefixes)


def test_a_text_s_result_is_the_same_bits_whatever_sets_are_walked_beside_it(pair: HybridPair) -> None:
    layers, whole = packed(pair), texts([9, 30])
    layout = make_layout(np.array([9, 30]), np.array([8, 38]), device=CPU)
    together = last_states(layers, whole, [-1, -1], [])
    with torch.inference_mode():
        for chosen in SETS:
            [(_, alone)] = walk(layers.on(layout), layers.embed(torch.cat(whole)), [chosen])
            assert torch.equal(alone.sum(), together[chosen])


def test_streamed_donors_give_the_same_bits(pair: HybridPair) -> None:
    whole = texts([9, 30])
    expected = last_states(packed(pair), whole, [-1, -1], [])
    lone = make_pair()
    layers = PackedLayers.of_pair(lone, PlainKernels(), partial(StreamedDonors, device=CPU, slots=2), takes_donor=True)
    found = last_states(layers, whole, [-1, -1], [])
    assert all(torch.equal(found[s], expected[s]) for s in SETS)
    with pytest.raises(ModelError, match="taken out of this pair"):
        lone.assemble([1])
    with pytest.raises(ModelError, match="--memory resident"):
        layers.quantised()


def test_a_finished_hybrid_runs_its_own_layers(pair: HybridPair) -> None:
    whole, chosen = texts([9, 30]), LayerSet((1, 3))
    expected = last_states(packed(pair), whole, [-1, -1], [])[chosen]
    layers = PackedLayers.of_model(pair.assemble(chosen.indices), PlainKernels())
    layout = make_layout(np.array([9, 30]), np.array([8, 38]), device=CPU)
    with torch.inference_mode():
        [(_, found)] = walk(layers.on(layout), layers.embed(torch.cat(whole)), [LayerSet(())])
        torch.testing.assert_close(found.sum(), expected)
        with pytest.raises(ModelError, match="has no donor"):
            list(walk(layers.on(layout), layers.embed(torch.cat(whole)), [LayerSet((1,))]))


def test_matrices_are_joined_once_and_the_modules_look_into_them() -> None:
    lone = make_pair()
    before = {name: p.clone() for name, p in lone.model.named_parameters()}
    first, again = packed(lone), packed(lone)
    mlp = lone.model.backbone.layers[0].mlp
    storage = mlp.gate_proj.weight.untyped_storage().data_ptr()
    assert storage == mlp.up_proj.weight.untyped_storage().data_ptr()
    for layers in (first, again):
        assert layers._base[0][1]["gate_up"].untyped_storage().data_ptr() == storage
    for name, parameter in lone.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_eight_bits_come_near_bfloat16() -> None:
    lone = make_pair(width=64)
    lone.model.to(torch.bfloat16)
    lone = HybridPair(lone.model, [layer.to(torch.bfloat16) for layer in lone.donor_layers], lone.donor_config)
    exact, whole = packed(lone), texts([9, 30, 50])
    expected = last_states(exact, whole, [-1] * 3, [])
    found = last_states(exact.quantised(), whole, [-1] * 3, [])
    for chosen in SETS:
        off = (found[chosen] - expected[chosen]).float().norm() / expected[chosen].float().norm()
        assert 0.001 < off < 0.5


def test_eight_bits_of_float32_are_refused(pair: HybridPair) -> None:
    with pytest.raises(ModelError, match=r"stand in for bfloat16; the weights are torch\.float32"):
        packed(pair).quantised()


def test_a_product_in_eight_bits_is_off_by_their_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 64, generator=generator)
    weights = {"in": torch.randn(24, 64, generator=generator), "in.bias": torch.randn(24, generator=generator)}
    quantised = to_fp8(weights, ("in",))
    assert quantised["in.fp8"].shape == (32, 64)  # rows that a matrix unit wants
    found, expected = linear(PlainKernels().quantise(x), quantised, "in"), linear(x, weights, "in")
    assert found.shape == (40, 24)
    assert 0.01 < (found.float() - expected).norm() / expected.norm() < 0.06
    with pytest.raises(ValueError, match="in is 20 wide"):
        to_fp8({"in": torch.randn(16, 20)}, ("in",))


def test_eight_bits_are_checked_against_their_twin() -> None:
    from models.packed.matrices import fp8_problem

    assert fp8_problem(CPU) is None
