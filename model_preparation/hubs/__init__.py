"""Models from Hugging Face and ModelScope, each in that hub's own cache; the only network code of the project.

What is here is found without the network. A download takes only what the tools read, says beforehand how much that
is, and goes on where an earlier one was cut off. Environment: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`
(which holds for both hubs), `MODELSCOPE_CACHE`, `MODELSCOPE_ENDPOINT`, `MODELSCOPE_API_TOKEN`.

A token goes to the hub that it is for and never to a mirror. Where a mirror of one's own needs it, `hf download ID`
sends it there; what that fetched is found here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from model_preparation.files import require_space
from model_preparation.hubs.base import Hub, HubError, HubFile
from models.errors import ModelError
from models.pairs import HubModel

__all__ = ["HubError", "cached", "download", "origin", "revision_of"]

SMALL = ("*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""Configuration, tokenizer and licence, all beside config.json; folders hold the same model in other formats."""
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""The first of these that a model has; the other would be as large again and never read."""
_MARGIN = 100_000_000  # bytes of disk beyond those of the files
_HF_PREFIX = "models--"  # of a model's folder in the cache of Hugging Face; ModelScope has models/OWNER--NAME
_COMMIT = re.compile(r"[0-9a-f]{40}")


def cached(model: HubModel) -> Path | None:
    """The folder of a model that was downloaded whole before; the network is not used.

    Raises:
        HubError: the id cannot be one, or the cache cannot be read.
    """
    hub = _hub(model)
    with hub.explained():
        folder = hub.folder()
    return folder if folder and _is_whole(folder) else None


def download(model: HubModel) -> Path:
    """Get what is missing of a model into its hub's cache, and return its folder there.

    Says on stderr how much there is and how much of it is still to come. What has come when it fails is kept.

    Raises:
        HubError: the hub has no such model, shows it to nobody or cannot be reached; what came is not what it lists;
            or the disk has too little room.
    """
    from huggingface_hub import is_offline_mode

    hub = _hub(model)
    if is_offline_mode():
        raise HubError(
            f"{model.id} is not in {hub.cache} and HF_HUB_OFFLINE is set; unset it to download, or give a folder"
        )
    with hub.explained():
        small, weights = _wanted(model, hub.files())
        files = [*small, *weights]
        _announce(hub, files)
        folder = hub.fetch(small, weights)
        for file in files:
            path = folder / file.name
            size = path.stat().st_size if path.is_file() else 0
            if file.size and size != file.size:
                raise HubError(f"{path} has {size} bytes and {hub.host} lists {file.size}; run again")
        hub.settle()
    return folder


def revision_of(folder: Path) -> str | None:
    """The commit that a folder in a hub's cache holds; None where its place does not tell.

    It does on Hugging Face. ModelScope's library names folders after branches, and only after a commit that was asked
    for by name.
    """
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def origin(folder: Path) -> str | None:
    """What `Source.parse` reads as the very model that a folder in a hub's cache holds, such as `hf:org/name@COMMIT`.

    None where its place does not tell, as with `revision_of`.
    """
    commit, repository = revision_of(folder), folder.parent.parent.name
    owner, _, name = repository.removeprefix(_HF_PREFIX).partition("--")
    if commit is None or not name:
        return None
    return f"{'hf' if repository.startswith(_HF_PREFIX) else 'ms'}:{owner}/{name}@{commit}"


def _hub(model: HubModel) -> Hub:
    # Late, because ModelScope's library takes seconds to import.
    if model.hub == "modelscope":
        from model_preparation.hubs.modelscope import ModelScope

        return ModelScope(model)
    from model_preparation.hubs.huggingface import HuggingFace

    return HuggingFace(model)


def _is_whole(folder: Path) -> bool:
    """Whether a folder has its configuration and all of its weights; a download may have been cut off."""
    from models.weights import WeightFile, tensor_files

    try:
        for path in set(tensor_files(folder).values()):
            if path.suffix == ".safetensors":  # opened, these tell whether their end is missing
                with WeightFile(path):
                    pass
        return (folder / "config.json").is_file()
    except ModelError:
        return False


def _wanted(model: HubModel, files: Sequence[HubFile]) -> tuple[list[HubFile], list[HubFile]]:
    """Those of a model's files that the tools read: small ones, and weights."""
    beside = sorted((file for file in files if "/" not in file.name), key=lambda file: file.name)
    small = [file for file in beside if any(fnmatchcase(file.name, pattern) for pattern in SMALL)]
    kinds = ([file for file in beside if fnmatchcase(file.name, pattern)] for pattern in WEIGHTS)
    weights = next(filter(None, kinds), [])
    lacking = [
        name
        for name, found in (
            ("config.json", any(file.name == "config.json" for file in small)),
            (" or ".join(WEIGHTS), bool(weights)),
        )
        if not found
    ]
    if lacking:
        raise HubError(f"{model.id} has no {' and no '.join(lacking)}; give a model in Hugging Face's layout")
    return small, weights


def _announce(hub: Hub, files: Sequence[HubFile]) -> None:
    """Say how much will be downloaded, after a look whether the disk has room for it."""
    total = sum(file.size for file in files)
    missing = sum(file.size - hub.bytes_here(file) for file in files)
    if not missing:
        return
    try:
        require_space(hub.cache, missing + _MARGIN)
    except ModelError as error:
        raise HubError(f"no room for {hub.model.id}: {error} with {hub.cache_variable}") from error
    rest = "" if missing == total else f", {_amount(missing)} of them still to get"
    size = f"{_amount(total)} in {len(files)} files{rest}"
    print(f"downloading {hub.model.id} ({size}) from {hub.host} to {hub.cache}", file=sys.stderr)


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 100_000_000 else f"{size / 1e6:.1f} MB"
