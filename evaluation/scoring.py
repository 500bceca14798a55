"""Runs a plan: batches outside, the tree of layer sets inside.

Suffixes: S layer sets, Q questions, C choices.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.plan import Batch, Plan, read_off
from evaluation.walk import donor_calls, walk
from genetic_algorithm import LayerSet
from models.packed.layers import PackedLayers


def score(layers: PackedLayers, plan: Plan, sets: Sequence[LayerSet]) -> NDArray[np.float64]:
    """Scores that rank the choices, [S, Q, C]: summed log-probabilities, or logits where they rank alike.

    Nothing waits for a GPU before the end. On a CPU each core takes batches of its own: products and sums of a small
    model are too short to be shared out among cores. A batch that is alone runs on one core, too: on several its sums
    round otherwise, and answers must not depend on what else is asked.
    """
    scores_SQC = np.empty((len(sets), *plan.gold_QC.shape))
    for i, scores_QC in score_each(layers, plan, sets):
        scores_SQC[i] = scores_QC
    return scores_SQC


def score_each(layers: PackedLayers, plan: Plan, sets: Sequence[LayerSet]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The scores of `score` by the place of their set, [Q, C]; on a CPU as soon as a set is through all batches."""
    layers.forget()  # what a walk that failed had kept
    scores = torch.zeros(len(sets), plan.gold_QC.size, dtype=torch.float64, device=layers.device)
    if layers.device.type == "cpu" and layers.is_shareable:
        through = _on_cores(layers, plan, sets, scores)
    else:
        layers.expect(donor_calls(layers.depth, sets) * len(plan.batches))
        for batch in plan.batches:
            for _ in _run(layers, batch, sets, scores):
                pass
        scores, through = scores.cpu(), iter(range(len(sets)))
    for i in through:
        scores_QC = scores[i].view(plan.gold_QC.shape).numpy()
        scores_QC[plan.absent_QC] = -np.inf
        yield i, scores_QC


@torch.inference_mode()
def _run(layers: PackedLayers, batch: Batch, sets: Sequence[LayerSet], scores: Tensor) -> Iterator[int]:
    """All sets on one batch, one after the other; what they score is added to [S, Q * C]. Yields their places."""
    index = {layer_set: i for i, layer_set in enumerate(sets)}
    for layer_set, stream in walk(layers.on(batch.layout), layers.embed(batch.tokens_N), sets):
        read_off(batch, stream.sum(), layers.logits, scores[index[layer_set]])
        # Or the walk would hold one activation more than it needs while it computes the next.
        del stream
        yield index[layer_set]


def _on_cores(layers: PackedLayers, plan: Plan, sets: Sequence[LayerSet], scores: Tensor) -> Iterator[int]:
    """A thread for each core. No two batches add to the same score: a choice has its tokens in one row.

    Yields the place of each set that is through all batches.
    """
    cores, stop = torch.get_num_threads(), threading.Event()
    events: queue.SimpleQueue[int | Future[None]] = queue.SimpleQueue()  # a set through one batch; a batch that is over

    def run(batch: Batch) -> None:
        if stop.is_set():
            return
        for i in _run(layers, batch, sets, scores):
            events.put(i)
            if stop.is_set():
                return

    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            left_S, going = [len(plan.batches)] * len(sets), len(plan.batches)
            for batch in plan.batches:
                pool.submit(run, batch).add_done_callback(events.put)
            while going:
                event = events.get()
                if isinstance(event, Future):
                    event.result()
                    going -= 1
                    continue
                left_S[event] -= 1
                if not left_S[event]:
                    yield event
        finally:  # an error, or Ctrl-C, must not wait for all batches
            stop.set()
            torch.set_num_threads(cores)  # part of it holds for the whole process
