"""The command line of the search: its flags, and the objects that they become."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genetic_algorithm import prior_knowledge
from genetic_algorithm.config import GOALS, PRESETS, SearchConfig, flag
from genetic_algorithm.errors import SearchError
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.observers import NEEDS
from genetic_algorithm.strategies import STRATEGIES, check_name

MODEL_FLAGS = (
    "pair",
    "base",
    "donor",
    "tasks",
    "task_dir",
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
    "fast_limit": "questions per subject in the first look (N or none)",
    "full_limit": "questions per subject by which sets are ranked (N or none)",
    "final_limit": "questions per subject to tell the last few leaders apart, for ga-original (N, none, or 0)",
}
_SHARES = {
    "holdout": ("F", "share of each subject's questions that only finalists see (0 to leave out)"),
    "growth": ("X", "how many times as many questions each rung of the ladder has"),
    "layer_cost": ("X", "accuracy that one more layer must bring to be worth it"),
    "max_failed": ("F", "stop when more than this share of the sets cannot be evaluated"),
}
_EXAMPLES = """\
examples:
  python -m genetic_algorithm.run_search                     the bundled tiny pair, on a CPU, in minutes
  python -m genetic_algorithm.run_search --pair llamba-8b --tasks mmlu --mmlu-dir mmlu --preset quick --gpu 0
  python -m genetic_algorithm.run_search --pair llamba-1b --base ./my_llamba     the pair's donor, another base
  python -m genetic_algorithm.run_search --dry-run           what it would cost; writes nothing
  python -m genetic_algorithm.run_search --max-passes 8 --max-hours 2       a budget: all questions 8 times, 2 hours
  python -m genetic_algorithm.run_search --window 8:23 --must-include 13,17 --forbid 9 --layer-cost 0.005
  python -m genetic_algorithm.run_search --strategy ga-original --holdout 0       as the original did
  python -m genetic_algorithm.run_search --output-dir results/mine       once more to resume
  python -m genetic_algorithm.run_search --pair llamba-8b --gpus 0,1,2,3       a worker on each GPU
  python -m genetic_algorithm.run_search --output-dir results/mine --join --gpus all       on another host: helps
  python -m genetic_algorithm.run_search --log-to tensorboard,wandb      curves as well, in the output folder
  python -m genetic_algorithm.run_search --evaluator my_package.my_module:make_evaluator
  python -m genetic_algorithm.run_search --strategy my_module:MyStrategy       the class MyStrategy in ./my_module.py
  python -m genetic_algorithm.run_search --preset full --seed 3 --print-config > mine.yaml       to keep, or to edit
  python -m genetic_algorithm.run_search --config mine.yaml --max-passes 4       that, with another budget
  python -m genetic_algorithm.run_search --config results/mine --output-dir results/again       that search once more

Settings: flags win over the environment (PAIR, BASE, DONOR; for the scripts, also config.sh), that over --config, that
over the preset, that over the defaults. Keys of a file are the flags' names, with _ or - between words; null is "not
given"; paths in it are as seen from the working folder. Every run keeps its complete settings in its config.json.

The last line on stdout is one JSON object: layers, accuracy, the result file. Everything else goes to
stderr and to the log in the output folder. Limits are per subject, "none" is all.
"""


def limit(text: str) -> int | None:
    """`none`, or a number of questions."""
    return _number_or_none(text, int)


def budget(text: str) -> float | None:
    """`none`, or a number."""
    return _number_or_none(text, float)


def layer_list(text: str) -> tuple[int, ...]:
    """`13,17`, or the same with spaces."""
    words = [word for word in re.split(r"[,\s]+", text) if word]
    if not words or not all(re.fullmatch(r"-?[0-9]+", word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} names no layers; give them like 13,17")
    return tuple(map(int, words))


def window(text: str) -> tuple[int, int]:
    """`8:23`: the first and the last layer."""
    if not (found := re.fullmatch(r"([0-9]+):([0-9]+)", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST, such as 8:23")
    return int(found[1]), int(found[2])


def observers(text: str) -> tuple[str, ...]:
    """`wandb,tensorboard`, or one of them."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or (unknown := [name for name in names if name not in NEEDS]):
        named = repr(unknown[0] if names else text)
        raise argparse.ArgumentTypeError(f"{named} is nothing to log to; known are {', '.join(NEEDS)}")
    return names


