"""Training batches: a fixed mix of subjects, many of them easier than the questions of the test.

Two-hop look-ups emerge late when trained on eight facts alone; shorter contexts and questions without options (where
the loss is over all values, not four letters) bring them forward. Batches depend on the seed and the step alone.
Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from models.tiny_pair.questions import FACTS, sample, tokens_with_answer
from models.tiny_pair.vocabulary import PAD, ids

# subject -> groups per batch
MIX = {"knowledge": 1, "recall": 2, "two_hop": 4, "position": 1}
EASY = 0.5  # share of recall, two-hop and position groups with fewer facts
OPEN = 0.25  # share of groups without options
GROUP = 128  # questions that share their number of facts
BATCH = GROUP * sum(MIX.values())
CONTEXT_WEIGHT = 0.1  # loss weight of tokens before the answer


def batch(seed: int, step: int, mix: Mapping[str, int] = MIX) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """[B, T] token ids and [B, T] loss weights (of the token as a target) of one training step."""
    rng = np.random.default_rng([seed, step])
    tokens, weights = [], []
    for subject, groups in mix.items():
        for _ in range(groups):
            facts, chains = FACTS, FACTS // 2
            if rng.random() < EASY:
                chains = int(rng.integers(1, FACTS // 2 + 1))
                facts = int(rng.integers(2 * chains if subject == "two_hop" else 2, FACTS + 1))
            drawn = sample(subject, GROUP, rng, facts, chains)
            rows, ask_at = tokens_with_answer(drawn, with_options=rng.random() >= OPEN)
            column = np.arange(rows.shape[1])
            weight = np.where(column > ask_at[:, None], 1.0, CONTEXT_WEIGHT) * (rows != ids()[PAD])
            tokens.append(rows)
            weights.append(weight.astype(np.float32))
    return np.concatenate(tokens), np.concatenate(weights)


def batches(
    seed: int, start: int, stop: int, workers: int = 6, mix: Mapping[str, int] = MIX
) -> Generator[tuple[NDArray[np.int64], NDArray[np.float32]], None, None]:
    """The batches of steps start..stop-1 in order, drawn ahead of use by a few processes."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        depth = 8 * workers
        ahead = deque(pool.submit(batch, seed, step, mix) for step in range(start, min(start + depth, stop)))
        try:
            for step in range(start, stop):
                yield ahead.popleft().result()
                if step + depth < stop:
                    ahead.append(pool.submit(batch, seed, step + depth, mix))
        finally:
            for waiting in ahead:
                waiting.cancel()
