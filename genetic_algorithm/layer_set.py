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
    """All sets of `min_layers` to `max_layers` layers out of `num_layers` that keep to the constraints.

    Args:
        num_layers: Depth of the model.
        min_layers: Fewest layers of a set.
        max_layers: Most layers of a set.
        must_include: Layers that every set holds.
        forbidden: Layers that no set holds.

    Raises:
        SearchError: if no set can meet them all; the message names the one that cannot be met.
    """

    num_layers: int
    min_layers: int
    max_layers: int
    must_include: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()

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
        must, forbidden = (tuple(sorted(set(layers))) for layers in (self.must_include, self.forbidden))
        for flag, layers in (("--must-include", must), ("--forbid", forbidden)):
            outside = [i for i in layers if not 0 <= i < self.num_layers]
            if outside:
                raise SearchError(f"{flag} {outside[0]}: the model's layers are 0 to {self.num_layers - 1}")
        if both := sorted(set(must) & set(forbidden)):
            raise SearchError(
                f"layer {both[0]} must be included and is forbidden (--forbid, or outside --window); choose one"
            )
        if len(must) > self.max_layers:
            raise SearchError(
                f"--must-include names {len(must)} layers, --max-layers allows {self.max_layers}; raise it"
            )
        if self.num_layers - len(forbidden) < self.min_layers:
            raise SearchError(
                f"--min-layers {self.min_layers} cannot be met: --forbid and --window leave "
                f"{self.num_layers - len(forbidden)} layers"
            )
        object.__setattr__(self, "must_include", must)
        object.__setattr__(self, "forbidden", forbidden)
        object.__setattr__(self, "min_layers", max(self.min_layers, len(must)))
        object.__setattr__(self, "max_layers", min(self.max_layers, self.num_layers - len(forbidden)))

    @property
    def size(self) -> int:
        """How many sets there are."""
        return sum(comb(len(self.free), k - len(self.must_include)) for k in self.sizes)

    @property
    def sizes(self) -> range:
        """The layer counts that are allowed."""
        return range(self.min_layers, self.max_layers + 1)

    @property
    def free(self) -> tuple[int, ...]:
        """Layers that a set may hold or not, increasing."""
        fixed = {*self.must_include, *self.forbidden}
        return tuple(i for i in range(self.num_layers) if i not in fixed)

    @property
    def root(self) -> LayerSet:
        """What every set holds; the base itself where nothing must be included."""
        return LayerSet(self.must_include)

    def of(self, layers: Iterable[int]) -> LayerSet:
        """The set of the root and these layers, in any order."""
        return LayerSet(tuple(sorted({*self.must_include, *layers})))

    def contains(self, layers: LayerSet) -> bool:
        """Whether the search may propose this set."""
        return len(layers) in self.sizes and self.allows(layers)

    def allows(self, layers: LayerSet) -> bool:
        """Whether the search may ask for this set: one of the space, or to measure from a smaller one or the base."""
        if not layers.indices:
            return True
        most = max(self.max_layers, len(self.must_include) + 1)  # each layer may be measured beside the root
        if len(layers) > most or layers.indices[-1] >= self.num_layers:
            return False
        return not set(layers) & set(self.forbidden) and set(self.must_include) <= set(layers)

    def check(self, layers: LayerSet) -> LayerSet:
        """Return `layers`, or raise SearchError saying why the set is not in this space."""
        if layers.indices and layers.indices[-1] >= self.num_layers:
            within = f" (in {layers})" if len(layers) > 1 else ""
            raise SearchError(
                f"layer {layers.indices[-1]}{within} does not exist; the model has layers 0 to {self.num_layers - 1}"
            )
        if len(layers) not in self.sizes:
            raise SearchError(
                f"{layers} has {len(layers)} layers; this search is for {self.min_layers} to "
                f"{self.max_layers} (--min-layers, --max-layers)"
            )
        if held := sorted(set(layers) & set(self.forbidden)):
            raise SearchError(f"{layers} holds layer {held[0]}, which --forbid or --window leaves out")
        if lacking := sorted(set(self.must_include) - set(layers)):
            raise SearchError(f"{layers} lacks layer {lacking[0]}, which --must-include asks for")
        return layers

    def random(self, rng: np.random.Generator) -> LayerSet:
        """Draw a set: the layer count evenly, then the layers evenly.

        Drawing evenly over sets would make nearly all of them as large as allowed.
        """
        size = int(rng.integers(self.min_layers, self.max_layers + 1)) - len(self.must_include)
        return self.of(rng.choice(np.array(self.free, dtype=np.int64), size=size, replace=False).tolist())

    def neighbours(self, layers: LayerSet) -> list[LayerSet]:
        """Every allowed set one swap, one addition or one removal away, in that order."""
        inside = [i for i in layers if i not in self.must_include]
        outside = [i for i in self.free if i not in layers.indices]
        swaps = [layers.swap(out, into) for out in inside for into in outside]
        added = [layers.with_(into) for into in outside]
        dropped = [layers.without(out) for out in inside]
        return [near for near in (*swaps, *added, *dropped) if self.contains(near)]

    def __iter__(self) -> Iterator[LayerSet]:
        """Every set, the smallest first, each size in lexical order of the layers left free."""
        for size in self.sizes:
            yield from map(self.of, combinations(self.free, size - len(self.must_include)))
