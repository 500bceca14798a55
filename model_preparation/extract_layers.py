"""Writes the donor's decoder layers to one file each, for building hybrids.

    cd model_preparation && python extract_layers.py --model_name llama --output_dir ../extracted_llama_layers
    python -m model_preparation.extract_layers --pair llamba-8b

The folder gets layer_00.pt, layer_01.pt, ...; config.json and the tokenizer of the donor; and metadata.json,
which says whose layers these are and holds the SHA-256 of each file. Layers that are there and right are not
written again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: the project is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.entry import Parser
from model_preparation.files import disk_errors_named, held, replaced, require_space, sha256, write_json
from model_preparation.hubs import origin, revision_of
from model_preparation.sources import (
    METADATA,
    add_pair_options,
    default_layers_dir,
    donor_source,
    locate_source,
    read_metadata,
    tool_version,
)
from model_preparation.writers import reading_ahead
from models.errors import ModelError
from models.pairs import Pair, Source

if TYPE_CHECKING:
    from model_preparation.tensor_stream import StoredTensor
    from model_preparation.writers import Advance

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
)
"""Small files of the donor that a hybrid needs besides the layers."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    arguments = _parse(argv)
    if arguments.verify:
        count = verify(arguments.output_dir)
        print(json.dumps({"output_dir": str(arguments.output_dir), "layers": count, "verified": True}))
        return 0
    pair, source = donor_source(arguments.model_name, arguments)
    donor = locate_source(source, "the donor")
    with reading_ahead(donor):
        import torch  # noqa: F401 - for what follows
    metadata, written = extract(donor, arguments.output_dir, pair=pair, source=source, force=arguments.force)
    report = {"output_dir": str(arguments.output_dir), "layers": metadata["num_layers"], "written": written}
    print(json.dumps(report | {"pair": metadata["pair"]}))
    return 0


