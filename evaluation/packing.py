"""Puts rows of tokens of unlike lengths into padded batches.

Models here are causal and rows are padded on the right, so no real token ever sees the padding and no mask is
needed. Batches depend on the lengths alone, never on the layer sets that will be asked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_WASTE = 1 / 16
"""Most padding in one batch, as a fraction of `batch_tokens`."""


def pack(lengths: NDArray[np.int64], batch_tokens: int, *, max_waste: float = MAX_WASTE) -> list[NDArray[np.int64]]:
    """Split rows into batches of rows that are about equally long.

    Longest rows come first, so that a batch too large for the device fails at once and not after an hour. A
    batch ends when the next row would bring it over `batch_tokens` or its padding over
    `max_waste * batch_tokens`: counted in tokens and not as a share of the batch, a new batch is only begun
    when that saves enough work to pay for one more.

    Args:
        lengths: Tokens per row, int64 [R], each at least 1.
        batch_tokens: Most tokens in one batch, padding included; a longer row is a batch of its own.
        max_waste: See `MAX_WASTE`.

    Returns:
        Row indices of each batch, every row in exactly one.

    Raises:
        ValueError: if `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    order = np.argsort(-lengths, kind="stable")
    batches: list[NDArray[np.int64]] = []
    begin = waste = 0
    for at, row in enumerate(order.tolist()):
        longest = int(lengths[order[begin]])
        waste += longest - int(lengths[row])
        if at > begin and ((at - begin + 1) * longest > batch_tokens or waste > max_waste * batch_tokens):
            batches.append(order[begin:at])
            begin, waste = at, 0
    if len(order):
        batches.append(order[begin:])
    return batches


def padded(rows: list[NDArray[np.int32]], pad: int = 0) -> NDArray[np.int64]:
    """Stack rows of tokens into int64 [B, T], T being the longest row, filled up with `pad` on the right."""
    tokens_BT = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for row, tokens in zip(tokens_BT, rows, strict=True):
        row[: len(tokens)] = tokens
    return tokens_BT
