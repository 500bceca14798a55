"""The words of the tiny world, and the tokenizer that maps its text to them.

160 keys and 160 values, each one token, and a few marks. Any other printable ASCII text is spelled character by
character (WordPiece), so the pair also reads MMLU, if only to guess.
"""

from __future__ import annotations

import string
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNK, EOS = "<pad>", "<unk>", "<eos>"
LETTERS = ("A", "B", "C", "D")
OPTIONS = ("A.", "B.", "C.", "D.")
MARKS = (*LETTERS, *OPTIONS, "Answer:", ".", ",", "?")
FRAME = (
    "is",
    "what",
    "Here",
    "By",
    "heart",
    "Following",
    "twice",
    "Which",
    "value",
    "comes",
    "first",
    "last",
)
VALUES = tuple(
    """acorn amber anchor anvil apple apron arrow atlas autumn axle badge bamboo banjo barley basil basket beacon bell
    birch biscuit blanket bottle bow bridge bronze brook bucket butter button cabin cactus camel candle canoe carpet
    castle cedar cello chalk cherry chisel cinnamon clay clock cloud clover cobalt comet compass copper coral cotton
    cradle crystal cymbal daisy desert diamond dragon drum eagle ember emerald fable falcon feather fern fiddle flint
    flute forest fossil fountain garden garnet ginger glacier glass goblet gravel hammer harbor harp hazel helmet
    heron honey island ivory jacket jasmine jewel juniper kettle kite ladder lagoon lantern lavender lemon lily linen
    lotus lumber magnet mango maple marble meadow mirror mosaic nectar needle nutmeg oak oasis olive onyx orchid
    otter paddle paper parrot pearl pebble pepper piano pillow pine planet plum pocket quartz quilt rabbit raven
    ribbon river rocket rose ruby saddle saffron sail scarf shell silver sparrow spoon steel thistle thunder tiger
    timber topaz trumpet tulip tunnel turnip turtle""".split()  # noqa: SIM905 - a list of 160 words, to be read
)
KEYS = tuple(a + b + c for a in "bdfgklmnprst" for b in "aiou" for c in ("b", "v", "zo", "nex"))[:160]
# key i means value KNOWLEDGE[i] everywhere and always: what the models know by heart
KNOWLEDGE_SEED = 20_251_015


@cache
def words() -> tuple[str, ...]:
    """All tokens, in the order of their ids."""
    whole = (PAD, UNK, EOS, *MARKS, *FRAME, *KEYS, *VALUES)
    spelled = [c for c in string.printable.strip() if c not in whole]
    return (*whole, *spelled, *(f"##{c}" for c in string.ascii_letters + string.digits + "_"))


@cache
def ids() -> dict[str, int]:
    """Token -> id; not to be changed by who asks."""
    return {word: i for i, word in enumerate(words())}


@cache
def knowledge() -> NDArray[np.int64]:
    """[160] the value (an index into VALUES) of every key; drawn on the CPU, so the same on every machine."""
    return np.random.default_rng(KNOWLEDGE_SEED).integers(len(VALUES), size=len(KEYS))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words, option marks (`A.`) and `Answer:` are one token each; other words fall into characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = models.WordPiece(vocab=ids(), unk_token=UNK, max_input_chars_per_word=1000)
    tokenizer = Tokenizer(model)
    pattern = Regex(r"Answer:|[A-D]\.|\w+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, eos_token=EOS, model_max_length=8192
    )
