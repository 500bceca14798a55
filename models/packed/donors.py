"""Where the weights of the donor's layers are kept: on the device, or in host memory and fetched ahead of their use.

A streamed layer is one flat run of bytes, so that one copy moves it. Copies run beside the computing, into a few slots
on the device. The layer that gives way is the one whose next use is farthest (L. A. Belady, "A study of replacement
algorithms for a virtual-storage computer", IBM Systems Journal 5, 1966), and only if it is needed later than the layer
that is fetched (P. Cao et al., "A study of integrated prefetching and caching strategies", SIGMETRICS 1995).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.errors import ModelError

_ALIGNMENT = 256
"""Bytes; kernels of matrix products want 16, and CUDA's own allocations have this."""
_AHEAD = 3
"""Calls by which a layer is fetched ahead: in a model of the walk over populations of sets of up to four layers, at up
to five layers' computing for a copy, as fast as without a limit, and up to half the copies."""
_NEVER = 1 << 62


class Donors(Protocol):
    """The weights of the donor's layers, by name."""

    def layer(self, i: int) -> dict[str, Tensor]:
        """Those of layer `i`, on the device, for what is asked of the device before the next call."""

    def expect(self, calls: Sequence[int]) -> None:
        """The layers that `layer` will be asked for next, in order; what was expected before is forgotten."""


class ResidentDonors:
    """Donors that are on the device already."""

    def __init__(self, layers: Iterable[Mapping[str, Tensor]]) -> None:
        self._layers = [dict(weights) for weights in layers]

    def layer(self, i: int) -> dict[str, Tensor]:
        """As `Donors.layer`; valid for good."""
        return self._layers[i]

    def expect(self, calls: Sequence[int]) -> None:
        """Nothing is to be fetched."""


class Lane(Protocol):
    """Copies to a device that run beside what it computes; a mark is a point in one of the two."""

    def mark(self) -> Any:
        """The point at which all is computed that has been asked for until now."""

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        """Copy once computing has passed `after`, one copy after the other; gives the point at which it is done."""

    def wait(self, mark: Any) -> None:
        """Let what is asked for from now on be computed only once copying has passed `mark`."""


class StreamedDonors:
    """Donors in host memory, of which a few are on the device. The host never waits for the device.

    Attributes:
        copies: Layers copied to the device so far.
    """

    def __init__(
        self,
        layers: Iterable[Mapping[str, Tensor]],
        device: torch.device,
        slots: int,
        *,
        lane: Lane | None = None,
    ) -> None:
        """Copy the layers, one by one, to host memory that is pinned where the device is a GPU.

        Args:
            layers: Weights by name, anywhere; from a generator, no two of them need to be alive at once.
            device: Where they will be used.
            slots: Layers on the device at once, at least 2: one in use, one on its way.
            lane: How they are copied; what suits the device where None.

        Raises:
            ModelError: The host's memory does not suffice.
        """
        if slots < 2:
            raise ValueError(f"{slots} slots: one is in use while another is filled, so there must be at least 2")
        self.copies = 0
        with torch.inference_mode(False), torch.no_grad():  # or slots could not be written to outside that mode
            self._packed = [_pack(weights, device) for weights in layers]
            size = max((len(packed.bytes) for packed in self._packed), default=0)
            buffers = [
                torch.empty(size, dtype=torch.uint8, device=device) for _ in range(min(slots, len(self._packed)))
            ]
        self._lane = lane or (_CudaLane(device, buffers) if device.type == "cuda" else _PlainLane())
        self._slots = [_Slot(buffer, free_from=self._lane.mark()) for buffer in buffers]
        self._in_use: _Slot | None = None
        self.expect([])

    def __len__(self) -> int:
        return len(self._packed)

    def kept(self, i: int) -> dict[str, Tensor]:
        """The weights of layer `i` in host memory, to be read; writing to them changes the layer."""
        return self._packed[i].views(self._packed[i].bytes)

    def expect(self, calls: Sequence[int]) -> None:
        """As `Donors.expect`; begins to fetch. A call that is not the next one expected is served, but waits.

        Takes 8 bytes for each call, so all batches of a request may be expected at once.
        """
        self._calls = np.asarray(calls, dtype=np.int64)
        if len(self._calls) and not 0 <= self._calls.min() <= self._calls.max() < len(self):
            raise IndexError(f"layers {self._calls.min()} to {self._calls.max()} are expected of {len(self)}")
        self._uses = [np.flatnonzero(self._calls == i) for i in range(len(self))]
        self._used = [0] * len(self)
        self._at = 0
        self._fetch_ahead()

    def layer(self, i: int) -> dict[str, Tensor]:
        """As `Donors.layer`."""
        if not 0 <= i < len(self):
            raise IndexError(f"layer {i} of {len(self)}")
        if self._in_use is not None:
            self._in_use.free_from = self._lane.mark()
            self._in_use = None
        if self._at < len(self._calls) and self._calls[self._at] == i:
            self._at += 1
            self._used[i] += 1
        slot = next((slot for slot in self._slots if slot.layer == i), None) or self._fetch(i, self._farthest())
        self._in_use = slot
        self._lane.wait(slot.filled_at)
        self._fetch_ahead()
        if i not in slot.views:
            slot.views[i] = self._packed[i].views(slot.bytes)
        return slot.views[i]

    def _fetch_ahead(self) -> None:
        held = {slot.layer for slot in self._slots}
        missing = sorted((self._next_use(i), i) for i in range(len(self)) if i not in held)
        for use, i in missing:
            slot = self._farthest()
            if use >= self._at + _AHEAD or self._next_use(slot.layer) < use:
                return
            self._fetch(i, slot)

    def _fetch(self, i: int, slot: _Slot) -> _Slot:
        source = self._packed[i].bytes
        slot.layer = i
        slot.filled_at = self._lane.copy(slot.bytes[: len(source)], source, slot.free_from)
        self.copies += 1
        return slot

    def _farthest(self) -> _Slot:
        """Of the slots that are not in use, the one whose layer is needed last."""
        return max((slot for slot in self._slots if slot is not self._in_use), key=lambda s: self._next_use(s.layer))

    def _next_use(self, i: int | None) -> int:
        """Place among the expected calls; of an empty slot beyond those of all layers."""
        if i is None:
            return _NEVER + 1
        return int(self._uses[i][self._used[i]]) if self._used[i] < len(self._uses[i]) else _NEVER


