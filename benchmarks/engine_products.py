"""The matrix products of a walk by themselves: how many operations they are, and how fast they alone run.

Suffixes: N tokens, K inner width, E output width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from serving import synchronize
from torch import Tensor

from evaluation.walk import donor_calls
from genetic_algorithm import LayerSet
from models.configuration_llamba import LlambaConfig
from models.packed.kernels import Operand, Quantised
from models.packed.matrices import linear, to_fp8
from models.packed.plain import PlainKernels

COPIES = 3
"""Layers of weights of each kind that large models' products go round, so that none finds its weights in a cache."""
LARGE = 1 << 28
"""Bytes of a layer from which on it is large."""


class Size(NamedTuple):
    """Of one batch."""

    tokens: int
    read: int
    """Positions whose logits are read: above the last mixing along time nothing else runs."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Layers that a walk runs for one batch."""

    base: int
    donor: int
    base_last: int
    """Of the last layer, which are not counted in the other two."""
    donor_last: int
    sets: int


@dataclass(frozen=True, slots=True)
class Shapes:
    """Matrices [E, K] of both kinds of layer, and of the head."""

    base: Mapping[str, tuple[int, int]]
    donor: Mapping[str, tuple[int, int]]
    head: tuple[int, int]

    def of(self, is_donor: bool) -> Mapping[str, tuple[int, int]]:
        """One kind of layer's."""
        return self.donor if is_donor else self.base


def shapes_of(base: LlambaConfig, donor: Any) -> Shapes:
    """From the configurations; what takes the same input is one matrix."""
    width, mlp, ssm = base.d_model, base.mlp_cfg["intermediate_size"], base.ssm_cfg
    mixed = 2 * base.d_inner + 2 * ssm["n_qk_heads"] * ssm["d_state"] + ssm["n_v_heads"]
    query, key = donor.num_attention_heads * donor.head_dim, donor.num_key_value_heads * donor.head_dim
    return Shapes(
        base={"in": (mixed, width), "out": (width, base.d_inner), "gate_up": (2 * mlp, width), "down": (width, mlp)},
        donor={
            "in": (query + 2 * key, width),
            "out": (width, query),
            "gate_up": (2 * donor.intermediate_size, width),
            "down": (width, donor.intermediate_size),
        },
        head=(base.padded_vocab_size, width),
    )


def calls_of(depth: int, sets: Sequence[LayerSet]) -> Calls:
    """What the walk runs for these sets, sharing what it can."""
    prefixes = {(top, tuple(i for i in s.indices if i <= top)) for s in sets for top in range(depth)}
    donors = {(top, below) for top, below in prefixes if below and below[-1] == top}
    assert len(donors) == len(donor_calls(depth, sets))
    last = sum(top == depth - 1 for top, _ in prefixes)
    donor_last = sum(top == depth - 1 for top, _ in donors)
    return Calls(
        base=len(prefixes) - len(donors) - (last - donor_last),
        donor=len(donors) - donor_last,
        base_last=last - donor_last,
        donor_last=donor_last,
        sets=len(set(sets)),
    )


def flops_run(shapes: Shapes, calls: Calls, batches: Sequence[Size]) -> int:
    """Operations of all products that the walk runs, the head's among them; multiplications and additions counted."""
    return sum(2 * rows * outer * inner for size in batches for rows, outer, inner in _products(shapes, calls, size))


def flops_asked(shapes: Shapes, sets: Sequence[LayerSet], depth: int, tokens: int) -> int:
    """Operations if each set ran all its layers over all tokens of all questions, nothing shared; without the head."""
    total = 0
    for layers in sets:
        donors = len(layers.indices)
        for kind, count in ((shapes.donor, donors), (shapes.base, depth - donors)):
            total += count * sum(2 * tokens * outer * inner for outer, inner in kind.values())
    return total


def _products(shapes: Shapes, calls: Calls, size: Size) -> Iterator[tuple[int, int, int]]:
    """Rows, outer and inner width of each product over one batch."""
    for is_donor, whole, last in ((False, calls.base, calls.base_last), (True, calls.donor, calls.donor_last)):
        for name, (outer, inner) in shapes.of(is_donor).items():
            for _ in range(whole + (last if name == "in" else 0)):
                yield size.tokens, outer, inner
            for _ in range(0 if name == "in" else last):
                yield size.read, outer, inner
    for _ in range(calls.sets):
        yield size.read, *shapes.head


