"""Which questions a search asks when: a first look, rungs of a ladder above it, and a hold-out that never chooses."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm.config import SearchConfig
from genetic_algorithm.errors import SearchError
from genetic_algorithm.evaluator import limit_questions

FAST, FULL, FINAL, HOLDOUT, ALL = "fast", "full", "final", "holdout", "all"


class Parts(dict[str, NDArray[np.int64]]):
    """Questions by the name of their part; an unknown name is told as such."""

    def __missing__(self, name: object) -> NDArray[np.int64]:
        raise SearchError(f"the questions have no part {name!r}; their parts are {', '.join(self)}")


@dataclass(frozen=True, slots=True, eq=False)  # arrays do not compare to one truth value
class Questions:
    """The questions of each part, as sorted indices, int64.

    `parts` has `fast`, `full`, `final` and `holdout`, one entry per rung of the ladder, which holds all rungs below
    it, and `all`: every question, once. `blocks` are what each rung adds. `values` is the weight of each question in
    a score, float64 [num_questions], with mean 1. `subjects` are those of all answers there are, int64 [num_answers].
    """

    num_questions: int
    num_answers: int
    parts: Parts
    rungs: tuple[str, ...]
    blocks: tuple[NDArray[np.int64], ...]
    weights: NDArray[np.float64]
    subjects: NDArray[np.int64]

    def weighting(self, asked: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weight of each of these questions in a score, float64 [n].

        Limits are per subject, so that a part may hold a tenth of one task and all of another: questions of each weight
        together count in every part what they count in the whole, as far as there are any (post-stratification).
        """
        kinds, kind = np.unique(self.weights, return_inverse=True)
        counts, of_part = np.bincount(kind), np.bincount(kind[asked], minlength=len(kinds))
        found = self.weights[asked] * counts[kind[asked]] / of_part[kind[asked]]
        return found / found.mean() if found.any() else np.ones(len(asked))

    @property
    def is_weighted(self) -> bool:
        """Whether some questions count more than others."""
        return bool((self.weights != self.weights[0]).any())


def divide(
    config: SearchConfig,
    subjects: NDArray[np.int64],
    coarse_from: int | None = None,
    weights: NDArray[np.float64] | None = None,
) -> Questions:
    """Divide an evaluator's questions.

    The hold-out is the last `holdout` of each subject: in the default order, which is shuffled within subjects, that
    is a random quarter of each. All other parts are the first of each subject and leave the hold-out alone.

    Args:
        config: limits, growth of the ladder, and the share held out.
        subjects: subject of each question, int64 [n].
        coarse_from: first of the questions that are there again, to be answered faster and less exactly: the fast
            part is taken from these, and no other part.
        weights: of each question in a score; all alike when None.

    Raises:
        SearchError: if there are no questions, or weights that do not fit.
    """
    num_answers, of_answers = len(subjects), subjects
    subjects = subjects[:coarse_from]
    if len(subjects) == 0:
        raise SearchError("the evaluator has no questions; choose other --tasks")
    held = _last_of_each(subjects, config.holdout)

    def first(limit: int | None) -> NDArray[np.int64]:
        return np.setdiff1d(limit_questions(subjects, limit), held, assume_unique=True)

    fast, full = first(config.fast_limit), first(config.full_limit)
    offset = coarse_from or 0
    blocks = [fast + offset, *_growing(subjects, fast, full, config.growth)]
    if offset:
        blocks[1:1] = [fast]
    rungs = {f"rung {i}": np.sort(np.concatenate(blocks[bool(offset and i) : i + 1])) for i in range(len(blocks))}
    parts = {FAST: fast + offset, FULL: full, FINAL: first(config.final_limit), HOLDOUT: held}
    everything = np.arange(len(subjects), dtype=np.int64)
    return Questions(
        len(subjects),
        num_answers,
        Parts({**parts, **rungs, ALL: everything}),
        tuple(rungs),
        tuple(blocks),
        _checked(weights, num_answers),
        of_answers,
    )


def _last_of_each(subjects: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Indices of the last `share` of every subject's questions, rounded, sorted; one question at least stays."""
    found = [np.zeros(0, dtype=np.int64)]
    for subject in np.unique(subjects):
        of_it = np.flatnonzero(subjects == subject)
        count = min(round(share * len(of_it)), len(of_it) - 1)
        found.append(of_it[len(of_it) - count :])
    return np.sort(np.concatenate(found))


def _growing(
    subjects: NDArray[np.int64], fast: NDArray[np.int64], full: NDArray[np.int64], growth: float
) -> list[NDArray[np.int64]]:
    """Cut what `full` has beside `fast` into blocks, each rung `growth` times the one below.

    A block takes the same share of each subject, so that every rung but the first has the mixture of the whole.
    """
    rest = np.setdiff1d(full, fast, assume_unique=True)
    sizes, total = [], len(fast) * growth
    while total * growth**0.5 < len(full):  # no last rung that adds next to nothing
        sizes.append((total - len(fast)) / max(1, len(rest)))
        total *= growth
    rank = np.zeros(len(rest))
    for subject in np.unique(subjects[rest]):
        of_it = np.flatnonzero(subjects[rest] == subject)
        rank[of_it] = (np.arange(len(of_it)) + 0.5) / len(of_it)
    edges = [0.0, *sizes, 1.0]
    cut = [rest[(low <= rank) & (rank < high)] for low, high in pairwise(edges)]
    return [block for block in cut if len(block)]


def _checked(weights: NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    if weights is None:
        return np.ones(count)
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (count,) or not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise SearchError(f"the evaluator's weights must be {count} numbers of at least 0, not all of them 0")
    return given / given.mean()
