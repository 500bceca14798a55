"""Writes a hybrid's checkpoint folder: weights stream from the files of base and donor into those of the folder."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_preparation.checkpoints.info import ARCHIVES, FORMAT, CheckpointInfo
from model_preparation.checkpoints.recipe import Ingredients, Recipe, check, gather, verify
from model_preparation.checkpoints.unfinished import Unfinished, place_of, unfinished_folder
from model_preparation.files import (
    INFO,
    disk_errors_named,
    free_space,
    refuse_existing,
    require_space,
    sha256,
    share,
    write_json,
)
from model_preparation.hubs import origin, revision_of
from model_preparation.saved_model import labelled, whole
from model_preparation.sources import read_metadata, source_name, tool_version
from model_preparation.tensor_stream import StoredTensor, write_archive, write_safetensors
from model_preparation.writers import Advance, Writers, writing_beside
from models.errors import ModelError
from models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from models.configuration_llamba import LlambaConfig

SAFETENSORS = "safetensors"
FORMATS = (SAFETENSORS, *ARCHIVES)
"""What `--formats` takes; safetensors are always written, as everything else loads from them."""
SHARD_BYTES = 5_000_000_000
"""As transformers counts its 5GB."""
SMALL_FILES = 64 << 20
"""Room for tokenizer, code and texts, in bytes."""
_LIBRARIES = ("torch", "transformers", "safetensors", "tokenizers", "lm_eval")


def create(
    recipe: Recipe,
    target: Path,
    *,
    formats: Sequence[str] | None = None,
    force: bool = False,
    resume: bool = False,
) -> CheckpointInfo:
    """Write the checkpoint folder of a hybrid; it appears whole or not at all.

    No model is built: memory does not grow with the weights; most of it are PyTorch and transformers themselves.

    Args:
        recipe: What to put together.
        target: The folder to make.
        formats: Of FORMATS; None for those that the disk has room for, as `formats_with_room` says.
        force: Whether a checkpoint that is there is replaced.
        resume: Insist on going on with what an interrupted run left; what fits is gone on with in any case.

    Raises:
        ModelError: the parts do not fit, are damaged or hold NaN; `target` exists and not `force`; too little room.
    """
    refuse_existing(target, force=force)
    parts = gather(recipe)
    chosen = formats_with_room(target, parts.nbytes) if formats is None else _known(formats)
    shards = _shards(parts)
    archives = [name for format_, name in ARCHIVES.items() if format_ in chosen]
    plan = _plan(parts, shards, archives)
    with unfinished_folder(target, plan, force=force, resume=resume) as work, disk_errors_named(work.path):
        require_space(work.path, _bytes_left(work, shards, archives, parts.nbytes) + SMALL_FILES)
        with writing_beside("weights") as writers:
            for path, digest in parts.checksums.items():  # first, as what they read is then at hand to be copied
                writers.start(0, partial(_verify, path, digest))
            for name in shards:
                if name not in work.done:
                    _start(writers, work, name, shards[name], write_safetensors)
            config = check(parts)  # takes seconds of imports, in which the weights are well under way
            tokenizer = load_tokenizer(recipe.base, recipe.donor)
            generation = _generation_config(config, tokenizer, recipe.base, recipe.donor)
            _write_small_files(work.path, config, parts.dtype, tokenizer, generation)
            wraps = {
                ARCHIVES["state_dict"]: labelled(config),
                ARCHIVES["model"]: whole(config.to_dict(), generation.to_dict()),
            }
            for name in archives:
                if name not in work.done:
                    _start(writers, work, name, parts.tensors, partial(write_archive, wrap=wraps[name]))
            writers.finish()
        _write_index(work.path, shards, parts)
        info = _info(parts, config.n_layer, chosen, work)
        _write_texts(work.path, info, recipe, target.name)
        share(work.path)
    return info


def _verify(path: Path, digest: str, advance: Advance) -> Callable[[], None]:
    verify(path, digest)
    return lambda: None


def _start(
    writers: Writers, work: Unfinished, name: str, tensors: Mapping[str, StoredTensor], write: Callable[..., str]
) -> None:
    """Begin a file of weights, which goes on record when it is whole."""
    part = work.path / f"{name}.part"

    def run(advance: Advance) -> Callable[[], None]:
        digest = write(part, tensors, advance)
        return lambda: work.keep(part, name, digest)

    writers.start(_size(tensors), run)


def _size(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(tensor.nbytes for tensor in set(tensors.values()))


def _bytes_left(work: Unfinished, shards: Mapping[str, Any], archives: Sequence[str], nbytes: int) -> int:
    left = sum(_size(tensors) for name, tensors in shards.items() if name not in work.done)
    return left + sum(nbytes for name in archives if name not in work.done)


def formats_with_room(target: Path, nbytes: int, *, count: int = 1) -> tuple[str, ...]:
    """All formats where the disk has room for them; else says which are left out, the state dict before model.pt.

    Args:
        target: A folder to make; what an interrupted run left of it counts as room.
        nbytes: Of the weights, which each format holds once.
        count: How many such folders are to be made.
    """
    there, free = free_space(target)
    free += sum(path.stat().st_size for path in place_of(target).glob("*") if path.is_file())
    wishes = (FORMATS, (SAFETENSORS, "model"), (SAFETENSORS,))
    chosen = next((wish for wish in wishes if count * (len(wish) * nbytes + SMALL_FILES) <= free), ())
    left_out = [file for name, file in ARCHIVES.items() if name not in chosen]
    if chosen and left_out:
        print(
            f"{there} has {free / 1e9:.1f} GB free, so {' and '.join(left_out)} ({nbytes / 1e9:.1f} GB each) will not "
            f"be written; with {count * (len(FORMATS) * nbytes + SMALL_FILES) / 1e9:.1f} GB free, the same command "
            "with --force writes all",
            file=sys.stderr,
        )
    return chosen or wishes[-1]  # for which there is too little room, too: `require_space` says so


def _known(asked: Sequence[str]) -> tuple[str, ...]:
    if unknown := [name for name in asked if name not in FORMATS]:
        raise ModelError(f"--formats has {unknown[0]!r}; known are {', '.join(FORMATS)}, joined by commas")
    return tuple(name for name in FORMATS if name in asked or name == SAFETENSORS)


def _shards(parts: Ingredients) -> dict[str, dict[str, StoredTensor]]:
    """Tensors by file, in the model's order; as few files as fit, and about as large as each other.

    They are written side by side, and the largest one takes longest.
    """
    least = -(-parts.nbytes // SHARD_BYTES)
    shards: list[dict[str, StoredTensor]] = [{}]
    size = done = 0
    for name, tensor in parts.distinct.items():
        if shards[-1] and (size + tensor.nbytes > SHARD_BYTES or done >= parts.nbytes * len(shards) / least):
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
        done += tensor.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _write_index(folder: Path, shards: Mapping[str, Mapping[str, StoredTensor]], parts: Ingredients) -> None:
    if len(shards) > 1:
        where = {name: file for file, shard in shards.items() for name in shard}
        total = {"total_size": parts.nbytes, "total_parameters": parts.num_parameters}
        write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": where})


def _plan(
    parts: Ingredients, shards: Mapping[str, Mapping[str, StoredTensor]], archives: Sequence[str]
) -> dict[str, Any]:
    """All that shapes the files of weights."""
    small = sorted(path for folder in (parts.recipe.base, parts.recipe.donor) for path in folder.glob("*.json"))
    layout = json.dumps({name: list(tensors) for name, tensors in shards.items()})
    return {
        "tool_version": tool_version(),
        "base": parts.base_fingerprint,
        "donor": parts.donor_fingerprint,
        "layers": list(parts.layers),
        "dtype": str(parts.dtype),
        "bytes": parts.nbytes,
        "layout": hashlib.sha256(layout.encode()).hexdigest(),
        "archives": list(archives),
        # model.pt holds the configuration and generation settings
        "settings": {str(path): sha256(path) for path in small},
    }


def _write_small_files(
    folder: Path,
    config: LlambaConfig,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    generation: GenerationConfig,
) -> None:
    from transformers.dynamic_module_utils import custom_object_save

    from models.loading import empty_model

    model = empty_model(config, "meta")
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    with _with_modelling_code(type(config), type(model)):
        custom_object_save(model, folder, config=config)
        config.save_pretrained(folder)
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizer.save_pretrained(folder / "tokenizer")


@contextmanager
def _with_modelling_code(config_class: Any, model_class: Any) -> Iterator[None]:
    """Have transformers also write the classes' source, and in config.json where it is (auto_map)."""
    config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModelForCausalLM")
    try:
        yield
    finally:  # the registration is the classes' own; models saved elsewhere must not change with it
        config_class._auto_class = model_class._auto_class = None


