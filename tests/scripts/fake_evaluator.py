"""An evaluator without models, for tests of the shell: six layers, two subjects, seeded answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm import Answers, LayerSet

WORTH = (0.02, 0.25, 0.05, 0.2, 0.0, 0.03)


class Fake:
    """Layers 1 and 3 are worth most."""

    num_layers = len(WORTH)
    num_questions = 400
    subjects = np.arange(400) % 2

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """Right with a probability that adds up over the layers."""
        luck = np.random.default_rng(0).random(self.num_questions)[questions]
        for layers in batch:
            yield layers, Answers(luck < 0.3 + sum(WORTH[i] for i in layers.indices))


def make() -> Fake:
    """What --evaluator names."""
    return Fake()
