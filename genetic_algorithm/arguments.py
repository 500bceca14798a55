"""The command line of the search: its flags, and the objects that they become."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genetic_algorithm.config import PRESETS, SearchConfig
from genetic_algorithm.errors import SearchError
from genetic_algorithm.layer_set import LayerSet

_MODEL_FLAGS = (
    "pair",
    "base",
    "donor",
    "tasks",
    "mmlu_dir",
    "question_order",
    "num_fewshot",
    "gpu",
    "dtype",
    "fast_dtype",
    "memory",
    "batch_tokens",
    "layers_dir",
)
_SEARCH_FLAGS = {
    "population": "layer sets per generation",
    "generations": "generations, at most",
    "no_improve": "stop stage 1 after this many generations without gain",
    "min_layers": "fewest donor layers in a set",
    "max_layers": "most donor layers in a set",
    "seed": "of all chance in the search",
}
_LIMIT_FLAGS = {
    "fast_limit": "questions per subject in stage 1 and in screening (N or none)",
    "full_limit": "questions per subject by which sets are ranked (N or none)",
    "final_limit": "questions per subject to tell the last few leaders apart (N, none, or 0 to leave out)",
    "holdout_limit": "further questions per subject that only finalists see (N, 0 to leave out)",
}
_EXAMPLES = """\
examples:
  python -m genetic_algorithm.run_search                     the bundled tiny pair, on a CPU, in minutes
  python -m genetic_algorithm.run_search --pair llamba-8b --tasks mmlu --mmlu-dir mmlu --preset quick --gpu 0
  python -m genetic_algorithm.run_search --pair llamba-1b --base ./my_llamba     the pair's donor, another base
  python -m genetic_algorithm.run_search --dry-run           what it would cost; writes nothing
  python -m genetic_algorithm.run_search --output-dir results/mine       once more to resume
  python -m genetic_algorithm.run_search --evaluator my_package.my_module:make_evaluator

The last line on stdout is one JSON object: layers, accuracy, the result file. Everything else goes to
stderr and to the log in the output folder. Limits are per subject, "none" is all; flags override the preset.
"""


def limit(text: str) -> int | None:
    """`none`, or a number of questions per subject."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None


