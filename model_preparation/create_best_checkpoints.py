"""Makes checkpoints of layer sets: those known of a pair to be good, or the best per layer count that a search found.

    cd model_preparation && ./create_best_checkpoints.sh
    python -m model_preparation.create_best_checkpoints --from-result results/real_1/search_result_1.json

The shell script sets up the environment first and takes the same options.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the project is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.entry import Parser, become_tool, run_tool
from model_preparation.checkpoints.info import read_info
from model_preparation.checkpoints.verification import check_there
from model_preparation.create_replaced_model_checkpoint import add_ingredients, donor_folder
from model_preparation.create_replaced_model_checkpoint import create_one as create
from model_preparation.search_results import search_result
from model_preparation.sources import chosen_pair, default_layers_dir, locate
from models.errors import ModelError
from models.pairs import PAIRS, Pair

_EXAMPLES = """\
examples:
  ./create_best_checkpoints.sh
  ./create_best_checkpoints.sh --pair llamba-8b --formats safetensors --output_dir /data/checkpoints
  ./create_best_checkpoints.sh --from-result ../results/real_1/search_result_1.json

Each goes to DIR/<base>_replaced_<layers>, such as llamba_replaced_11_13_17_21. One that is there is kept, if it is of
that base and has the formats. Where one cannot be made the others still are, and the exit status is 1.

Settings of the shell script (config.sh; the environment wins): PAIR BASE DONOR PYTHON CONDA_ENV VENV TORCH_INDEX_URL
"""
_NAMES = {"llamba-8b": "llamba"}
"""What pairs are called in names of folders where that is not their own name."""
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checkpoint to make."""

    layers: tuple[int, ...]
    options: tuple[str, ...]
    """Of create_replaced_model_checkpoint.py: layers, score and description."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file. The last line printed is JSON."""
    arguments = _parse(argv)
    if arguments.from_result:
        wanted, of = found_best(arguments.from_result)
        if of and not (arguments.pair or arguments.base or arguments.donor):
            arguments.pair = of
        pair = chosen_pair(arguments)
        if of not in (None, pair.name):
            raise ModelError(f"{arguments.from_result} is of the pair {of}, not {pair.name}; leave --pair out")
    else:
        pair = chosen_pair(arguments)
        wanted = known_best(pair)
    shared = ["--pair", pair.name, "--llama_layers_dir", str(arguments.llama_layers_dir or _fetch(pair, wanted))]
    shared += ["--force"] if arguments.force else []
    places = {
        arguments.output_dir / f"{folder_name(pair)}_replaced_{'_'.join(map(str, one.layers))}": one for one in wanted
    }
    kept = [
        target
        for target, one in places.items()
        if not arguments.force and _is_there(target, pair, one.layers, arguments.formats)
    ]
    names: dict[str, list[str]] = {"made": [], "kept": [target.name for target in kept], "failed": []}
    missing = {target: one for target, one in places.items() if target not in kept}
    if missing:
        formats = arguments.formats or _formats(pair, arguments.output_dir, len(missing))
        shared += ["--formats", ",".join(formats)]
    for target, one in missing.items():
        name = target.name
        code = run_tool(name, create, [*shared, *one.options, "--output_dir", str(target)])
        if code == _INTERRUPTED:
            return code
        names["failed" if code else "made"].append(name)
    if names["failed"]:
        print(f"not made: {', '.join(names['failed'])}; the reasons are above", file=sys.stderr)
    print(json.dumps({"pair": pair.name, "output_dir": str(arguments.output_dir)} | names))
    return 1 if names["failed"] else 0


def _fetch(pair: Pair, wanted: Sequence[Wanted]) -> Path:
    """Have the base here before the first checkpoint is begun, and the donor's layers; returns where those are."""
    from models.layer_files import layer_file

    locate(pair, "base")
    layers = sorted({i for one in wanted for i in one.layers})
    folder = donor_folder(pair, layers)
    is_there = folder != default_layers_dir() or all(layer_file(folder, i).is_file() for i in layers)
    return folder if is_there else locate(pair, "donor")


