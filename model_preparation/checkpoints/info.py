"""A checkpoint folder: what its checkpoint_info.json says, and the model and tokenizer in it.

The folder is a Hugging Face model (config.json, safetensors, tokenizer, generation_config.json, model card,
and the modelling code for `trust_remote_code`), plus what users of this project know: model.pt,
model_state_dict.pt, tokenizer/, checkpoint_info.json, README.txt. writing.py makes it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_preparation.files import INFO
from models.errors import ModelError
from models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from models.modeling_llamba import LlambaForCausalLM

ARCHIVES = {"state_dict": "model_state_dict.pt", "model": "model.pt"}
"""Files in PyTorch's own format, by their name in `formats`."""
FORMAT = 2
"""Of checkpoint_info.json, as this version writes it. 1: without `format`, `formats` and `files`."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What checkpoint_info.json says."""

    format: int = 1
    replaced_layers: list[int]
    mmlu_score: float | None
    """Accuracy on MMLU, where that is known."""
    score: dict[str, Any] | None
    """What the search measured: accuracy, standard_error, questions, tasks, num_fewshot, split, holdout_accuracy,
    and the versions of the libraries it was measured with."""
    creation_time: str
    description: str
    pair: str
    base_model: str
    base_revision: str | None = None
    """The commit on its hub, where that is known."""
    base_fingerprint: str
    donor_model: str
    donor_revision: str | None = None
    donor_fingerprint: str | None
    num_layers: int
    num_parameters: int
    dtype: str
    formats: list[str] = field(default_factory=lambda: ["safetensors", "state_dict", "model"])
    """In which the weights are there: safetensors, state_dict (model_state_dict.pt), model (model.pt)."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of weights, configuration, code and tokenizer, by name."""
    tool_version: str
    versions: dict[str, str] = field(default_factory=dict)
    """Of Python and of the libraries that wrote the files."""
    command: str = ""
    """What makes this checkpoint again."""


_KNOWN = frozenset(one.name for one in dataclasses.fields(CheckpointInfo))


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of a model's weights on disk."""
    from models.weights import read_tensors, tensor_files

    files = tensor_files(folder)
    name = min(files)
    return next(iter(read_tensors({name: files[name]})))[1].dtype


def read_info(folder: Path) -> CheckpointInfo:
    """What checkpoint_info.json of a checkpoint says.

    Raises:
        ModelError: the folder is not a checkpoint that create_replaced_model_checkpoint.py wrote.
    """
    path = folder / INFO
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        written = fields.get("format", 1)
        if isinstance(written, int) and written > FORMAT:
            raise ModelError(
                f"{path} has format {written}, from a newer GA Layer Search than this one, which reads up to {FORMAT}; "
                "update it, or load the folder with AutoModelForCausalLM and trust_remote_code=True"
            )
        info = CheckpointInfo(**{name: fields[name] for name in fields if name in _KNOWN})
        if not isinstance(info.pair, str) or not all(type(i) is int for i in info.replaced_layers):
            raise TypeError("pair or replaced_layers is of the wrong type")
        if not isinstance(info.formats, list) or not isinstance(info.files, dict):
            raise TypeError("formats or files is of the wrong type")
        if not all(isinstance(digest, str) for digest in info.files.values()):
            raise TypeError("a checksum is of the wrong type")
        return info
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{folder} is not a checkpoint: it has no {INFO}; "
            "give a folder that create_replaced_model_checkpoint.py made"
        ) from None
    except ModelError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error}); make the checkpoint again") from error


def load_model(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[LlambaForCausalLM, PreTrainedTokenizerBase]:
    """The model of a checkpoint folder, ready to run, and its tokenizer. Runs no code from the folder.

    Args:
        folder: What create_replaced_model_checkpoint.py wrote.
        dtype: Weights are cast to it; None for that of the files.
        device: Where the weights go.

    Raises:
        ModelError: a file is missing or damaged.
    """
    from transformers import GenerationConfig

    from models.loading import load_base
    from models.weights import one_line, read_json

    folder = Path(folder)
    read_info(folder)
    model = load_base(folder, dtype=dtype or stored_dtype(folder), device=device)
    path = folder / "generation_config.json"
    fields = read_json(path)
    try:
        model.generation_config = GenerationConfig.from_dict(fields)
    except Exception as error:  # transformers calculates with values before it checks them
        raise ModelError(f"{path} is damaged ({one_line(error)}); make the checkpoint again") from error
    return model, load_tokenizer(folder)


__all__ = ["CheckpointInfo", "load_model", "read_info", "stored_dtype"]
