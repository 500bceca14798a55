"""A hybrid as a folder on disk: built from a base and some of the donor's layers, written, loaded again.

The folder is a Hugging Face model (config.json, safetensors, tokenizer, generation_config.json, model card,
and the modelling code for `trust_remote_code`), plus what users of this project know: model.pt,
model_state_dict.pt, tokenizer/, checkpoint_info.json, README.txt.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_preparation.files import (
    INFO,
    disk_errors_named,
    refuse_existing,
    replaced_folder,
    require_space,
    sha256,
    share,
    write_json,
)
from model_preparation.saved_model import save_state, save_whole
from model_preparation.sources import METADATA, read_metadata, source_name, tokenizer_folders, tool_version
from models.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from models.modeling_llamba import LlambaForCausalLM
    from models.pairs import Pair

SHARD_SIZE = "5GB"
SMALL_FILES = 64 << 20
"""Room for tokenizer, code and texts, in bytes."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What checkpoint_info.json says."""

    replaced_layers: list[int]
    mmlu_score: float | None
    """Accuracy on MMLU, where that is known."""
    score: dict[str, Any] | None
    """What the search measured: accuracy, standard_error, questions, tasks, holdout_accuracy."""
    creation_time: str
    description: str
    pair: str
    base_model: str
    base_fingerprint: str
    donor_model: str
    donor_fingerprint: str | None
    num_layers: int
    num_parameters: int
    dtype: str
    tool_version: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to build a hybrid from."""

    pair: Pair
    base: Path
    """Folder of the base."""
    layers_dir: Path
    """Folder of the donor's extracted layers."""
    layers: tuple[int, ...]
    description: str = ""
    mmlu_score: float | None = None
    score: dict[str, Any] | None = None


def check_recipe(recipe: Recipe) -> None:
    """Check what can be checked without loading weights.

    Raises:
        ModelError: layers out of range, repeated or none; layer files missing, damaged or of another donor.
    """
    from models.hybrid import check_layers
    from models.loading import check_pair, layer_file, read_llama_config, read_llamba_config

    config = read_llamba_config(recipe.base)
    if not recipe.layers:
        raise ModelError("no layers are given; name at least one, such as --layers 17")
    try:
        check_layers(recipe.layers, config.n_layer)
    except ModelError as error:
        raise ModelError(f"{error} (pair {recipe.pair.name})") from error
    metadata = read_metadata(recipe.layers_dir)
    for i in recipe.layers:
        path = layer_file(recipe.layers_dir, i)
        if not path.is_file():
            raise ModelError(
                f"Layer file not found: {path}; extract the layers first: cd model_preparation && "
                f"python extract_layers.py --model_name llama --pair {shlex.quote(recipe.pair.name)} "
                f"--output_dir {shlex.quote(str(recipe.layers_dir))}"
            )
        entry = metadata.get("files", {}).get(path.name)
        if entry and sha256(path) != entry["sha256"]:
            raise ModelError(
                f"{path} is damaged: it is not what {METADATA} says was written; "
                "run extract_layers.py again, which writes just what is wrong"
            )
    if metadata.get("pair") not in (None, recipe.pair.name):
        raise ModelError(
            f"{recipe.layers_dir} holds layers for the pair {metadata['pair']}, not {recipe.pair.name}; "
            f"give --pair {metadata['pair']} or another --llama_layers_dir"
        )
    check_pair(config, read_llama_config(recipe.layers_dir))


def build(recipe: Recipe) -> tuple[LlambaForCausalLM, PreTrainedTokenizerBase]:
    """The hybrid on the CPU in the dtype its base is stored in, and the tokenizer.

    Raises:
        ModelError: as `check_recipe`, or weights that cannot be read.
    """
    from models.hybrid import load_hybrid

    check_recipe(recipe)
    model = load_hybrid(recipe.base, recipe.layers, layers_dir=recipe.layers_dir, dtype=stored_dtype(recipe.base))
    tokenizer = load_tokenizer(recipe.base, recipe.layers_dir)
    _set_generation(model, tokenizer, recipe.base, recipe.layers_dir)
    return model, tokenizer


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of a model's weights on disk."""
    from models.weights import read_tensors, tensor_files

    files = tensor_files(folder)
    name = min(files)
    return next(iter(read_tensors({name: files[name]})))[1].dtype


def load_tokenizer(*folders: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the first folder that has one.

    Raises:
        ModelError: none has.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    from models.weights import one_line

    for folder in tokenizer_folders(*folders):
        # Given a configuration it does not read config.json, whose auto_map would make it ask about code.
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig())
        except Exception as error:  # what a damaged file raises differs by its kind; some is a bare Exception
            raise ModelError(
                f"the tokenizer in {folder} is damaged ({one_line(error)}); copy it there again"
            ) from error
        tokenizer.init_kwargs.pop("is_local", None)  # about this machine; it would be saved along
        return tokenizer
    raise ModelError(f"there is no tokenizer in {' or '.join(map(str, folders))}; copy the donor's tokenizer there")


