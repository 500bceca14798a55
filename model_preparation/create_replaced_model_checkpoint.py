"""Builds a hybrid of base and donor as a checkpoint folder that can be deployed.

    cd model_preparation
    python create_replaced_model_checkpoint.py --layers 11 13 17 21 --output_dir ../model_checkpoints/best
    python create_replaced_model_checkpoint.py --from_result search_result.json --output_dir ../best

The donor's layers are those that extract_layers.py wrote, or else are read from the donor itself. Weights stream from
file to file: no GPU is needed, and little memory. The same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the project is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.entry import Parser, last_line
from evaluation.surroundings import from_here, interpreter
from model_preparation.options import layer
from model_preparation.search_results import search_result
from model_preparation.sources import add_pair_options, chosen_pair, default_layers_dir, locate, read_metadata
from model_preparation.writers import reading_ahead
from models.errors import ModelError
from models.pairs import Pair

_HOLDOUT = ("holdout_accuracy", "holdout_standard_error", "holdout_questions")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file. The last line on stdout is JSON."""
    code = create_one(argv)
    tool = from_here(Path(__file__).resolve().with_name("test_checkpoint.py"))
    test = f"{interpreter()} {tool} --checkpoint {shlex.quote(str(_parse(argv).output_dir))}"
    last_line(f"test it with: {test}", f"测试这个 checkpoint：{test}")
    return code


def create_one(argv: Sequence[str] | None = None) -> int:
    """The command line without the line that says what comes next."""
    arguments = _parse(argv)
    found = read_result(arguments.from_result, arguments.rank) if arguments.from_result else None
    if (found is None) == (arguments.layers is None):
        raise ModelError("name the layers either with --layers or with --from_result, one of the two")
    if found and found["pair"] and not (arguments.pair or arguments.base or arguments.donor):
        arguments.pair = found["pair"]
    pair = chosen_pair(arguments, arguments.llama_layers_dir)
    if found and found["pair"] not in (None, pair.name):
        raise ModelError(
            f"{arguments.from_result} is of the pair {found['pair']}, not {pair.name}; leave --pair out, "
            "or name the layers with --layers"
        )
    layers = tuple(arguments.layers if found is None else found["layers"])
    score = None if found is None else found["score"] | {"tasks": found["tasks"] or list(pair.tasks)}
    base = locate(pair, "base")
    with reading_ahead(base):
        import torch

        from model_preparation.checkpoints.recipe import Recipe
        from model_preparation.checkpoints.writing import create

        donor = arguments.llama_layers_dir or donor_folder(pair, layers)
    recipe = Recipe(
        pair=pair,
        base=base,
        donor=donor,
        layers=layers,
        dtype=None if arguments.dtype is None else getattr(torch, arguments.dtype),
        description=arguments.description or (f"found by a search: {arguments.from_result}" if found else ""),
        mmlu_score=arguments.score if arguments.score is not None else _mmlu(found),
        score=score,
    )
    info = create(
        recipe, arguments.output_dir, formats=arguments.formats, force=arguments.force, resume=arguments.resume
    )
    print(
        json.dumps(
            {
                "checkpoint": str(arguments.output_dir),
                "layers": info.replaced_layers,
                "pair": info.pair,
                "parameters": info.num_parameters,
                "formats": info.formats,
            }
        )
    )
    return 0


def donor_folder(pair: Pair, layers: Sequence[int]) -> Path:
    """Where the donor's layers are: extracted, in the usual folder, or else in the donor itself if it is here.

    Layers that were extracted before the donor changed are left alone.
    """
    from models.layer_files import fingerprint, layer_file

    usual = default_layers_dir()
    metadata = read_metadata(usual)
    mine = metadata.get("pair") == pair.name or metadata.get("source") == pair.donor.name
    try:
        donor = locate(pair, "donor", download=False)
    except ModelError:
        return usual  # where the first missing file will be named, with the command that makes it
    if not (mine and all(layer_file(usual, i).is_file() for i in layers)):
        return donor
    if metadata.get("donor_fingerprint") == fingerprint(donor):
        return usual
    print(
        f"the layers in {usual} are not those of {donor} as it is now and are not used; "
        "extract_layers.py --force writes them anew",
        file=sys.stderr,
    )
    return donor


