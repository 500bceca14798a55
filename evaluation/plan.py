"""Turns a list of questions into batches on the device: what to run, and where its answers are read off.

Suffixes: R rows of a batch, N packed tokens, P positions whose logits are read, M targets, Q questions, C choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.beginnings import common_beginnings
from evaluation.memory import MAX_LOGITS
from evaluation.packing import PackedBatch, pack
from evaluation.questions import QuestionSet
from models.packed.layout import Layout, make_layout, to_device


class Readout(NamedTuple):
    """Positions of one batch whose logits fit in memory together, and the targets read off them."""

    positions: slice
    """Of the P positions that the layout keeps."""
    normalised: int
    """The first so many positions need log-probabilities; of the others logits will do."""
    from_M: Tensor
    """Index into these positions."""
    token_M: Tensor
    slot_M: Tensor
    """Question * C + choice, the question counted within the list."""


class Batch(NamedTuple):
    """Rows that run together."""

    tokens_N: Tensor
    layout: Layout
    readouts: list[Readout]


@dataclass(frozen=True)
class Plan:
    """All batches of a list of questions."""

    batches: list[Batch]
    absent_QC: NDArray[np.bool_]
    """Choices that a question does not have."""
    gold_QC: NDArray[np.bool_]


def make_plan(
    questions: QuestionSet,
    asked: NDArray[np.int64],
    *,
    batch_tokens: int,
    vocab_size: int,
    device: torch.device,
    log_probs: bool = False,
    chunk_questions: int | None = None,
) -> Plan:
    """Batches for the questions `asked`, the same whatever layer sets they are for.

    Args:
        questions: All questions.
        asked: Which of them, in the order of the answers.
        batch_tokens: Most tokens in one batch.
        vocab_size: Logits per position.
        device: Where the tensors go.
        log_probs: Normalise every target over the vocabulary, where ranking alone would not need it.
        chunk_questions: No batch has questions of two chunks of so many, so that answers are those of each chunk asked
            by itself, to the last bit; None for no such bounds.
    """
    rows, question_of_row = _spread(questions.first_row_Q1, asked)
    tokens_R = [questions.row(r) for r in rows]
    choices = questions.gold_QC.shape[1]
    batches = []
    starts = np.searchsorted(question_of_row, np.arange(0, len(asked), chunk_questions or max(1, len(asked))))
    for low, high in pairwise([*starts.tolist(), len(rows)]):
        chunk_R = tokens_R[low:high]
        group_R, prefix_R = common_beginnings(chunk_R)
        for packed in pack(chunk_R, group_R, batch_tokens, prefix_R=prefix_R):
            members = low + packed.members_R
            targets, row_of_target = _spread(questions.first_target_R1, rows[members])
            question_M = question_of_row[members][row_of_target]
            at_M = packed.at(row_of_target, questions.position_M[targets])
            slot_M = question_M * choices + questions.choice_M[targets]
            raw_M = questions.one_token_Q[asked[question_M]] & (not log_probs)
            most = max(1, MAX_LOGITS // vocab_size)
            keep_P, readouts = _readouts(at_M, raw_M, questions.token_M[targets], slot_M, most, device)
            batches.append(Batch(*_run(packed, keep_P, device), readouts))
    absent_QC = np.arange(choices) >= questions.num_choices_Q[asked, None]
    return Plan(batches, absent_QC, questions.gold_QC[asked])


def _run(packed: PackedBatch, keep_P: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Layout]:
    """The tokens and the layout of a batch."""
    layout = make_layout(
        packed.row_lengths_R,
        keep_P,
        device=device,
        prefix_lengths=packed.prefix_lengths_G,
        prefix_of_row=packed.prefix_of_row_R,
    )
    return to_device([packed.tokens_N.astype(np.int64)], device)[0], layout


def read_off(batch: Batch, h_PD: Tensor, logits: Callable[[Tensor], Tensor], scores: Tensor) -> None:
    """Add to the scores of the choices what the model says of the targets of one batch.

    Args:
        batch: What was run.
        h_PD: What the last layer made of the positions that are read.
        logits: Final norm and head: [P, D] to [P, V].
        scores: float64 [Q * C] of the whole plan, added to in place: several tokens of a choice add up.
    """
    for readout in batch.readouts:
        logits_PV = logits(h_PD[readout.positions])
        if logits_PV.dtype != torch.float32:
            # Rounding to few bits makes ties, which lm-eval breaks after its log-softmax: so must we.
            logits_PV = logits_PV.log_softmax(-1)
        elif readout.normalised:
            first_PV, rest_PV = logits_PV[: readout.normalised], logits_PV[readout.normalised :]
            logits_PV = torch.cat([first_PV.log_softmax(-1), rest_PV])
        scores.index_add_(0, readout.slot_M, logits_PV[readout.from_M, readout.token_M].double())


def _readouts(
    position_M: NDArray[np.int64],
    raw_M: NDArray[np.bool_],
    token_M: NDArray[np.int64],
    slot_M: NDArray[np.int64],
    most: int,
    device: torch.device,
) -> tuple[NDArray[np.int64], list[Readout]]:
    """Each position once, those to normalise first, at most `most` at a time."""
    # A position within a shared beginning may be read for several questions, raw for some: then it counts twice.
    at_2P, from_M = np.unique(np.stack([raw_M.astype(np.int64), position_M]), axis=1, return_inverse=True)
    from_M = from_M.reshape(-1)
    order = np.argsort(from_M, kind="stable")
    readouts = []
    for begin in range(0, at_2P.shape[1], most):
        raw_P = at_2P[0, begin : begin + most]
        first, last = np.searchsorted(from_M[order], [begin, begin + most])
        chosen = order[first:last]
        arrays = (from_M[chosen] - begin, token_M[chosen], slot_M[chosen])
        source, token, slot = to_device(arrays, device)
        positions = slice(begin, begin + len(raw_P))
        readouts.append(Readout(positions, int(len(raw_P) - raw_P.sum()), source, token, slot))
    return at_2P[1], readouts


def _spread(first: NDArray[np.int64], chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Members of the chosen ranges first[i]:first[i+1] in a row, and for each its place in `chosen`."""
    counts = first[chosen + 1] - first[chosen]
    place = np.repeat(np.arange(len(chosen)), counts)
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) - before[place] + first[chosen][place], place