def _generation_config(config: LlambaConfig, tokenizer: PreTrainedTokenizerBase, *folders: Path) -> GenerationConfig:
    """Generation settings of the first folder that has them; texts end and pad in any case."""
    from transformers import GenerationConfig

    settings = GenerationConfig.from_model_config(config)
    for folder in folders:
        if (folder / "generation_config.json").is_file():
            settings = GenerationConfig.from_pretrained(folder)
            break
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    if settings.bos_token_id is None:
        settings.bos_token_id = tokenizer.bos_token_id
    if settings.pad_token_id is None:
        eos = settings.eos_token_id
        first = eos[0] if isinstance(eos, list) else eos
        settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else first
    return settings


def _info(parts: Ingredients, depth: int, formats: Sequence[str], work: Unfinished) -> CheckpointInfo:
    recipe = parts.recipe
    small = (path for path in sorted(work.path.rglob("*")) if path.is_file() and not path.name.startswith("."))
    files = {str(path.relative_to(work.path)): path for path in small}
    return CheckpointInfo(
        format=FORMAT,
        replaced_layers=list(parts.layers),
        mmlu_score=recipe.mmlu_score,
        score=recipe.score,
        creation_time=datetime.now(UTC).isoformat(timespec="seconds"),
        description=recipe.description,
        pair=recipe.pair.name,
        base_model=source_name(recipe.pair, "base"),
        base_revision=revision_of(recipe.base),
        base_fingerprint=parts.base_fingerprint,
        donor_model=source_name(recipe.pair, "donor"),
        donor_revision=parts.donor_revision,
        donor_fingerprint=parts.donor_fingerprint,
        num_layers=depth,
        num_parameters=parts.num_parameters,
        dtype=str(parts.dtype).removeprefix("torch."),
        formats=list(formats),
        files={name: work.done.get(name) or sha256(path) for name, path in files.items()},
        tool_version=tool_version(),
        versions={"python": platform.python_version()} | _versions(_LIBRARIES),
        command=_command(parts, formats),
    )


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    """Of those that are installed; a checkpoint can be made without lm_eval."""
    found = {}
    for name in libraries:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _command(parts: Ingredients, formats: Sequence[str]) -> str:
    """What makes the checkpoint again, from a clone of this version."""
    recipe, pair = parts.recipe, parts.recipe.pair
    base, donor = origin(recipe.base), origin(recipe.donor) or read_metadata(recipe.donor).get("origin")
    models = {"--base": [base or pair.base.spelling], "--donor": [donor or pair.donor.spelling]}
    options = {
        **(models if base or donor else {"--pair": [pair.name]}),
        "--layers": list(map(str, parts.layers)),
        "--formats": [",".join(formats)],
        "--dtype": [str(parts.dtype).removeprefix("torch.")],
        "--output_dir": ["NEW_FOLDER"],
    }
    words = [word for option, values in options.items() for word in (option, *values)]
    words += [] if recipe.mmlu_score is None else ["--score", str(recipe.mmlu_score)]
    words += [f"--description={recipe.description}"] if recipe.description else []  # which may begin with a dash
    return shlex.join(["python", "-m", "model_preparation.create_replaced_model_checkpoint", *words])


def _write_texts(folder: Path, info: CheckpointInfo, recipe: Recipe, name: str) -> None:
    from model_preparation.checkpoints.texts import model_card, read_me

    write_json(folder / INFO, asdict(info))
    (folder / "README.md").write_text(model_card(info, name, recipe.pair), encoding="utf-8")
    (folder / "README.txt").write_text(read_me(info, name), encoding="utf-8")


__all__ = ["FORMATS", "create", "formats_with_room"]
