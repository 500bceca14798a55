"""Which pair a tool works on, and where its models lie; the one place that reaches for a hub.

Nothing is downloaded that is already here: each hub's own cache is asked first, without the network.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from models.errors import ModelError
from models.pairs import PAIRS, Pair, get_pair

ROOT = Path(__file__).resolve().parents[1]
METADATA = "metadata.json"
BIG_GPU_BYTES = 18_000_000_000
"""What llamba-8b needs, as scripts/lib.sh has it."""

Role = Literal["base", "donor"]
_log = logging.getLogger(__name__)

WANTED = ("*.json", "*.safetensors", "pytorch_model*.bin", "*.model", "*.txt", "*.jinja")
UNWANTED = ("original/*", "consolidated*")
"""Meta's own format beside Hugging Face's: as large as the model again, and never read."""


def default_layers_dir() -> Path:
    """Where extracted layers lie unless a tool is told otherwise: in the clone, else in the working folder."""
    project = ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()
    return project / "extracted_llama_layers"


@dataclass(frozen=True, slots=True)
class Choice:
    """A pair and why it is that one."""

    pair: Pair
    reason: str


def choose_pair(asked: str | None, layers_dir: Path | None = None) -> Choice:
    """The pair to work on: `asked`, else $PAIR, else whose layers were extracted, else what suits the machine.

    That is llamba-8b with a GPU of 18 GB or more, as in the shell scripts, and the bundled pair without.

    Raises:
        ModelError: if there is no such pair.
    """
    if asked:
        return Choice(get_pair(asked), "--pair")
    if named := os.environ.get("PAIR"):
        return Choice(get_pair(named), "PAIR in the environment")
    folder = layers_dir or default_layers_dir()
    if extracted := read_metadata(folder).get("pair"):
        return Choice(get_pair(str(extracted)), f"the layers in {folder}")
    if _has_big_gpu():
        return Choice(get_pair("llamba-8b"), "there is a GPU of 18 GB or more; --pair NAME or PAIR chooses another")
    return Choice(get_pair("tiny"), "the bundled one; --pair NAME or PAIR chooses another")


def _has_big_gpu() -> bool:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return any(torch.cuda.get_device_properties(i).total_memory >= BIG_GPU_BYTES for i in range(count))


def announce(choice: Choice) -> Pair:
    """Say on stderr which pair is used and why, and return it."""
    print(f"pair {choice.pair.name} ({choice.reason})", file=sys.stderr)
    return choice.pair


def read_metadata(layers_dir: Path) -> dict[str, Any]:
    """What extract_layers.py wrote about a folder of layers; empty where there is nothing.

    Raises:
        ModelError: if it cannot be read.
    """
    path = layers_dir / METADATA
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); extract the layers again with --force") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} does not hold an object; extract the layers again with --force")
    if found and not _describes_layers(found):
        raise ModelError(f"{path} is not what extract_layers.py writes; extract the layers again with --force")
    return found


def _describes_layers(found: dict[str, Any]) -> bool:
    files = found.get("files")
    return (
        isinstance(found.get("source"), str)
        and isinstance(found.get("num_layers"), int)
        and isinstance(files, dict)
        and all(isinstance(one, dict) and {"bytes", "sha256"} <= one.keys() for one in files.values())
    )


def locate(pair: Pair, role: Role, *, download: bool = True) -> Path:
    """The local folder of a pair's base or donor, downloaded first where it is not here.

    Args:
        pair: of the zoo, or of local folders.
        role: which of the two.
        download: whether the network may be used.

    Raises:
        ModelError: if it is nowhere; says what each source answered and what to do.
    """
    ids = pair.base_ids if role == "base" else pair.donor_ids
    if not ids:
        folder = Path(pair.base if role == "base" else pair.donor)
        if not folder.is_dir():
            raise ModelError(f"the {role} of the pair {pair.name} is not in {folder}; restore that folder")
        return folder
    for source, model_id in ids:
        if found := _cached(source, model_id):
            return found
    if not download:
        raise ModelError(
            f"the {role} of the pair {pair.name} is not on this machine; "
            f"download it with: python -m model_preparation.modelscope_utils --pair {pair.name}"
        )
    answers = []
    for source, model_id in ids:
        print(f"downloading {model_id} from {source} ...", file=sys.stderr)
        try:
            return _fetch(source, model_id, local_files_only=False)
        except Exception as error:  # each library has errors of its own; all are reported below
            answers.append(f"{source} ({model_id}): {_brief(error)}")
    raise ModelError(
        f"the {role} of the pair {pair.name} cannot be downloaded: {'; '.join(answers)}; check the network "
        "(HF_ENDPOINT names a mirror, HF_TOKEN opens gated models), or give two local folders: "
        f"--pair BASE_FOLDER{os.pathsep}DONOR_FOLDER"
    )


def source_name(pair: Pair, role: Role) -> str:
    """What a pair's base or donor is called elsewhere: a hub id, a bundled model, or else its folder."""
    named, ids = (pair.base, pair.base_ids) if role == "base" else (pair.donor, pair.donor_ids)
    return f"{pair.name}/{role}" if not ids and pair.name in PAIRS else named


def tool_version() -> str:
    """The version of this project, for what is written into files."""
    try:
        return metadata.version("ga-layer-search")
    except metadata.PackageNotFoundError:  # used from a clone that is not installed
        with (ROOT / "pyproject.toml").open("rb") as file:
            return str(tomllib.load(file)["project"]["version"])


def tokenizer_folders(*folders: Path) -> Iterator[Path]:
    """Those of `folders` that hold a tokenizer."""
    for folder in folders:
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
            yield folder


def _cached(source: str, model_id: str) -> Path | None:
    """The folder of a model that was downloaded whole before."""
    try:
        folder = _fetch(source, model_id, local_files_only=True)
    except Exception as error:  # "not here" is another error in each version of each library
        _log.debug("%s is not in the cache of %s: %s", model_id, source, _brief(error))
        return None
    return folder if _is_whole(folder) else None


def _fetch(source: str, model_id: str, *, local_files_only: bool) -> Path:
    patterns = {"allow_patterns": list(WANTED), "ignore_patterns": list(UNWANTED)}
    if source == "modelscope":
        from modelscope import snapshot_download
    else:
        from huggingface_hub import snapshot_download
    return Path(snapshot_download(model_id, local_files_only=local_files_only, **patterns))


def _is_whole(folder: Path) -> bool:
    """Whether a cached folder has its configuration and all weights; a download may have been cut off."""
    from models.weights import tensor_files

    try:
        return (folder / "config.json").is_file() and bool(tensor_files(folder))
    except ModelError:
        return False


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]