class Alone:
    """The products of a walk, run by themselves as the engine's are, on weights and inputs that are drawn."""

    def __init__(
        self, shapes: Shapes, depth: int, dtype: torch.dtype, device: torch.device, *, in_8_bits: bool = False
    ) -> None:
        layer_bytes = sum(outer * inner for outer, inner in shapes.base.values()) * dtype.itemsize
        copies = COPIES if layer_bytes > LARGE else depth
        self._device, self._in_8_bits, self._shapes = device, in_8_bits, shapes
        make = torch.Generator(device).manual_seed(0)

        def draw(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=make, dtype=dtype, device=device)

        self._draw = draw
        self._weights = {}
        for is_donor in (False, True):
            kind = shapes.of(is_donor)
            layers = [{n: draw(*shape) * shape[1] ** -0.5 for n, shape in kind.items()} for _ in range(copies)]
            self._weights[is_donor] = [to_fp8(layer, tuple(kind)) if in_8_bits else layer for layer in layers]
        self._head = {"head": draw(*shapes.head)}
        self._inputs: dict[int, Tensor] = {}
        self._in_bytes: dict[int, Quantised] = {}

    @torch.inference_mode()
    def run(self, calls: Calls, batches: Sequence[Size]) -> None:
        """All of them once, layer by layer; what comes out is dropped."""
        for size in batches:
            whole = [(False, size.tokens)] * calls.base + [(True, size.tokens)] * calls.donor
            last = [(False, size.read)] * calls.base_last + [(True, size.read)] * calls.donor_last
            for at, (is_donor, rows) in enumerate(whole + last):
                layers = self._weights[is_donor]
                for name, (_, inner) in self._shapes.of(is_donor).items():
                    taken = size.tokens if name == "in" else rows
                    linear(self._input(taken, inner), layers[at % len(layers)], name)
            for _ in range(calls.sets):
                linear(self._plain_input(size.read, self._shapes.head[1]), self._head, "head")

    def seconds(self, calls: Calls, batches: Sequence[Size]) -> float:
        """Of one run."""
        return timed(lambda: self.run(calls, batches), self._device)

    def sustained(self, calls: Calls, batches: Sequence[Size], seconds: float) -> float:
        """Operations per second, after a run that does not count, over at least so many seconds without a pause."""
        self.run(calls, batches)
        synchronize(self._device)
        runs, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            self.run(calls, batches)
            synchronize(self._device)  # after hundreds of products: the device hardly waits for the next
            runs += 1
        return runs * flops_run(self._shapes, calls, batches) / (time.perf_counter() - began)

    @torch.inference_mode()
    def each(self, tokens: int, seconds: float) -> dict[str, float]:
        """Operations per second of each product of the base, by itself, over so many seconds."""
        found = {}
        for name, (outer, inner) in self._shapes.base.items():
            x, layers, runs = self._input(tokens, inner), self._weights[False], 0
            linear(x, layers[0], name)
            synchronize(self._device)
            began = time.perf_counter()
            while time.perf_counter() - began < seconds:
                for weights in layers:
                    linear(x, weights, name)
                synchronize(self._device)
                runs += len(layers)
            found[name] = 2 * tokens * outer * inner * runs / (time.perf_counter() - began)
        return found

    def _input(self, rows: int, width: int) -> Operand:
        """Rows of the largest input that was needed so far."""
        plain = self._plain_input(rows, width)
        if not self._in_8_bits:
            return plain
        if width not in self._in_bytes or len(self._in_bytes[width].values_NK) < rows:
            self._in_bytes[width] = PlainKernels().quantise(plain)
        return Quantised(*(part[:rows] for part in self._in_bytes[width]))

    def _plain_input(self, rows: int, width: int) -> Tensor:
        if width not in self._inputs or len(self._inputs[width]) < rows:
            self._inputs[width] = self._draw(rows, width)
        return self._inputs[width][:rows]


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until all is done."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began
