"""Questions of the tiny world, as token ids for training and as lm-eval documents.

Four subjects, four options each:

  knowledge  By heart, what is KEY?                    a fixed table, learnt into the weights
  recall     8 facts. Here, what is KEY?               one look-up in the context
  two_hop    8 facts. Following twice, what is KEY?    KEY is KEY2, KEY2 is VALUE: two look-ups
  position   8 facts. Which value comes first?         (or last)

All randomness comes from NumPy generators on the CPU, so a seed gives the same questions on every machine.
Shapes: N questions, F facts, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.tiny_pair.vocabulary import EOS, KEYS, LETTERS, OPTIONS, PAD, VALUES, ids, knowledge, words

SUBJECTS = ("knowledge", "recall", "two_hop", "position")
FACTS = 8
MAX_TOKENS = 56  # the longest question with its answer takes 53
SPLIT_SEEDS = {"search": 1, "heldout": 2}
SPLIT_SIZES = {"search": 1024, "heldout": 512}  # questions per subject

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Questions:
    """N questions of one subject that have the same number of tokens."""

    prompt_NT: Ids  # facts and question, without options
    choices_N4: Ids  # token ids of the four options
    answer_N: Ids  # 0..3

    def __len__(self) -> int:
        return len(self.answer_N)


def _token(*tokens: str) -> Ids:
    return np.array([ids()[t] for t in tokens])


def _distinct(rng: np.random.Generator, high: int, rows: int, columns: int) -> Ids:
    """[rows, columns] integers below `high`, distinct within each row (rows that repeat one are drawn again)."""
    drawn = rng.integers(high, size=(rows, columns))
    while True:
        in_order = np.sort(drawn, axis=1)
        (bad,) = np.nonzero((in_order[:, 1:] == in_order[:, :-1]).any(axis=1))
        if not len(bad):
            return drawn
        drawn[bad] = rng.integers(high, size=(len(bad), columns))


def _shuffle_rows(rng: np.random.Generator, *arrays: Ids) -> list[Ids]:
    """The arrays with the entries of each row permuted, alike in all of them."""
    order = rng.random(arrays[0].shape).argsort(axis=1)
    return [np.take_along_axis(a, order, axis=1) for a in arrays]


def _options(rng: np.random.Generator, right_N: Ids, wrong_N3: Ids) -> tuple[Ids, Ids]:
    choices = np.concatenate([right_N[:, None], wrong_N3], axis=1)
    (choices,) = _shuffle_rows(rng, choices)
    return choices, (choices == right_N[:, None]).argmax(axis=1)


def _facts(subjects_NF: Ids, objects_NF: Ids) -> Ids:
    """[N, 4F] tokens of `subject is object.` for every fact."""
    n, f = subjects_NF.shape
    is_, dot = (np.broadcast_to(_token(w), (n, f)) for w in ("is", "."))
    return np.stack([subjects_NF, is_, objects_NF, dot], axis=2).reshape(n, 4 * f)


def _ask(n: int, text: str, key_N: Ids | None = None) -> Ids:
    """[N, T] tokens of the question; KEY stands for the row's key."""
    columns = [key_N if w == "KEY" else np.broadcast_to(_token(w), (n,)) for w in text.split()]
    return np.stack(columns, axis=1)  # type: ignore[arg-type]  # a text with KEY comes with its keys


