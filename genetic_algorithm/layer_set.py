"""Which layers run the donor's block, and the space of such choices that a search may visit."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

import numpy as np

from genetic_algorithm.errors import SearchError

_SPELLING = re.compile(r"[0-9]+(\+[0-9]+)*")


@dataclass(frozen=True, order=True, slots=True)
class LayerSet:
    """Layers that run the donor's block; every other layer stays the base's.

    `indices` are 0-based and strictly increasing, so that a set has one spelling: `11+13+17`,
    or `none` for the base itself.

    Raises:
        SearchError: if the indices are negative, repeated or out of order.
    """

    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(low >= high for low, high in pairwise((-1, *self.indices))):
            raise SearchError(
                f"layers must be increasing, 0-based and without repeats, got {list(self.indices)}; "
                "name each layer once, lowest first"
            )

    def __str__(self) -> str:
        return "+".join(map(str, self.indices)) or "none"

    def __len__(self) -> int:
        return len(self.indices)

    def __contains__(self, index: object) -> bool:
        return index in self.indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    @classmethod
    def parse(cls, text: str) -> LayerSet:
        """Read the spelling that `str` gives: `11+13+17`, or `none`."""
        if text == "none":
            return cls(())
        if not _SPELLING.fullmatch(text):
            raise SearchError(f"{text!r} is not a layer set; spell it like 11+13+17, or none for the base")
        return cls(tuple(map(int, text.split("+"))))

    @classmethod
    def from_indices(cls, indices: Iterable[int]) -> LayerSet:
        """Build a set from layers in any order.

        Raises:
            SearchError: if a layer is repeated, negative or not a whole number.
        """
        given = list(indices)
        try:
            whole = sorted(operator.index(i) for i in given if not isinstance(i, bool))
        except TypeError:
            whole = []
        if len(whole) != len(given):
            raise SearchError(f"layers must be whole numbers, got {given}; name them like 11 13 17")
        repeated = sorted({low for low, high in pairwise(whole) if low == high})
        if repeated:
            raise SearchError(f"layer {repeated[0]} is named twice in {given}; name each layer once")
        return cls(tuple(whole))

    def with_(self, index: int) -> LayerSet:
        """This set with one more layer; a layer already in it is refused."""
        return LayerSet.from_indices((*self.indices, index))

    def without(self, index: int) -> LayerSet:
        """This set with layer `index` given back to the base; a layer not in it is refused."""
        if index not in self.indices:
            raise SearchError(f"layer {index} is not in {self}; take out one of its own layers")
        return LayerSet(tuple(i for i in self.indices if i != index))

    def swap(self, out: int, into: int) -> LayerSet:
        """This set with layer `out` replaced by layer `into`."""
        return self.without(out).with_(into)


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All sets of `min_layers` to `max_layers` layers out of `num_layers`.

    Raises:
        SearchError: unless 0 <= min_layers <= max_layers <= num_layers and num_layers >= 1.
    """

    num_layers: int
    min_layers: int
    max_layers: int

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise SearchError(f"a model needs at least one layer, got {self.num_layers}")
        if not 0 <= self.min_layers <= self.max_layers:
            raise SearchError(
                f"layer counts from {self.min_layers} to {self.max_layers} hold nothing; "
                "give --min-layers at least 0 and not above --max-layers"
            )
        if self.max_layers > self.num_layers:
            raise SearchError(
                f"--max-layers {self.max_layers} is more than the model's {self.num_layers} layers; "
                f"give at most {self.num_layers}"
            )

    @property
    def size(self) -> int:
        """How many sets there are."""
        return sum(comb(self.num_layers, k) for k in self.sizes)

    @property
    def sizes(self) -> range:
        """The layer counts that are allowed."""
        return range(self.min_layers, self.max_layers + 1)

    def contains(self, layers: LayerSet) -> bool:
        """Whether the search may propose this set."""
        return len(layers) in self.sizes and (not layers.indices or layers.indices[-1] < self.num_layers)

    def check(self, layers: LayerSet) -> LayerSet:
        """Return `layers`, or raise SearchError saying why the set is not in this space."""
        if layers.indices and layers.indices[-1] >= self.num_layers:
            raise SearchError(
                f"layer {layers.indices[-1]} of {layers} is out of range; "
                f"the model's layers are 0 to {self.num_layers - 1}"
            )
        if len(layers) not in self.sizes:
            raise SearchError(
                f"{layers} has {len(layers)} layers; this search is for {self.min_layers} to "
                f"{self.max_layers} (--min-layers, --max-layers)"
            )
        return layers

    def random(self, rng: np.random.Generator) -> LayerSet:
        """Draw a set: the layer count evenly, then the layers evenly.

        Drawing evenly over sets would make nearly all of them as large as allowed.
        """
        size = int(rng.integers(self.min_layers, self.max_layers + 1))
        chosen = rng.choice(self.num_layers, size=size, replace=False)
        return LayerSet(tuple(sorted(chosen.tolist())))

    def neighbours(self, layers: LayerSet) -> list[LayerSet]:
        """Every allowed set one swap, one addition or one removal away, in that order."""
        inside, outside = layers.indices, [i for i in range(self.num_layers) if i not in layers.indices]
        swaps = [layers.swap(out, into) for out in inside for into in outside]
        added = [layers.with_(into) for into in outside]
        dropped = [layers.without(out) for out in inside]
        return [near for near in (*swaps, *added, *dropped) if self.contains(near)]

    def __iter__(self) -> Iterator[LayerSet]:
        for size in self.sizes:
            yield from map(LayerSet, combinations(range(self.num_layers), size))