class _Slot:
    """Room for one layer on the device."""

    def __init__(self, buffer: Tensor, free_from: Any) -> None:
        self.bytes = buffer
        self.layer: int | None = None
        self.free_from = free_from
        self.filled_at: Any = None
        self.views: dict[int, dict[str, Tensor]] = {}


class _PlainLane:
    """Copies at once, for devices that compute at once."""

    def mark(self) -> None:
        return None

    def copy(self, target: Tensor, source: Tensor, after: None) -> None:
        target.copy_(source)

    def wait(self, mark: None) -> None:
        return None


class _CudaLane:
    """Copies on a stream of its own; marks are events."""

    def __init__(self, device: torch.device, targets: Iterable[Tensor]) -> None:
        self._device, self._copying = device, torch.cuda.Stream(device)
        for target in targets:
            target.record_stream(self._copying)  # once let go of, its memory waits for the last copy

    def mark(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self._device).record_event()

    def copy(self, target: Tensor, source: Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        self._copying.wait_event(after)
        with torch.cuda.stream(self._copying):
            target.copy_(source, non_blocking=True)
        return self._copying.record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)


@dataclass(frozen=True, slots=True)
class _Place:
    """Of one tensor in a run of bytes."""

    first: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def last(self) -> int:
        """The byte behind it."""
        return self.first + self.shape.numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Packed:
    """One layer in a row."""

    bytes: Tensor
    """uint8, in host memory."""
    places: dict[str, _Place]

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors by name, where `flat` holds these bytes."""
        return {
            name: flat[place.first : place.last].view(place.dtype).as_strided(place.shape, place.stride)
            for name, place in self.places.items()
        }


def _pack(weights: Mapping[str, Tensor], device: torch.device) -> _Packed:
    """A copy of one layer; a tensor whose strides leave no gaps keeps them, so that a transposed matrix stays one."""
    places: dict[str, _Place] = {}
    end = 0
    for name, tensor in weights.items():
        first = -(-end // _ALIGNMENT) * _ALIGNMENT
        places[name] = _Place(first, tensor.dtype, tensor.shape, torch.empty_like(tensor, device="meta").stride())
        end = places[name].last
    try:
        flat = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        advice = "free memory of the host, or keep the donor on the GPU (memory resident)"
        raise ModelError(f"{end / 1e9:.2f} GB more host memory for a donor layer: {reason}; {advice}") from error
    packed = _Packed(flat, places)
    for name, view in packed.views(flat).items():
        view.copy_(weights[name])
    return packed