def sample(subject: str, n: int, rng: np.random.Generator, facts: int = FACTS, chains: int = FACTS // 2) -> Questions:
    """Draw `n` questions; fewer facts or chains make the easier ones of training.

    A two-hop question has `chains` chains of two facts; the remaining facts are single ones.
    """
    key, value = _token(*KEYS), _token(*VALUES)
    if subject == "knowledge":
        asked = rng.integers(len(KEYS), size=n)
        right = knowledge()[asked]
        wrong = _distinct(rng, len(VALUES) - 1, n, 3)
        wrong += wrong >= right[:, None]  # skips the right one
        choices, answer = _options(rng, value[right], value[wrong])
        return Questions(_ask(n, "By heart , what is KEY ?", key[asked]), choices, answer)

    values = value[_distinct(rng, len(VALUES), n, facts + 3)]  # the last three only fill up the options
    if subject == "two_hop":
        singles = facts - 2 * chains
        keys = key[_distinct(rng, len(KEYS), n, facts)]
        first, second, rest = np.split(keys, [chains, 2 * chains], axis=1)
        ends = values[:, : chains + singles]
        left, right_ = _shuffle_rows(
            rng, np.concatenate([first, second, rest], axis=1), np.concatenate([second, ends], axis=1)
        )
        text, asked, right = "Following twice , what is KEY ?", first[:, 0], ends[:, 0]
        others = np.concatenate([ends[:, 1:], values[:, -3:]], axis=1)
    else:
        left, right_ = key[_distinct(rng, len(KEYS), n, facts)], values[:, :facts]
        which = rng.integers(facts, size=n)
        if subject == "recall":
            text, asked = "Here , what is KEY ?", left[np.arange(n), which]
        else:
            which = rng.integers(2, size=n)
            text, asked = "Which value comes KEY ?", _token("first", "last")[which]
            which = which * (facts - 1)
        right = right_[np.arange(n), which]
        swapped = values.copy()
        swapped[np.arange(n), which] = swapped[:, 0]
        others = swapped[:, 1:]
    if others.shape[1] - 3 >= 3:  # enough values in the context: the wrong options come from there
        (others,) = _shuffle_rows(rng, others[:, :-3])
    choices, answer = _options(rng, right, others[:, :3])
    return Questions(np.concatenate([_facts(left, right_), _ask(n, text, asked)], axis=1), choices, answer)


def tokens_with_answer(q: Questions, with_options: bool = True) -> tuple[Ids, Ids]:
    """[N, MAX_TOKENS] ids of `question options Answer: LETTER value <eos>` and [N] the position of `Answer:`.

    Without options the answer is the value alone, which teaches the look-up by a choice among all values.
    """
    n = len(q)
    right = np.take_along_axis(q.choices_N4, q.answer_N[:, None], axis=1)
    parts = [q.prompt_NT]
    if with_options:
        marks = np.broadcast_to(_token(*OPTIONS), (n, 4))
        parts.append(np.stack([marks, q.choices_N4], axis=2).reshape(n, 8))
    parts.append(np.broadcast_to(_token("Answer:"), (n, 1)))
    if with_options:
        parts.append(_token(*LETTERS)[q.answer_N][:, None])
    parts += [right, np.broadcast_to(_token(EOS), (n, 1))]
    used = sum(p.shape[1] for p in parts)
    parts.append(np.full((n, MAX_TOKENS - used), ids()[PAD]))
    return np.concatenate(parts, axis=1), np.full(n, used - (4 if with_options else 3))


def detokenise(row: Ids) -> str:
    """The text of a row of ids; the tokenizer gives these very ids back (a test says so)."""
    text = " ".join(words()[i] for i in row)
    for mark in (".", ",", "?"):
        text = text.replace(f" {mark}", mark)
    return text


def documents(subject: str, split: str) -> Iterator[dict[str, object]]:
    """The lm-eval documents of one subject and split: `question`, `choices`, `answer` (0..3), `subject`, `id`."""
    rng = np.random.default_rng([SPLIT_SEEDS[split], SUBJECTS.index(subject)])
    drawn = sample(subject, SPLIT_SIZES[split], rng)
    names = words()
    for i in range(len(drawn)):
        yield {
            "id": f"{split}_{subject}_{i:04d}",
            "subject": subject,
            "question": detokenise(drawn.prompt_NT[i]),
            "choices": [names[c] for c in drawn.choices_N4[i]],
            "answer": int(drawn.answer_N[i]),
        }
