"""Runs many layer sets through a model at once, sharing the layers below which they agree.

Layer sets form a tree: at each layer a set takes the base's block or the donor's. `walk` goes through that
tree depth first, so that every distinct prefix of choices is computed once; `one_at_a_time` is its slow and
obvious twin, against which it is tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from genetic_algorithm import LayerSet

X = TypeVar("X")


class Layers(Protocol[X]):
    """A model as a stack of layers, each of which has two versions."""

    @property
    def depth(self) -> int:
        """How many layers there are."""

    def base(self, i: int, x: X) -> X:
        """What the base's layer `i` makes of `x`."""

    def donor(self, i: int, x: X) -> X:
        """What the donor's layer `i` makes of `x`."""

    def fork(self, x: X) -> tuple[X, Any]:
        """`x` to go on with now, and a ticket for it to come back to; the old `x` is not used again."""

    def back(self, ticket: Any) -> X:
        """The `x` of a ticket, once."""


def distinct(batch: Iterable[LayerSet]) -> list[LayerSet]:
    """Drop repeated sets, keeping the order of first appearance."""
    return list(dict.fromkeys(batch))


def walk(model: Layers[X], x: X, wanted: Sequence[LayerSet], start: int = 0) -> Iterator[tuple[LayerSet, X]]:
    """Yield each distinct set of `wanted` with what its layers make of `x`.

    Each distinct prefix of layer choices is computed once, whatever the order of `wanted`, so no order shares
    more. Going down the donor's branch first keeps few activations alive: at a branch only the one that the
    base's branch still needs, hence at most one per swapped layer on the current path, plus one.

    Args:
        model: The layers.
        x: What enters layer `start`; for a transformer the residual stream.
        wanted: Sets that agree below layer `start`.
        start: First layer that is still to run.
    """
    if start == 0:
        wanted = distinct(wanted)
    if not wanted:
        return
    for depth in range(start, model.depth):
        swapped = [layers for layers in wanted if depth in layers.indices]
        if not swapped:
            x = model.base(depth, x)
        elif len(swapped) == len(wanted):
            # No branch here: to go on in this frame lets go of what entered the layer.
            x = model.donor(depth, x)
        else:
            x, ticket = model.fork(x)
            entering = [model.donor(depth, x)]
            del x  # the ticket alone says where it is kept
            yield from walk(model, entering.pop(), swapped, depth + 1)
            wanted = [layers for layers in wanted if depth not in layers.indices]
            x = model.back(ticket)
            del ticket
            x = model.base(depth, x)
    for layers in wanted:
        yield layers, x


def one_at_a_time(model: Layers[X], x: X, layers: LayerSet) -> X:
    """What the layers of one set make of `x`, from the bottom, sharing nothing: the plain twin of `walk`."""
    for depth in range(model.depth):
        x = model.donor(depth, x) if depth in layers.indices else model.base(depth, x)
    return x


class _Recorder:
    """Layers that only note which are run."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.donor_calls: list[int] = []

    def base(self, i: int, x: None) -> None:
        return None

    def donor(self, i: int, x: None) -> None:
        self.donor_calls.append(i)

    def fork(self, x: None) -> tuple[None, None]:
        return None, None

    def back(self, ticket: None) -> None:
        return None


def donor_calls(depth: int, wanted: Sequence[LayerSet]) -> list[int]:
    """The donor's layers that `walk` runs for `wanted`, in its order."""
    recorder = _Recorder(depth)
    for _ in walk(recorder, None, wanted):
        pass
    return recorder.donor_calls


def count_layer_calls(depth: int, wanted: Iterable[LayerSet]) -> int:
    """Layer calls that `walk` makes for `wanted`; one at a time would take `depth` for each distinct set."""
    sets = distinct(wanted)
    return len({(top, tuple(i for i in s.indices if i <= top)) for s in sets for top in range(depth)})