def _formats(pair: Pair, folder: Path, count: int) -> Sequence[str]:
    """Formats for which the disk has room in all checkpoints to be made, so that none takes the room of another."""
    from model_preparation.checkpoints.writing import formats_with_room
    from models.weights import tensor_files

    files = set(tensor_files(locate(pair, "base")).values())
    return formats_with_room(folder, sum(path.stat().st_size for path in files), count=count)


def _is_there(target: Path, pair: Pair, layers: tuple[int, ...], formats: Sequence[str] | None) -> bool:
    """Whether the folder is that very checkpoint, whole; the tool that makes it refuses to replace anything else."""
    try:
        info = read_info(target)
        if (info.pair, tuple(info.replaced_layers)) != (pair.name, layers):
            return False
        check_there(target, info)
    except ModelError as error:
        if target.exists():
            print(f"not kept: {error}", file=sys.stderr)
        return False
    if lacking := sorted(set(formats or ()) - set(info.formats)):
        print(f"not kept: {target} was made without {', '.join(lacking)}", file=sys.stderr)
        return False
    if (base := _fingerprint(pair)) not in (None, info.base_fingerprint):
        print(f"not kept: {target} was made of another base than {pair.base.name} is now ({base})", file=sys.stderr)
        return False
    print(f"{target} is there ({', '.join(info.formats)}); kept", file=sys.stderr)
    return True


def _fingerprint(pair: Pair) -> str | None:
    """Of the base; None where it is not here."""
    from models.layer_files import fingerprint

    try:
        return fingerprint(locate(pair, "base", download=False))
    except ModelError:
        return None


def folder_name(pair: Pair) -> str:
    """What a pair is called in names of folders: as in the zoo, else after its base."""
    if pair.name in PAIRS:
        return _NAMES.get(pair.name, pair.name)
    return re.sub(r"[^\w.-]", "_", Path(pair.base.name).name)


def known_best(pair: Pair) -> list[Wanted]:
    """The layer sets of a pair that are known to be good.

    Raises:
        ModelError: none is known.
    """
    known = pair.known_best()
    if not known:
        raise ModelError(
            f"no best layer sets are known for the pair {pair.name}; search for them, then give --from-result FILE"
        )
    wanted = []
    for best in known:
        score = () if best.score is None else ("--score", str(best.score))
        layers = ("--layers", *map(str, best.layers))
        wanted.append(Wanted(best.layers, (*layers, *score, "--description", best.description)))
    return wanted


def found_best(path: Path) -> tuple[list[Wanted], str | None]:
    """The best layer set of each size that a search found, small ones first; and the pair it was about, if it says.

    Raises:
        ModelError: the file is no such result, or the search found none.
    """
    with search_result(path) as document:
        ranks = {tuple(entry["layers"]): int(entry["rank"]) for entry in document["final_results"]}
        best = sorted(document["best_per_layer_count"].items(), key=lambda item: int(item[0]))
        wanted = [_found(entry, ranks, path) for _, entry in best if entry and entry["layers"]]
        pair = (document.get("evaluator") or {}).get("pair")
    if not wanted:
        raise ModelError(f"{path} has no best set of any layer count; give the result of a search that scored some")
    return wanted, pair if isinstance(pair, str) else None


def _found(entry: dict[str, Any], ranks: dict[tuple[int, ...], int], path: Path) -> Wanted:
    layers = tuple(int(layer) for layer in entry["layers"])
    told = f"the best of {len(layers)} layers that a search found ({path.name})"
    if layers in ranks:  # then the score comes along
        return Wanted(layers, ("--from_result", str(path), "--rank", str(ranks[layers]), "--description", told))
    score = f"{entry['accuracy']:.4f} +- {entry['standard_error']:.4f} on {entry['questions']} questions"
    return Wanted(layers, ("--layers", *map(str, layers), "--description", f"{told}: {score}"))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="create_best_checkpoints.py",
        description=(__doc__ or "").split("\n", 1)[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--from_result", "--from-result", type=Path, metavar="FILE", help="the best sets of a search_result_*.json")
    add(
        "--output_dir",
        "--output-dir",
        type=Path,
        default=default_layers_dir().with_name("model_checkpoints"),
        metavar="DIR",
        help="folder of checkpoints [%(default)s]",
    )
    add_ingredients(parser)
    add("--force", action="store_true", help="make those again that are there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    become_tool("create_best_checkpoints.py", main)
