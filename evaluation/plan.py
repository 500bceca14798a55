"""Turns a list of questions into batches on the device: what to run, and where its answers are read off.

Suffixes: B rows of a batch, T tokens, P positions whose logits are read, M targets, Q questions, C choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.packing import pack, padded
from evaluation.questions import QuestionSet

MAX_LOGITS = 2**26
"""Most logits held at once; 256 MiB in float32."""


class Readout(NamedTuple):
    """Positions of one batch whose logits fit in memory together, and the targets read off them."""

    at_P: Tensor
    """Index into the batch's B*T positions."""
    normalised: int
    """The first so many positions need log-probabilities; of the others logits will do."""
    from_M: Tensor
    """Index into the P positions."""
    token_M: Tensor
    slot_M: Tensor
    """Question * C + choice, the question counted within the list."""


class Batch(NamedTuple):
    """Rows that run together."""

    tokens_BT: Tensor
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
) -> Plan:
    """Batches for the questions `asked`, the same whatever layer sets they are for.

    Args:
        questions: All questions.
        asked: Which of them, in the order of the answers.
        batch_tokens: Most tokens in one batch, padding included.
        vocab_size: Logits per position.
        device: Where the tensors go.
        log_probs: Normalise every target over the vocabulary, where ranking alone would not need it.
    """
    rows, question_of_row = _spread(questions.first_row_Q1, asked)
    choices = questions.gold_QC.shape[1]
    batches = []
    for members in pack(questions.lengths_R[rows], batch_tokens):
        tokens_BT = padded([questions.row(rows[b]) for b in members])
        targets, row_of_target = _spread(questions.first_target_R1, rows[members])
        question_M = question_of_row[members][row_of_target]
        position_M = row_of_target * tokens_BT.shape[1] + questions.position_M[targets]
        slot_M = question_M * choices + questions.choice_M[targets]
        raw_M = questions.one_token_Q[asked[question_M]] & (not log_probs)
        token_M = questions.token_M[targets]
        readouts = _readouts(position_M, raw_M, token_M, slot_M, max(1, MAX_LOGITS // vocab_size), device)
        batches.append(Batch(torch.from_numpy(tokens_BT).to(device), readouts))
    absent_QC = np.arange(choices) >= questions.num_choices_Q[asked, None]
    return Plan(batches, absent_QC, questions.gold_QC[asked])


def read_off(batch: Batch, h_BTD: Tensor, logits: Callable[[Tensor], Tensor], scores: Tensor) -> None:
    """Add to the scores of the choices what the model says of the targets of one batch.

    Args:
        batch: What was run.
        h_BTD: What the last layer made of it.
        logits: Final norm and head: [P, D] to [P, V].
        scores: float64 [Q * C] of the whole plan, added to in place: several tokens of a choice add up.
    """
    h_ND = h_BTD.flatten(0, 1)
    for readout in batch.readouts:
        logits_PV = logits(h_ND[readout.at_P])
        if readout.normalised:
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
) -> list[Readout]:
    """Each position once, those to normalise first, at most `most` at a time."""
    # Targets of one position agree on whether they are raw: a row belongs to one question.
    at_2P, from_M = np.unique(np.stack([raw_M.astype(np.int64), position_M]), axis=1, return_inverse=True)
    from_M = from_M.reshape(-1)
    order = np.argsort(from_M, kind="stable")
    readouts = []
    for begin in range(0, at_2P.shape[1], most):
        raw_P, at_P = at_2P[:, begin : begin + most]
        first, last = np.searchsorted(from_M[order], [begin, begin + most])
        chosen = order[first:last]
        tensors = (at_P.copy(), from_M[chosen] - begin, token_M[chosen], slot_M[chosen])
        at, source, token, slot = (torch.from_numpy(array).to(device) for array in tensors)
        readouts.append(Readout(at, int(len(raw_P) - raw_P.sum()), source, token, slot))
    return readouts


def _spread(first: NDArray[np.int64], chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Members of the chosen ranges first[i]:first[i+1] in a row, and for each its place in `chosen`."""
    counts = first[chosen + 1] - first[chosen]
    place = np.repeat(np.arange(len(chosen)), counts)
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) - before[place] + first[chosen][place], place
