"""The tokenizer of a model folder, read without running code from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def tokenizer_folders(*folders: Path) -> Iterator[Path]:
    """Those of `folders` that hold a tokenizer."""
    for folder in folders:
        if any((folder / name).is_file() for name in _FILES):
            yield folder


def load_tokenizer(*folders: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the first folder that has one.

    Raises:
        ModelError: none has, or it is damaged.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    from models.weights import one_line

    for folder in tokenizer_folders(*folders):
        # Given a configuration it does not read config.json, whose auto_map would make it ask about code.
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig(), trust_remote_code=False)
        except Exception as error:  # what a damaged file raises differs by its kind; some is a bare Exception
            raise ModelError(
                f"the tokenizer in {folder} is damaged ({one_line(error)}); copy it there again"
            ) from error
        tokenizer.init_kwargs.pop("is_local", None)  # about this machine; it would be saved along
        return tokenizer
    raise ModelError(f"there is no tokenizer in {' or '.join(map(str, folders))}; copy the donor's tokenizer there")