def elite(text: str) -> Path | tuple[LayerSet, ...]:
    """`11+13,17`: layer sets; anything else names a file of them."""
    names = [name.strip() for name in text.split(",")]
    if not all(re.fullmatch(r"none|[0-9+]+", name) for name in names):
        return Path(text)
    try:
        sets = (LayerSet.from_indices(() if name == "none" else map(int, name.split("+"))) for name in names)
        return tuple(dict.fromkeys(sets))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layer sets like 11+13,17 ({error})") from None


def single_scores(text: str) -> Path | dict[int, float]:
    """`0:0.31,1:0.42`: layers with their accuracies; anything else names a file of them."""
    pairs = [one.strip().partition(":") for one in text.split(",")]
    if not all(re.fullmatch(r"[0-9]+", layer.strip()) and colon for layer, colon, _ in pairs):
        return Path(text)
    try:
        return prior_knowledge.checked_scores([(layer, score) for layer, _, score in pairs], repr(text))
    except SearchError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def strategy(text: str) -> str:
    """A known strategy, or MODULE:CLASS, which is imported later."""
    try:
        return check_name(text)
    except SearchError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--strategy ")) from None


def _number_or_none(text: str, kind: Callable[[str], Any]) -> Any:
    if text.lower() == "none":
        return None
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None


def make_parser(
    add_pair_options: Callable[[argparse._ActionsContainer], None],
    parser_class: Callable[..., argparse.ArgumentParser] = argparse.ArgumentParser,
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
    models.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="lm-eval tasks or groups, TASK:WEIGHT in a mixture [the pair's own]"
    )
    text = "folder of task files of your own, in the form of lm-eval [the pair's and lm-eval's alone]"
    models.add_argument("--task-dir", type=Path, metavar="DIR", help=text)
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

    def add(*flags: str, **options: Any) -> None:  # what is not given stays out, so that the preset's value holds
        search.add_argument(*flags, default=argparse.SUPPRESS, **options)

    search.add_argument("--preset", choices=tuple(PRESETS), help="[the pair's: tiny for tiny, else quick]")
    text = f"how sets are proposed and raced: {', '.join(STRATEGIES)}, or a class of your own, MODULE:CLASS [ga]"
    add("--strategy", type=strategy, metavar="NAME", help=text)
    add("--goal", choices=GOALS, help="what is to be high; kl: closeness to the donor's answers [accuracy]")
    text = "question-evaluations that the search may ask for, hold-out included [the preset's passes]"
    add("--max-questions", type=limit, metavar="N", help=text)
    text = "the same in passes: all questions once (N or none; ga-original has none unless told)"
    add("--max-passes", "--max-full-mmlu", type=budget, metavar="X", help=text)
    text = "hours that answers may take, those of earlier sittings included [none]"
    add("--max-hours", type=budget, metavar="X", help=text)
    for name, text in _LIMIT_FLAGS.items():
        add(flag(name), type=limit, metavar="N", help=text)
    for name, (metavar, text) in _SHARES.items():
        add(flag(name), type=float, metavar=metavar, help=text)
    for name, text in _SEARCH_FLAGS.items():
        add(flag(name), type=int, metavar="N", help=text)
    add("--must-include", type=layer_list, nargs="+", metavar="I,J", help="layers that every set holds [none]")
    add("--forbid", type=layer_list, nargs="+", metavar="I,J", help="layers that no set holds [none]")
    add("--window", type=window, metavar="FIRST:LAST", help="layers from which sets are made [all]")
    search.add_argument(
        "--single-layer-scores",
        type=single_scores,
        metavar="FILE",
        help='accuracy of each layer alone: JSON {"17": 0.51, ...}, CSV layers,mmlu_acc, or 0:0.31,1:... [measured]',
    )
    search.add_argument(
        "--elite",
        type=elite,
        metavar="FILE",
        help="sets to begin with: JSON [[11, 13], ...], a search_result file, or 11+13,17 [the best single layers]",
    )
    text = "fine points of strategies, as genetic_algorithm/config.py tells each"
    fine = parser.add_argument_group(text)
    taken = {action.dest for action in parser._actions}
    for field in dataclasses.fields(SearchConfig):
        if field.name not in taken:
            told, kind = f"[{field.default}]", type(field.default)
            fine.add_argument(flag(field.name), type=kind, default=argparse.SUPPRESS, metavar="X", help=told)
    workers = parser.add_argument_group("several workers (they need Ray: pip install -r requirements-cluster.txt)")
    workers.add_argument("--gpus", metavar="I,J|all", help="a worker on each of these GPUs of this host")
    workers.add_argument("--cpu-workers", type=int, metavar="N", help="N workers, which share this host's cores")
    workers.add_argument("--ray-address", metavar="ADDR", help="workers of a Ray cluster that runs: HOST:PORT or auto")
    text = "address of this host at which other hosts may join [loopback only]"
    workers.add_argument("--listen", metavar="ADDR", help=text)
    text = "give this host's GPUs, or its --cpu-workers, to the run in --output-dir until it ends"
    workers.add_argument("--join", action="store_true", help=text)
    run = parser.add_argument_group("run")
    text = "settings in YAML, or the folder of a search whose settings to take; flags win over them"
    run.add_argument("--config", type=Path, metavar="FILE", help=text)
    text = "print the complete settings as YAML, from which --config makes the same search; do nothing else"
    run.add_argument("--print-config", action="store_true", help=text)
    run.add_argument("--output-dir", type=Path, metavar="DIR", help="new, or one to resume [results/real_<timestamp>]")
    text = "ask sets again that could not be evaluated in an earlier sitting"
    run.add_argument("--retry-failed", action="store_true", help=text)
    text = "also log to wandb, tensorboard or both, comma separated; wandb offline where it has no key [neither]"
    run.add_argument("--log-to", type=observers, default=(), metavar="NAME", help=text)
    run.add_argument("--dry-run", action="store_true", help="print the plan and its cost; write nothing")
    return parser