def extract(
    donor: Path, output_dir: Path, *, pair: Pair | None = None, source: Source | None = None, force: bool = False
) -> tuple[dict[str, Any], int]:
    """Write every decoder layer of the Llama model in `donor`; of the weights a few megabytes are in memory at a time.

    Each file appears whole or not at all, so an interrupted run is carried on by running again.

    Args:
        donor: A Llama folder.
        output_dir: Where the layers go.
        pair: Whose donor it is, for the metadata.
        source: What the donor is called elsewhere; None for its folder.
        force: Whether the layers of another donor are replaced.

    Returns:
        The metadata, and how many layers were not there yet.

    Raises:
        ModelError: if the donor cannot be read, or `output_dir` holds another donor's layers and not `force`.
    """
    from model_preparation.tensor_stream import find_tensors
    from model_preparation.writers import writing_beside
    from models.layer_files import donor_layer_files, fingerprint, layer_file, read_fields

    fields = read_fields(donor, "llama", ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"))
    depth = fields["num_hidden_layers"]
    if not isinstance(depth, int):
        raise ModelError(f"{donor / 'config.json'}: num_hidden_layers is {depth!r}, not a number; download it again")
    layers = {layer_file(output_dir, i): find_tensors(donor_layer_files(donor, i)) for i in range(depth)}
    metadata: dict[str, Any] = {
        "tool": f"extract_layers {tool_version()}",
        "pair": None if pair is None else pair.name,
        "source": str(donor.resolve()) if source is None else source.name,
        "revision": revision_of(donor),
        "origin": origin(donor),
        "donor_fingerprint": fingerprint(donor),
        "num_layers": depth,
        "config": fields,
        "files": {},
    }
    _check_claim(output_dir, metadata, force)
    output_dir.mkdir(parents=True, exist_ok=True)
    with held(output_dir), disk_errors_named(output_dir):
        files = _known(output_dir, metadata, force)
        left = {p: tensors for p, tensors in layers.items() if p.name not in files or not _is_right(p, files[p.name])}
        stale = [path for path in _layer_files(output_dir) if path.name not in files]
        freed = sum(path.stat().st_size for path in stale)
        require_space(
            output_dir, sum(tensor.nbytes for tensors in left.values() for tensor in tensors.values()) - freed
        )
        for path in stale:
            path.unlink()
        metadata["files"] = files
        write_json(output_dir / METADATA, metadata)
        _copy_companions(donor, output_dir)
        with writing_beside("layers") as writers:
            for path, tensors in left.items():
                writers.start(sum(tensor.nbytes for tensor in tensors.values()), _writer(path, tensors, metadata))
            writers.finish()
    there = len(layers) - len(left)
    beside = f"; {there} were there already, and are what the donor holds" if there else ""
    print(f"{len(left)} layers written to {output_dir}{beside}", file=sys.stderr)
    return metadata, len(left)


def _writer(
    path: Path, tensors: dict[str, StoredTensor], metadata: dict[str, Any]
) -> Callable[[Advance], Callable[[], None]]:
    """What writes a layer file, and then puts it on record."""
    from model_preparation.tensor_stream import write_archive

    def write(advance: Advance) -> Callable[[], None]:
        with replaced(path) as unfinished:
            entry = {
                "sha256": write_archive(unfinished, tensors, advance),
                "bytes": unfinished.stat().st_size,
                "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
            }

        def record() -> None:
            metadata["files"] = dict(sorted((metadata["files"] | {path.name: entry}).items()))
            write_json(path.parent / METADATA, metadata)

        return record

    return write


def verify(output_dir: Path) -> int:
    """Check every layer file against metadata.json and return how many there are.

    Raises:
        ModelError: naming the files that are missing or not what was written.
    """
    metadata = read_metadata(output_dir)
    if not metadata:
        raise ModelError(f"{output_dir} has no {METADATA}; extract the layers first")
    names = [f"layer_{i:02d}.pt" for i in range(metadata["num_layers"])]
    wrong = [n for n in names if n not in metadata["files"] or not _is_right(output_dir / n, metadata["files"][n])]
    if wrong:
        raise ModelError(
            f"{len(wrong)} of {len(names)} layer files in {output_dir} are missing or damaged "
            f"({', '.join(wrong)}); run the extraction again: it writes just those"
        )
    return len(names)


def _check_claim(output_dir: Path, metadata: dict[str, Any], force: bool) -> None:
    """Raise ModelError where the folder is not this donor's; `force` is about other layers, not about other files."""
    if not (_layer_files(output_dir) or (output_dir / METADATA).is_file()):
        _refuse_foreign(output_dir)
    elif not force:
        previous = read_metadata(output_dir)
        if previous.get("donor_fingerprint") != metadata["donor_fingerprint"]:
            whose = f"the layers of {previous['source']}" if previous else "layer files of unknown origin"
            if previous.get("source") == metadata["source"]:
                whose += " as it was then"
            raise ModelError(
                f"{output_dir} holds {whose}, not those of {metadata['source']}; "
                "choose another --output_dir, or replace them with --force"
            )


def _known(output_dir: Path, metadata: dict[str, Any], force: bool) -> dict[str, Any]:
    """What is on record of this donor's layers in the folder; with `force` a damaged record counts for nothing."""
    try:
        previous = read_metadata(output_dir)
    except ModelError:
        if not force:
            raise
        previous = {}
    same = previous.get("donor_fingerprint") == metadata["donor_fingerprint"]
    return dict(previous["files"]) if same else {}


def _layer_files(output_dir: Path) -> list[Path]:
    """Layer files, and what a killed run left of some."""
    return sorted([*output_dir.glob("layer_*.pt"), *output_dir.glob(".layer_*.part")])


def _refuse_foreign(output_dir: Path) -> None:
    """Raise ModelError where files of something else lie; the donor's config.json would take their place."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ModelError(f"--output_dir {output_dir} is a file; name a folder")
    others = [entry.name for entry in output_dir.glob("[!.]*")]
    if others:
        raise ModelError(
            f"--output_dir {output_dir} is not empty and holds no extracted layers (it has {min(others)}); "
            "choose a new or empty folder"
        )


def _is_right(path: Path, entry: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"]


def _copy_companions(donor: Path, output_dir: Path) -> None:
    for pattern in COMPANIONS:
        for source in donor.glob(pattern):
            if source.is_file():
                with replaced(output_dir / source.name) as unfinished:
                    shutil.copyfile(source, unfinished)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="extract_layers.py",
        description=(__doc__ or "").split("\n", 1)[0],
        examples=(
            "python model_preparation/extract_layers.py --model_name llama --output_dir extracted_llama_layers",
            "python -m model_preparation.extract_layers --pair tiny --output_dir tiny_layers",
            "python -m model_preparation.extract_layers --output_dir tiny_layers --verify",
        ),
    )
    parser.add_argument(
        "--model_name",
        "--model-name",
        default="llama",
        metavar="NAME",
        help="whose: llama (the pair's donor), a pair's name, a hub id, or the folder of a Llama model [%(default)s]",
    )
    add_pair_options(parser)
    parser.add_argument(
        "--output_dir", "--output-dir", type=Path, default=default_layers_dir(), metavar="DIR", help="[%(default)s]"
    )
    parser.add_argument("--verify", action="store_true", help="only check the files there against metadata.json")
    parser.add_argument("--force", action="store_true", help="replace the layers of another donor")
    return parser.parse_args(argv)


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("extract_layers.py", main)
