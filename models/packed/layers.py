"""Every layer of a pair, in both versions, over packed texts: what the walk walks through.

Suffixes: N packed tokens, D model width, P positions that are read, V vocabulary, T positions; others as in kernels.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.errors import ModelError
from models.hybrid import LENGTH_DEPENDENT_ROPE, HybridPair
from models.modeling_llamba import LlambaForCausalLM
from models.packed.blocks import MATRICES, Block, mixer_weights, prepare
from models.packed.donors import Donors, ResidentDonors
from models.packed.kernels import Kernels
from models.packed.layout import Layout
from models.packed.matrices import Weights, linear, to_fp8


class Stream(NamedTuple):
    """The residual stream between two layers, the last addition left to the norm that follows."""

    h_ND: Tensor
    delta_ND: Tensor | None

    def sum(self) -> Tensor:
        """[N, D], which may lie where `delta_ND` did."""
        return self.h_ND if self.delta_ND is None else self.delta_ND.add_(self.h_ND)


class Kept(NamedTuple):
    """An activation that waits for its branch."""

    h_ND: Tensor
    device_bytes: int
    """0 where it waits in host memory."""


class PackedLayers:
    """Both versions of every layer, with the kernels that run them."""

    def __init__(
        self,
        model: LlambaForCausalLM,
        base: Sequence[tuple[Block, Weights]],
        donor: tuple[Sequence[Block], Donors] | None,
        rotary: LlamaRotaryEmbedding | None,
        kernels: Kernels,
        *,
        is_quantised: bool = False,
    ) -> None:
        """Take prepared layers; `of_pair` and `of_model` prepare them."""
        self.model, self.kernels = model, kernels
        self.depth = len(base)
        self.device, self.dtype = model.device, model.dtype
        self.is_quantised = is_quantised
        self.calls = 0
        """Layers run so far."""
        self._counting = threading.Lock()
        self.branch_bytes: int | None = None
        """Most bytes kept on the device for branches to come back to, more waiting in host memory; None: no bound."""
        self._kept_bytes = 0
        self._base, self._donor, self._rotary = base, donor, rotary
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of_model(cls, model: LlambaForCausalLM, kernels: Kernels) -> PackedLayers:
        """A finished model alone, pure or hybrid; its parameters are then views of the ones used here."""
        blocks = [prepare(layer) for layer in model.backbone.layers]
        return cls(model, blocks, None, model.backbone.rotary_emb, kernels)

    @classmethod
    def of_pair(
        cls,
        pair: HybridPair,
        kernels: Kernels,
        keep: Callable[[Iterable[Weights]], Donors],
        *,
        takes_donor: bool = False,
    ) -> PackedLayers:
        """Both models of a pair, whose parameters are then views of the ones used here.

        Args:
            pair: The models.
            kernels: What runs between the matrix products.
            keep: Makes `Donors` of the weights of the donor's layers.
            takes_donor: The pair lets go of each donor layer once it is kept; it can no longer assemble models.
        """
        blocks: list[Block] = []

        def donor_weights() -> Iterator[Weights]:
            waiting = pair.take_donor_layers() if takes_donor else list(pair.donor_layers)
            while waiting:
                block, weights = prepare(waiting.pop(0))
                blocks.append(block)
                yield weights

        base = [prepare(layer) for layer in pair.model.backbone.layers]
        donors = keep(donor_weights())
        return cls(pair.model, base, (blocks, donors), pair.rotary, kernels)

    @property
    def is_shareable(self) -> bool:
        """Whether several threads may run layers at once: streamed ones give way to one another."""
        return self._donor is None or isinstance(self._donor[1], ResidentDonors)

    def embed(self, tokens_N: Tensor) -> Stream:
        """Token ids to the residual stream."""
        embedding = self.model.backbone.embedding
        if embedding.weight.device == self.device:
            return Stream(embedding(tokens_N), None)
        h_ND = F.embedding(tokens_N.cpu(), embedding.weight)
        return Stream(h_ND.pin_memory().to(self.device, non_blocking=True), None)

    def embed_on_host(self) -> None:
        """Keep the embedding off the device: few rows are used at a time. A tied one is the head, and stays."""
        embedding, head = self.model.backbone.embedding, self.model.lm_head
        if head.weight is not embedding.weight:
            embedding.weight = torch.nn.Parameter(embedding.weight.detach().cpu(), requires_grad=False)

    def logits(self, h_PD: Tensor) -> Tensor:
        """Final norm and head, [P, D] to [P, V] in the model's dtype."""
        return self.model.project(self.model.backbone.final_layernorm(h_PD))

    def on(self, layout: Layout) -> LayersOnTexts:
        """The layers, to be run on texts that lie so."""
        return LayersOnTexts(self, layout)

    def expect(self, donor_calls: Sequence[int]) -> None:
        """The donor's layers that will be run next, in order, so that they can be fetched ahead."""
        if self._donor is not None:
            self._donor[1].expect(donor_calls)

    def run_base(self, i: int, x: Stream, layout: Layout) -> Stream:
        """The base's layer `i`."""
        block, weights = self._base[i]
        return self._run(i, block, weights, x, layout)

    def run_donor(self, i: int, x: Stream, layout: Layout) -> Stream:
        """The donor's layer `i`."""
        if self._donor is None:
            raise ModelError("a finished model has no donor; ask for the empty set")
        blocks, donors = self._donor
        return self._run(i, blocks[i], donors.layer(i), x, layout)

    def keep(self, h_ND: Tensor) -> Kept:
        """Hold an activation for later, on the device while there is room for it."""
        size = h_ND.nbytes
        fits = self.branch_bytes is None or self._kept_bytes + size <= self.branch_bytes
        if self.device.type == "cpu":
            return Kept(h_ND, 0)
        if fits:
            self._kept_bytes += size
            return Kept(h_ND, size)
        host_ND = torch.empty(h_ND.shape, dtype=h_ND.dtype, pin_memory=True)
        return Kept(host_ND.copy_(h_ND, non_blocking=True), 0)

    def take(self, kept: Kept) -> Tensor:
        """What was kept, on the device again."""
        self._kept_bytes -= kept.device_bytes
        return kept.h_ND.to(self.device, non_blocking=True)

    def forget(self) -> None:
        """Count nothing as kept any more: the walk that kept it was broken off."""
        self._kept_bytes = 0

    def _run(self, i: int, block: Block, weights: Weights, x: Stream, layout: Layout) -> Stream:
        kernels, quantise = self.kernels, self.is_quantised
        norm = {"quantise": quantise, "llama": block.attention is not None}
        with self._counting:
            self.calls += 1
        if x.delta_ND is None:
            h_ND, normed = x.h_ND, kernels.rms_norm(x.h_ND, weights["norm"], block.eps[0], **norm)
        else:
            h_ND, normed = kernels.add_rms_norm(x.h_ND, x.delta_ND, weights["norm"], block.eps[0], **norm)
        projected_NE = linear(normed, weights, "in")
        if block.attention is None:
            mixed = kernels.mix(projected_NE, mixer_weights(block, weights), layout, coarse=quantise)
        else:
            table = self._table(layout.longest_text)
            mixed = kernels.attend(projected_NE, block.attention, *table, layout, coarse=quantise)
        del projected_NE, normed  # the largest there are
        if i == self.depth - 1:  # above the last mixing along time, no other position matters
            h_ND, mixed = h_ND[layout.keep_P], mixed[layout.keep_P]
        delta_ND = linear(kernels.quantise(mixed) if quantise else mixed, weights, "out")
        h_ND, normed = kernels.add_rms_norm(h_ND, delta_ND, weights["mlp_norm"], block.eps[1], **norm)
        inner = kernels.swiglu(linear(normed, weights, "gate_up"), quantise=quantise)
        return Stream(h_ND, linear(inner, weights, "down"))

    def _table(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, P] of at least the positions of a text of so many tokens."""
        assert self._rotary is not None
        # A power of two, so that few tables are made; of rotary embeddings that depend on the length, one for each.
        fixed = self._rotary.config.rope_parameters["rope_type"] not in LENGTH_DEPENDENT_ROPE
        length = 1 << max(tokens - 1, 0).bit_length() if fixed else tokens
        if length not in self._tables:
            like = torch.empty(0, dtype=self.dtype, device=self.device)
            cos, sin = self._rotary(like, torch.arange(length, device=self.device).unsqueeze(0))
            self._tables[length] = (cos[0].contiguous(), sin[0].contiguous())
        return self._tables[length]

    def quantised(self) -> PackedLayers:
        """These layers with their matrices in 8 bits; all else is shared.

        Raises:
            ModelError: a donor that is streamed, a dtype other than bfloat16, or widths that 8 bits do not take.
        """
        if self._donor is not None and not isinstance(self._donor[1], ResidentDonors):
            raise ModelError("8-bit products need the donor's layers on the device; give --memory resident")
        if self.dtype != torch.bfloat16:
            raise ModelError(f"8-bit products stand in for bfloat16; the weights are {self.dtype}")
        try:
            base = [(block, to_fp8(weights, MATRICES)) for block, weights in self._base]
            donor = None
            if self._donor is not None:
                blocks, donors = self._donor
                kept = ResidentDonors([to_fp8(donors.layer(i), MATRICES) for i in range(len(blocks))])
                donor = (blocks, kept)
        except ValueError as error:
            raise ModelError(f"this pair cannot be run in 8 bits: {error}") from error
        quantised = PackedLayers(self.model, base, donor, self._rotary, self.kernels, is_quantised=True)
        quantised.branch_bytes = self.branch_bytes
        return quantised


class LayersOnTexts:
    """`PackedLayers` on one layout: the `Layers` of evaluation/walk.py."""

    def __init__(self, layers: PackedLayers, layout: Layout) -> None:
        self._layers, self._layout = layers, layout
        self.depth = layers.depth

    def base(self, i: int, x: Stream) -> Stream:
        """The base's layer `i`; the last layer gives the positions that are read, alone."""
        return self._layers.run_base(i, x, self._layout)

    def donor(self, i: int, x: Stream) -> Stream:
        """The donor's layer `i`, likewise."""
        return self._layers.run_donor(i, x, self._layout)

    def fork(self, x: Stream) -> tuple[Stream, Kept]:
        """Two ways go on from `x`: one now, one later."""
        h_ND = x.sum()
        return Stream(h_ND, None), self._layers.keep(h_ND)

    def back(self, ticket: Kept) -> Stream:
        """What the later way goes on from."""
        return Stream(self._layers.take(ticket), None)