def search_config(args: argparse.Namespace, default_preset: str) -> SearchConfig:
    """The preset, `default_preset` where none is asked for, with the flags over it.

    A limit of the preset that contradicts one that was given gives way; two given ones that do are an error. So does
    the budget of the preset, for strategy `ga-original` always, which ends by itself.
    """
    chosen = args.preset or default_preset
    if chosen not in PRESETS:  # a pair's own, which a user may have written
        raise SearchError(f"the pair's preset {chosen} is none of {', '.join(PRESETS)}; mend it, or give --preset")
    preset = PRESETS[chosen]()
    names = [field.name for field in dataclasses.fields(SearchConfig)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    for name in ("must_include", "forbid"):
        if name in given:
            given[name] = tuple(sorted({layer for word in given[name] for layer in word}))
    if "max_passes" not in given and ("max_questions" in given or given.get("strategy") == "ga-original"):
        given["max_passes"] = None
    fast, full, final = (given.get(name, getattr(preset, name)) for name in _LIMIT_FLAGS)
    if full is not None and (fast is None or fast > full):
        if "fast_limit" not in given:
            given["fast_limit"] = full
        elif "full_limit" not in given:
            given["full_limit"] = full = fast
    if final and (full is None or final < full) and "final_limit" not in given:
        given["final_limit"] = 0
    return dataclasses.replace(preset, **given)


def check_model_flags(args: argparse.Namespace) -> None:
    """Refuse flags that say nothing beside --evaluator."""
    given = [name for name in MODEL_FLAGS if getattr(args, name) is not None]
    if args.evaluator is not None and given:
        raise SearchError(f"{flag(given[0])} has no effect beside --evaluator; leave one of the two out")


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


def _preset_table() -> str:
    presets = {name: make() for name, make in PRESETS.items()}
    lines = [f"{'presets:':<20}" + "".join(f"{name:>8}" for name in presets)]
    for name in (*_LIMIT_FLAGS, "holdout", "max_passes", *_SEARCH_FLAGS):
        values = (getattr(config, name) for config in presets.values())
        told = "".join(f"{'none' if value is None else f'{value:g}':>8}" for value in values)
        lines.append(f"  {flag(name):<18}{told}")
    return "\n".join(lines)