def _set_generation(model: LlambaForCausalLM, tokenizer: PreTrainedTokenizerBase, *folders: Path) -> None:
    """Take generation settings from the first folder that has them; see to it that texts end and pad."""
    from transformers import GenerationConfig

    for folder in folders:
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
            break
    settings = model.generation_config
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    if settings.bos_token_id is None:
        settings.bos_token_id = tokenizer.bos_token_id
    if settings.pad_token_id is None:
        eos = settings.eos_token_id
        first = eos[0] if isinstance(eos, list) else eos
        settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else first


def create(recipe: Recipe, target: Path, *, force: bool = False) -> CheckpointInfo:
    """Build a hybrid and write its checkpoint folder; it appears whole or not at all.

    Raises:
        ModelError: as `build`; `target` exists and not `force`; the disk has too little room.
    """
    from models.loading import fingerprint

    refuse_existing(target, force=force)
    check_recipe(recipe)
    require_space(target.parent, 3 * _weights_size(recipe) + SMALL_FILES)
    model, tokenizer = build(recipe)
    metadata = read_metadata(recipe.layers_dir)
    info = CheckpointInfo(
        replaced_layers=list(model.config.attention_layers),
        mmlu_score=recipe.mmlu_score,
        score=recipe.score,
        creation_time=datetime.now(UTC).isoformat(timespec="seconds"),
        description=recipe.description,
        pair=recipe.pair.name,
        base_model=source_name(recipe.pair, "base"),
        base_fingerprint=fingerprint(recipe.base),
        donor_model=source_name(recipe.pair, "donor"),
        donor_fingerprint=metadata.get("donor_fingerprint"),
        num_layers=model.config.n_layer,
        num_parameters=model.num_parameters(),
        dtype=str(model.dtype).removeprefix("torch."),
        tool_version=tool_version(),
    )
    with replaced_folder(target, force=force) as folder:
        write(folder, model, tokenizer, info, name=target.name, tasks=recipe.pair.tasks)
    return info


def write(
    folder: Path,
    model: LlambaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    info: CheckpointInfo,
    *,
    name: str,
    tasks: Sequence[str],
) -> None:
    """Fill an empty folder with all files of a checkpoint called `name`."""
    from model_preparation.texts import model_card, read_me

    model.config.architectures = [type(model).__name__]
    with disk_errors_named(folder), _with_modelling_code(type(model.config), type(model)):
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    save_whole(model, folder / "model.pt")
    save_state(model, folder / "model_state_dict.pt")
    write_json(folder / INFO, asdict(info))
    (folder / "README.md").write_text(model_card(info, name, tasks), encoding="utf-8")
    (folder / "README.txt").write_text(read_me(info, name), encoding="utf-8")
    share(folder)


@contextmanager
def _with_modelling_code(config_class: Any, model_class: Any) -> Iterator[None]:
    """Have `save_pretrained` also write the classes' source, and in config.json where it is (auto_map)."""
    config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModelForCausalLM")
    try:
        yield
    finally:  # the registration is the classes' own; models saved elsewhere must not change with it
        config_class._auto_class = model_class._auto_class = None


def read_info(folder: Path) -> CheckpointInfo:
    """What checkpoint_info.json of a checkpoint says.

    Raises:
        ModelError: the folder is not a checkpoint that create_replaced_model_checkpoint.py wrote.
    """
    path = folder / INFO
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        info = CheckpointInfo(**fields)
        if not isinstance(info.pair, str) or not all(isinstance(i, int) for i in info.replaced_layers):
            raise TypeError("pair or replaced_layers is of the wrong type")
        return info
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{folder} is not a checkpoint: it has no {INFO}; "
            "give a folder that create_replaced_model_checkpoint.py made"
        ) from None
    except (ValueError, TypeError) as error:
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
    from models.weights import read_json

    folder = Path(folder)
    read_info(folder)
    model = load_base(folder, dtype=dtype or stored_dtype(folder), device=device)
    model.generation_config = GenerationConfig.from_dict(read_json(folder / "generation_config.json"))
    return model, load_tokenizer(folder)


def _weights_size(recipe: Recipe) -> int:
    """Bytes of the hybrid's weights, nearly: those of the base and of the layers put in."""
    from models.loading import layer_file
    from models.weights import tensor_files

    files = set(tensor_files(recipe.base).values()) | {layer_file(recipe.layers_dir, i) for i in recipe.layers}
    return sum(path.stat().st_size for path in files)


__all__ = ["CheckpointInfo", "Recipe", "build", "create", "load_model", "read_info"]
