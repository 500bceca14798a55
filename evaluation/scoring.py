"""Runs a plan: batches outside, the tree of layer sets inside.

Suffixes: S layer sets, Q questions, C choices.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
    layers.forget()  # what a walk that failed had kept
    scores = torch.zeros(len(sets), plan.gold_QC.size, dtype=torch.float64, device=layers.device)
    cores = torch.get_num_threads() if layers.device.type == "cpu" and layers.is_shareable else 1
    if cores > 1:
        _on_cores(cores, layers, plan, sets, scores)
    else:
        layers.expect(donor_calls(layers.depth, sets) * len(plan.batches))
        for batch in plan.batches:
            _run(layers, batch, sets, scores)
    scores_SQC = scores.view(len(sets), *plan.gold_QC.shape).cpu().numpy()
    scores_SQC[:, plan.absent_QC] = -np.inf
    return scores_SQC


@torch.inference_mode()
def _run(
    layers: PackedLayers, batch: Batch, sets: Sequence[LayerSet], scores: Tensor, stop: threading.Event | None = None
) -> None:
    """All sets on one batch; what they score is added to [S, Q * C]."""
    index = {layer_set: i for i, layer_set in enumerate(sets)}
    for layer_set, stream in walk(layers.on(batch.layout), layers.embed(batch.tokens_N), sets):
        read_off(batch, stream.sum(), layers.logits, scores[index[layer_set]])
        # Or the walk would hold one activation more than it needs while it computes the next.
        del stream
        if stop is not None and stop.is_set():
            return


def _on_cores(cores: int, layers: PackedLayers, plan: Plan, sets: Sequence[LayerSet], scores: Tensor) -> None:
    """A thread for each core. No two batches add to the same score: a choice has its tokens in one row."""
    stop = threading.Event()

    def run(batch: Batch) -> None:
        if not stop.is_set():
            _run(layers, batch, sets, scores, stop)

    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for future in [pool.submit(run, batch) for batch in plan.batches]:
                future.result()
        finally:  # an error, or Ctrl-C, must not wait for all batches
            stop.set()
            torch.set_num_threads(cores)  # part of it holds for the whole process
