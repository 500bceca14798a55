"""What a hybrid is made from: which tensor of which file becomes which tensor of the checkpoint.

`gather` reads headers and needs no transformers, so that copying can begin within a second or two; `check` builds
the model's skeleton and holds the tensors against it.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model_preparation.files import sha256
from model_preparation.hubs import revision_of
from model_preparation.sources import METADATA, read_metadata, source_name
from model_preparation.tensor_stream import StoredTensor, find_tensors, stored_tensors
from models.errors import ModelError
from models.layer_files import check_layers, donor_layer_files, fingerprint, layer_file, read_fields
from models.weights import tensor_files

if TYPE_CHECKING:
    from models.configuration_llamba import LlambaConfig
    from models.pairs import Pair

_LAYER = re.compile(r"backbone\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to build a hybrid from."""

    pair: Pair
    base: Path
    """Folder of the base."""
    donor: Path
    """Folder of the donor's extracted layers, or of the donor itself."""
    layers: tuple[int, ...]
    dtype: torch.dtype | None = None
    """Of the checkpoint; None for that of most values."""
    description: str = ""
    mmlu_score: float | None = None
    score: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """A recipe of which every part was found; nothing of the weights is in memory."""

    recipe: Recipe
    layers: tuple[int, ...]
    """Those of the donor, increasing."""
    tensors: dict[str, StoredTensor]
    """Of the hybrid by name, from the embedding to the head; tied names share one."""
    dtype: torch.dtype
    checksums: dict[Path, str]
    """SHA-256 that files should have, for `verify`."""
    base_fingerprint: str
    donor_fingerprint: str
    donor_revision: str | None

    @property
    def distinct(self) -> dict[str, StoredTensor]:
        """The tensors that are to be stored: of tied ones the first."""
        first = {tensor: name for name, tensor in reversed(self.tensors.items())}
        return {name: tensor for name, tensor in self.tensors.items() if first[tensor] == name}

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.distinct.values())

    @property
    def num_parameters(self) -> int:
        """Values of the weights."""
        return sum(tensor.numel for tensor in self.distinct.values())


def gather(recipe: Recipe) -> Ingredients:
    """Find the tensors of a hybrid; reads headers only.

    Raises:
        ModelError: layers out of range, repeated or none; files missing, damaged or of another donor.
    """
    fields = read_fields(recipe.base, "llamba", ("d_model", "n_layer", "vocab_size"))
    depth = fields["n_layer"]
    if not isinstance(depth, int):
        raise ModelError(f"{recipe.base / 'config.json'}: n_layer is {depth!r}, not a number; download the base again")
    kinds = fields.get("layer_types") or []
    if not isinstance(kinds, list):
        raise ModelError(f"{recipe.base / 'config.json'}: layer_types is no list; download the base again")
    if not recipe.layers:
        raise ModelError("no layers are given; name at least one, such as --layers 17")
    try:
        layers = check_layers(recipe.layers, depth)
    except ModelError as error:
        raise ModelError(f"{error} (pair {recipe.pair.name})") from error
    if "full_attention" in kinds:
        raise ModelError(f"{recipe.base} is a hybrid already; give the pure Llamba model as --base")
    donor = _Donor(recipe)
    tensors = _of_base(recipe.base, layers, is_tied=bool(fields.get("tie_embeddings")))
    for i in layers:
        tensors |= {f"backbone.layers.{i}.{part}": tensor for part, tensor in donor.layer(i).items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: _place(item[0])))
    dtype = recipe.dtype or _usual_dtype(tensors)
    return Ingredients(
        recipe=recipe,
        layers=layers,
        tensors={name: replace(t, cast=None if t.dtype == dtype else dtype) for name, t in tensors.items()},
        dtype=dtype,
        checksums=donor.checksums(layers),
        base_fingerprint=fingerprint(recipe.base),
        donor_fingerprint=donor.fingerprint,
        donor_revision=donor.revision,
    )


def verify(path: Path, digest: str) -> None:
    """Read an extracted layer's file and check that it is what was written.

    Raises:
        ModelError: it is not.
    """
    if sha256(path) != digest:
        raise ModelError(
            f"{path} is damaged: it is not what {METADATA} says was written; "
            "run extract_layers.py again, which writes just what is wrong"
        )