def make_parser(
    add_pair_options: Callable[[argparse._ActionsContainer], None],
    parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """The parser, of the class `parser_class`, with --pair, --base and --donor; flags that are not given stay None."""
    parser = parser_class(
        prog="run_search",
        description="Find the layers whose swap to the donor's block restores the most accuracy.",
        epilog=_EXAMPLES + "\n" + _preset_table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    models = parser.add_argument_group("models and questions")
    add_pair_options(models)
    models.add_argument("--tasks", nargs="+", metavar="TASK", help="lm-eval tasks or groups [the pair's own]")
    models.add_argument("--mmlu-dir", type=Path, metavar="DIR", help="local folder of cais/mmlu [the hub]")
    models.add_argument(
        "--question-order",
        choices=("shuffled", "dataset"),
        help="within a subject: a seeded permutation, or as lm-eval's --limit counts [shuffled]",
    )
    models.add_argument("--num-fewshot", type=int, metavar="N", help="solved examples shown [the task's own]")
    models.add_argument("--gpu", metavar="N|cpu|auto", help="device [auto: GPU 0 where there is one]")
    models.add_argument("--dtype", choices=("float32", "bfloat16"), help="[bfloat16 on a GPU, float32 on a CPU]")
    models.add_argument(
        "--fast-dtype",
        choices=("same", "fp8"),
        help="of stage 1 and of screening: fp8 asks these questions in 8 bits, on GPUs that can [same]",
    )
    models.add_argument(
        "--memory",
        choices=("auto", "resident", "streamed"),
        help="both models on the GPU, or the donor's layers streamed to it [auto: by its free memory]",
    )
    models.add_argument("--layers-dir", type=Path, metavar="DIR", help="extracted donor layers [the donor]")
    models.add_argument("--batch-tokens", type=int, metavar="N", help="tokens per forward pass [by device]")
    models.add_argument(
        "--evaluator",
        metavar="MODULE:FACTORY",
        help="a function that makes another evaluator, instead of these",
    )
    search = parser.add_argument_group("search (defaults: the preset)")
    search.add_argument("--preset", choices=tuple(PRESETS), help="[the pair's: tiny for tiny, else quick]")
    for name, text in _LIMIT_FLAGS.items():
        kind = int if name == "holdout_limit" else limit
        search.add_argument(_flag(name), type=kind, default=argparse.SUPPRESS, metavar="N", help=text)
    for name, text in _SEARCH_FLAGS.items():
        search.add_argument(_flag(name), type=int, default=argparse.SUPPRESS, metavar="N", help=text)
    search.add_argument(
        "--single-layer-scores",
        type=Path,
        metavar="FILE",
        help='accuracy of each layer alone: JSON {"17": 0.51, ...} or CSV layers,mmlu_acc [measured first]',
    )
    search.add_argument(
        "--elite",
        type=Path,
        metavar="FILE",
        help="sets to begin with: JSON [[11, 13], ...] or a search_result file [from the best single layers]",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--output-dir", type=Path, metavar="DIR", help="new, or one to resume [results/real_<timestamp>]")
    run.add_argument("--dry-run", action="store_true", help="print the plan and its cost; write nothing")
    return parser


def search_config(args: argparse.Namespace, default_preset: str) -> SearchConfig:
    """The preset, `default_preset` where none is asked for, with the flags over it.

    A limit of the preset that contradicts one that was given gives way; two given ones that do are an error.
    """
    preset = PRESETS[args.preset or default_preset]()
    names = [field.name for field in dataclasses.fields(SearchConfig)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    fast, full, final = (given.get(name, getattr(preset, name)) for name in list(_LIMIT_FLAGS)[:3])
    if full is not None and (fast is None or fast > full):
        if "fast_limit" not in given:
            given["fast_limit"] = full
        elif "full_limit" not in given:
            given["full_limit"] = full = fast
    if final and (full is None or final < full) and "final_limit" not in given:
        given["final_limit"] = 0
    return dataclasses.replace(preset, **given)


def largest_limit(config: SearchConfig) -> int | None:
    """Questions per subject that the search can ask for, None for all."""
    last = config.full_limit if config.final_limit == 0 else config.final_limit
    return None if last is None else last + config.holdout_limit


def check_model_flags(args: argparse.Namespace) -> None:
    """Refuse flags that say nothing beside --evaluator."""
    given = [name for name in _MODEL_FLAGS if getattr(args, name) is not None]
    if args.evaluator is not None and given:
        raise SearchError(f"{_flag(given[0])} has no effect beside --evaluator; leave one of the two out")


def read_single_scores(path: Path) -> dict[int, float]:
    """Accuracy by layer, from JSON or CSV; rows of a CSV with several layers are passed over.

    Raises:
        SearchError: naming the entry that cannot be.
    """
    text = _read(path)
    rows: list[tuple[str, Any]]
    if text.lstrip().startswith("{"):
        document = _json(path, text)
        rows = list(document.items()) if isinstance(document, dict) else []
    else:
        lines = list(csv.reader(io.StringIO(text)))
        if not lines or lines[0][:1] != ["layers"] or len(lines[0]) < 2:
            raise SearchError(f'{path} is neither JSON like {{"17": 0.51}} nor CSV with the header layers,mmlu_acc')
        rows = [(line[0], line[1] if len(line) > 1 else "") for line in lines[1:] if line]
    scores: dict[int, float] = {}
    for layer, value in rows:
        if "+" in layer or layer == "none":
            continue
        try:
            score = math.nan if isinstance(value, bool) else float(value)
            index = int(layer)
        except (TypeError, ValueError):
            score, index = math.nan, -1
        if index < 0 or not 0 <= score <= 1:
            raise SearchError(f"{path}: {layer}: {value!r} is not a layer with an accuracy between 0 and 1")
        if index in scores:
            raise SearchError(f"{path} gives layer {index} twice; keep one")
        scores[index] = score
    if not scores:
        raise SearchError(f"{path} holds no single-layer score; give one for each layer")
    return scores


def read_elite(path: Path) -> list[LayerSet]:
    """Layer sets, from a JSON list of lists or the result of an earlier search.

    Raises:
        SearchError: naming the entry that cannot be.
    """
    document = _json(path, _read(path))
    if isinstance(document, dict):
        results = document.get("final_results")
        if not isinstance(results, list):
            raise SearchError(f"{path} is no search result (it has no final_results) and no list of layer lists")
        document = [entry.get("layers") if isinstance(entry, dict) else entry for entry in results]
    if not isinstance(document, list) or not document:
        raise SearchError(f"{path} must hold a list of layer lists such as [[11, 13, 17], [13, 17]]")
    sets = []
    for entry in document:
        if not isinstance(entry, list):
            raise SearchError(f"{path}: {entry!r} is not a list of layers such as [11, 13, 17]")
        try:
            sets.append(LayerSet.from_indices(entry))
        except SearchError as error:
            raise SearchError(f"{path}: {error}") from error
    return list(dict.fromkeys(sets))


def check_scores(scores: Mapping[int, float], num_layers: int, path: Path) -> None:
    """Refuse scores of a layer that the model does not have, or none for one that it has."""
    outside = [i for i in scores if i >= num_layers]
    if outside:
        raise SearchError(
            f"{path} scores layer {outside[0]}, but the model's layers are 0 to {num_layers - 1}; give the "
            "file of this model"
        )
    lacking = [i for i in range(num_layers) if i not in scores]
    if lacking:
        raise SearchError(
            f"{path} lacks layer {lacking[0]}; give all {num_layers} layers, or leave the option out and "
            "they are measured"
        )


def resume_command(python: str, argv: Sequence[str], pair: str | None, folder: Path) -> list[str]:
    """The command that goes on with a run, whatever the environment and default folder then are."""
    command = [python, "-m", "genetic_algorithm.run_search", *argv]
    if pair is not None and not _names(argv, "--pair", "--base", "--donor"):
        command += ["--pair", pair]
    if not _names(argv, "--output-dir"):
        command += ["--output-dir", str(folder)]
    return command


def _names(argv: Sequence[str], *flags: str) -> bool:
    return any(word.partition("=")[0] in flags for word in argv)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _preset_table() -> str:
    presets = {name: make() for name, make in PRESETS.items()}
    lines = [f"{'presets:':<20}" + "".join(f"{name:>8}" for name in presets)]
    for name in (*_LIMIT_FLAGS, *_SEARCH_FLAGS):
        values = (getattr(config, name) for config in presets.values())
        told = "".join(f"{'none' if value is None else value:>8}" for value in values)
        lines.append(f"  {_flag(name):<18}{told}")
    return "\n".join(lines)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SearchError(f"{path} does not exist; check the path") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise SearchError(f"{path} is not a text file ({error})") from error


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SearchError(f"{path} is not JSON ({error})") from error