def read_result(path: Path, rank: int) -> dict[str, Any]:
    """The layers of one rank in a search's result, its score, and the pair and tasks they are about.

    Raises:
        ModelError: the file is no such result, or has no such rank.
    """
    with search_result(path) as document:
        entry = next((one for one in document["final_results"] if one["rank"] == rank), None)
        evaluator = document.get("evaluator") or {}
        if entry is None:
            known = len(document["final_results"])
            ranks = f"ranks 1 to {known}" if known else "no ranked set"
            raise ModelError(f"{path} has {ranks}, not rank {rank}; give another --rank or search_result_*.json")
        score = {name: _number(entry[name]) for name in ("accuracy", "standard_error", "questions")}
        holdout = {name: entry[name] for name in _HOLDOUT if entry.get(name) is not None}
        if "holdout_accuracy" in holdout:
            score |= {name: _number(value) for name, value in holdout.items()}
        # What lm-eval made of the options: its tasks have shots and a split of their own. Older results lack it.
        conditions = document.get("conditions") or evaluator
        asked = {name: conditions.get(name) for name in ("num_fewshot", "split")}
        if "conditions" in document and asked["num_fewshot"] is None:
            asked["num_fewshot"] = 0
        tasks = evaluator.get("tasks") or (["mmlu"] if evaluator.get("mmlu_dir") else [])
        return {
            "layers": [int(layer) for layer in entry["layers"]],
            "score": score | asked | {"versions": _versions(document)},
            "pair": evaluator.get("pair"),
            "tasks": list(tasks),
            "whole_accuracy": _whole_accuracy(entry, document),
        }


def _whole_accuracy(entry: dict[str, Any], document: dict[str, Any]) -> float | None:
    """The accuracy on all questions there are, None where only some were asked."""
    if "full_accuracy" in entry:
        return None if entry["full_accuracy"] is None else _number(entry["full_accuracy"])
    is_limited = (document.get("search") or {}).get("full_limit") is not None  # results of before there was that field
    return None if is_limited else _number(entry["accuracy"])


def _versions(document: dict[str, Any]) -> dict[str, str]:
    """What the search ran with, as far as its result tells; older ones do not."""
    found = document.get("versions") or {}
    return {str(name): str(version) for name, version in found.items() if version is not None}


def _number(value: Any) -> int | float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _mmlu(found: dict[str, Any] | None) -> float | None:
    """The score of a search's result where it is one of all of MMLU."""
    if found is None or found["tasks"] != ["mmlu"]:
        return None
    return found["whole_accuracy"]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="create_replaced_model_checkpoint.py",
        description=(__doc__ or "").split("\n", 1)[0],
        examples=(
            "python create_replaced_model_checkpoint.py --layers 11 13 17 21 --output_dir ../model_checkpoints/best",
            "python create_replaced_model_checkpoint.py --from_result result.json --output_dir ../best",
            "python -m model_preparation.create_replaced_model_checkpoint --pair tiny --layers 0 2 --output_dir new",
        ),
    )
    add = parser.add_argument
    add("--layers", type=layer, nargs="*", metavar="I", help="layers that become the donor's, 0-based")
    add("--from_result", "--from-result", type=Path, metavar="FILE", help="layers from a search_result_*.json")
    add("--rank", type=int, default=1, help="which of its ranking [%(default)s]")
    add("--output_dir", "--output-dir", type=Path, required=True, metavar="DIR", help="folder to make")
    add("--description", default="", help="a sentence for checkpoint_info.json and the model card")
    add("--score", type=_accuracy, metavar="X", help="MMLU accuracy, 0 to 1, to be noted in the checkpoint")
    add_ingredients(parser)
    add("--dtype", choices=("bfloat16", "float16", "float32"), help="of the weights [the base's]")
    add("--force", action="store_true", help="replace the checkpoint that the output folder holds")
    add("--resume", action="store_true", help="insist on going on with what an interrupted run of this left")
    add("--gpu", metavar="N", help="taken for compatibility; building needs no GPU")
    return parser.parse_args(argv)


def add_ingredients(parser: argparse.ArgumentParser) -> None:
    """Add what every tool that makes checkpoints takes: which models, where their layers are, which formats."""
    parser.add_argument(
        "--llama_layers_dir",
        "--llama-layers-dir",
        type=Path,
        metavar="DIR",
        help="the donor's extracted layers, or a Llama folder [extracted_llama_layers, else the donor itself]",
    )
    add_pair_options(parser)
    parser.add_argument(
        "--formats",
        type=lambda text: [part.strip() for part in text.split(",") if part.strip()],
        metavar="LIST",
        help="of safetensors,state_dict,model [all, or those that the disk has room for]",
    )


def _accuracy(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not an accuracy between 0 and 1")
    return value


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("create_replaced_model_checkpoint.py", main)
