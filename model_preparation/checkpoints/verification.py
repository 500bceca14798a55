"""Checks the files of a checkpoint folder: they are there, are what was written, and hold one and the same model."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from model_preparation.checkpoints.info import ARCHIVES
from model_preparation.files import INFO, sha256
from models.errors import ModelError
from models.tokenizer import tokenizer_folders

if TYPE_CHECKING:
    from model_preparation.checkpoints.info import CheckpointInfo
    from models.modeling_llamba import LlambaForCausalLM

_TOLD_BYTES = 1 << 30
"""Files of which it is said that they were read."""


def check_there(folder: Path, info: CheckpointInfo) -> None:
    """Check that every file is there; reads none.

    Raises:
        ModelError: names those that are not.
    """
    wanted = [*_listed(folder, info), *(file for name, file in ARCHIVES.items() if name in info.formats)]
    missing = [name for name in dict.fromkeys(wanted) if not (folder / name).is_file()]
    if missing:
        lacks = "is" if len(missing) == 1 else "are"
        raise ModelError(f"{folder}: {', '.join(missing)} {lacks} missing; copy the checkpoint again, or make it again")
    if not any(tokenizer_folders(folder / "tokenizer")):
        raise ModelError(f"there is no tokenizer in {folder / 'tokenizer'}; copy the tokenizer files of {folder} there")


def verify(folder: Path, info: CheckpointInfo) -> int:
    """Read every file and compare it with the checksum noted when it was written.

    Returns:
        How many files there are.

    Raises:
        ModelError: names those that differ; or there are no checksums.
    """
    listed = _listed(folder, info)
    if not listed:
        raise ModelError(
            f"{folder / INFO} lists no checksums, as older versions wrote none; leave --verify out, "
            "or make the checkpoint again"
        )
    differ = []
    for name, digest in listed.items():
        if sha256(folder / name) != digest:
            differ.append(name)
        if (size := (folder / name).stat().st_size) >= _TOLD_BYTES:
            print(f"read {name} ({size / 1e9:.1f} GB)", file=sys.stderr)
    if differ:
        raise ModelError(
            f"{folder}: {', '.join(differ)} differ from what was written (SHA-256 in {INFO}); "
            "copy the checkpoint again, or make it again"
        )
    return len(listed)


def _listed(folder: Path, info: CheckpointInfo) -> dict[str, str]:
    """The checksums by name of file.

    Raises:
        ModelError: a name is none of a file in the folder.
    """
    for name in info.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ModelError(f"{folder / INFO} is damaged (it lists {name!r}); make the checkpoint again")
    return info.files


def check_numbers(model: LlambaForCausalLM) -> None:
    """Check that all weights are finite.

    Raises:
        ModelError: names the first tensor that is not.
    """
    bad = [name for name, weights in model.named_parameters() if not _is_finite(weights)]
    if bad:
        dtype = str(model.dtype).removeprefix("torch.") + (f" (in all {len(bad)} do)" if len(bad) > 1 else "")
        advice = "make the checkpoint again, or give another --dtype"
        raise ModelError(f"the tensor {bad[0]} holds values that are not numbers in {dtype}; {advice}")


def _is_finite(weights: Any) -> bool:
    if not weights.numel():
        return True
    low, high = weights.aminmax()  # either is NaN if any weight is; unlike isfinite it needs no memory
    return bool(low.isfinite()) and bool(high.isfinite())


def check_agree(folder: Path, info: CheckpointInfo, model: LlambaForCausalLM) -> None:
    """Check that model.pt and model_state_dict.pt, where they are, hold the model that the safetensors hold.

    Names, shapes and the first row of each tensor are compared; the files are mapped, not read whole.

    Raises:
        ModelError: one of them is damaged or another model.
    """
    from models.weights import WeightFile

    expected = model.state_dict()
    if "state_dict" in info.formats:
        with WeightFile(folder / ARCHIVES["state_dict"]) as state:
            _compare(folder / ARCHIVES["state_dict"], {name: state[name] for name in state.names}, expected)
    if "model" in info.formats:
        _compare(folder / ARCHIVES["model"], _open_whole(folder / ARCHIVES["model"]).state_dict(), expected)


def _open_whole(path: Path) -> LlambaForCausalLM:
    import torch

    from model_preparation.saved_model import allow_in_weights_only_load
    from models.weights import one_line

    if not zipfile.is_zipfile(path):  # its table of contents is at the end
        raise ModelError(f"{path} is cut short; make the checkpoint again")
    allow_in_weights_only_load()  # for good: `safe_globals` would also take away what `import torch` had allowed
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # damage makes PyTorch raise any error there is
        raise ModelError(f"{path} is damaged ({one_line(error)}); make the checkpoint again") from error


def _compare(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    import torch

    if lacking := sorted(expected.keys() ^ found.keys()):
        raise ModelError(f"{path} and the safetensors differ in {lacking[0]}; make the checkpoint again")
    for name, tensor in expected.items():
        other = found[name]
        same = other.shape == tensor.shape
        if not same or not torch.equal(other[:1].to(tensor.dtype), tensor[:1].cpu()):
            raise ModelError(f"{path} and the safetensors differ in {name}; make the checkpoint again")
