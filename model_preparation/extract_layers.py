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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the project is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.entry import Parser
from model_preparation.files import replaced, save_tensors, sha256, write_json
from model_preparation.sources import (
    METADATA,
    announce,
    choose_pair,
    default_layers_dir,
    locate,
    read_metadata,
    tool_version,
)
from models.errors import ModelError
from models.pairs import PAIRS, Pair

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
    pair, donor = _donor(arguments.model_name, arguments.pair)
    metadata, written = extract(donor, arguments.output_dir, pair=pair, force=arguments.force)
    report = {"output_dir": str(arguments.output_dir), "layers": metadata["num_layers"], "written": written}
    print(json.dumps(report | {"pair": metadata["pair"]}))
    return 0


def extract(
    donor: Path, output_dir: Path, *, pair: Pair | None = None, force: bool = False
) -> tuple[dict[str, Any], int]:
    """Write every decoder layer of the Llama model in `donor`, one at a time.

    Each file appears whole or not at all, so an interrupted run is carried on by running again.

    Returns:
        The metadata, and how many layers were not there yet.

    Raises:
        ModelError: if the donor cannot be read, or `output_dir` holds another donor's layers and not `force`.
    """
    from tqdm import tqdm

    from models.loading import fingerprint, layer_file, load_donor_layer_state, read_llama_config

    config = read_llama_config(donor)
    metadata: dict[str, Any] = {
        "tool": f"extract_layers {tool_version()}",
        "pair": None if pair is None else pair.name,
        "source": str(donor) if pair is None else pair.donor,
        "donor_fingerprint": fingerprint(donor),
        "num_layers": config.num_hidden_layers,
        "config": config.to_dict(),
        "files": {},
    }
    files = metadata["files"] = _claim(output_dir, metadata, force)
    _copy_companions(donor, output_dir)
    written = 0
    for i in tqdm(range(config.num_hidden_layers), "layers", unit="layer", disable=not sys.stderr.isatty()):
        path = layer_file(output_dir, i)
        if path.name not in files or not _is_right(path, files[path.name]):
            # A lazily read tensor may be a view of its whole file; clone() keeps only what belongs to it.
            state = {name: tensor.clone() for name, tensor in load_donor_layer_state(donor, i).items()}
            with replaced(path) as unfinished:
                save_tensors(state, unfinished)
                files[path.name] = {
                    "sha256": sha256(unfinished),
                    "bytes": unfinished.stat().st_size,
                    "dtype": str(next(iter(state.values())).dtype).removeprefix("torch."),
                }
            write_json(output_dir / METADATA, metadata)
            written += 1
    there = config.num_hidden_layers - written
    print(f"{written} layers written to {output_dir}, {there} were there and right", file=sys.stderr)
    return metadata, written


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


def _claim(output_dir: Path, metadata: dict[str, Any], force: bool) -> dict[str, Any]:
    """Make the folder this donor's, and return what is known of the layer files in it."""
    previous = read_metadata(output_dir) if not force else {}
    present = sorted(output_dir.glob("layer_*.pt"))
    if previous.get("donor_fingerprint") == metadata["donor_fingerprint"]:
        return dict(previous["files"])
    if (previous or present) and not force:
        whose = f"the layers of {previous['source']}" if previous else "layer files of unknown origin"
        raise ModelError(
            f"{output_dir} holds {whose}, not those of {metadata['source']}; "
            "choose another --output_dir, or replace them with --force"
        )
    if not (present or (output_dir / METADATA).is_file()):
        _refuse_foreign(output_dir)  # with --force, too: it is about layers, not about whatever lies there
    output_dir.mkdir(parents=True, exist_ok=True)
    for path in present:
        path.unlink()
    write_json(output_dir / METADATA, metadata)
    return {}


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


def _donor(model_name: str, asked_pair: str | None) -> tuple[Pair | None, Path]:
    """The donor's folder, and its pair where it is one of a pair's."""
    if model_name == "llama":
        pair = announce(choose_pair(asked_pair))
    elif model_name in PAIRS:
        pair = PAIRS[model_name]
    elif Path(model_name).is_dir():
        return None, Path(model_name)
    else:
        raise ModelError(
            f"--model_name {model_name!r} is neither llama, nor a pair ({', '.join(PAIRS)}), nor a folder; "
            "give llama for the donor of the pair that --pair names"
        )
    return pair, locate(pair, "donor")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="extract_layers.py", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--model_name",
        "--model-name",
        default="llama",
        metavar="NAME",
        help="whose layers: llama (the pair's donor), a pair, or the folder of a Llama model [%(default)s]",
    )
    parser.add_argument(
        "--pair", metavar="NAME", help="base and donor [$PAIR, else that of the extracted layers, else by the GPU]"
    )
    parser.add_argument(
        "--output_dir", "--output-dir", type=Path, default=default_layers_dir(), metavar="DIR", help="[%(default)s]"
    )
    parser.add_argument("--verify", action="store_true", help="only check the files there against metadata.json")
    parser.add_argument("--force", action="store_true", help="replace the layers of another donor")
    return parser.parse_args(argv)


if __name__ == "__main__":
    from evaluation.entry import run_tool

    raise SystemExit(run_tool("extract_layers.py", main))