def check(parts: Ingredients) -> LlambaConfig:
    """Hold what was gathered against the model that it is to be; returns its configuration.

    Raises:
        ModelError: base and donor do not fit, or a tensor is missing, unknown or of another shape.
    """
    from models.loading import (
        check_pair,
        check_tensor,
        described_by,
        empty_model,
        read_llama_config,
        read_llamba_config,
    )

    base, donor = parts.recipe.base, parts.recipe.donor
    base_config, donor_config = read_llamba_config(base), read_llama_config(donor)
    check_pair(base_config, donor_config)
    with described_by(base, "a model that can be built"):
        config = base_config.with_attention(parts.layers, donor_config)
        skeleton = empty_model(config, "meta")
    expected = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    for name, tensor in parts.tensors.items():
        check_tensor(name, torch.Size(tensor.shape), expected, str(tensor.path))
    if missing := [name for name in expected if name not in parts.tensors]:
        layer = _LAYER.fullmatch(missing[0])
        source = donor if layer and int(layer[1]) in parts.layers else base
        count = f"{len(missing)} of {len(expected)} tensors"
        raise ModelError(f"{source} lacks {missing[0]} ({count}); download or extract it again")
    return config


class _Donor:
    """Extracted layers, or a Llama model of which nothing was extracted."""

    def __init__(self, recipe: Recipe) -> None:
        self._folder = folder = recipe.donor
        self._pair = recipe.pair
        self._metadata = metadata = read_metadata(folder)
        self._is_extracted = bool(metadata) or not (folder / "config.json").is_file() or any(folder.glob("layer_*.pt"))
        if self._is_extracted:
            for i in recipe.layers:
                self._require(layer_file(folder, i))
        wanted = source_name(recipe.pair, "donor")
        if metadata and metadata["source"] != wanted and metadata.get("pair") != recipe.pair.name:
            raise ModelError(
                f"{folder} holds the layers of {metadata['source']}, not of {wanted}, the donor of the pair "
                f"{recipe.pair.name}; give another --llama_layers_dir, or --pair"
            )
        self.fingerprint = str(metadata.get("donor_fingerprint") or fingerprint(folder))

    @property
    def revision(self) -> str | None:
        """The commit of the donor on its hub, where that is known."""
        return self._metadata.get("revision") if self._is_extracted else revision_of(self._folder)

    def layer(self, i: int) -> dict[str, StoredTensor]:
        """The tensors of one layer under their names in it."""
        if not self._is_extracted:
            return find_tensors(donor_layer_files(self._folder, i))
        return stored_tensors(layer_file(self._folder, i))

    def checksums(self, layers: tuple[int, ...]) -> dict[Path, str]:
        """SHA-256 of the layer files; none where nothing is on record.

        Raises:
            ModelError: some are on record and one is not.
        """
        if not self._metadata:
            return {}
        files, paths = self._metadata["files"], [layer_file(self._folder, i) for i in layers]
        for path in paths:
            if path.name not in files:
                raise ModelError(
                    f"{path} is not in {METADATA}; run extract_layers.py again, which goes on with the rest"
                )
        return {path: files[path.name]["sha256"] for path in paths}

    def _require(self, path: Path) -> None:
        if not path.is_file():
            raise ModelError(
                f"Layer file not found: {path}; extract the layers first: "
                f"python -m model_preparation.extract_layers --model_name llama --pair {shlex.quote(self._pair.name)} "
                f"--output_dir {shlex.quote(str(self._folder))}"
            )


def _of_base(folder: Path, without: tuple[int, ...], *, is_tied: bool) -> dict[str, StoredTensor]:
    """The base's tensors but those of layers that are the donor's."""
    files = tensor_files(folder)
    if is_tied:
        files.pop("lm_head.weight", None)  # some tools write the shared tensor twice
    kept = {
        name: (name, path)
        for name, path in files.items()
        if (layer := _LAYER.fullmatch(name)) is None or int(layer[1]) not in without
    }
    tensors = find_tensors(kept)
    if is_tied and "backbone.embedding.weight" in tensors:
        tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]
    return tensors


def _place(name: str) -> tuple[int, int, str]:
    """Where a tensor lies among the others: embedding, layers in order, what comes behind them."""
    if layer := _LAYER.fullmatch(name):
        return 1, int(layer[1]), layer[2]
    return 0 if "embedding" in name else 2, 0, name


def _usual_dtype(tensors: dict[str, StoredTensor]) -> torch.dtype:
    """The dtype that most values have."""
    values: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        values[tensor.dtype] = values.get(tensor.dtype, 0) + tensor.numel
    return max(values, key=values.__getitem__)
