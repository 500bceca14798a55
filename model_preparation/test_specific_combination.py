"""Scores one combination of layers beside the base, without making a checkpoint.

cd model_preparation && python test_specific_combination.py --layers 17 --gpu_id 0 --limit 10
python -m model_preparation.test_specific_combination --pair tiny --layers 2 9 --limit 250
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: the project is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.entry import Parser
from model_preparation.options import layer
from model_preparation.sources import add_pair_options, chosen_pair, locate


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file. The last line printed is JSON."""
    arguments = _parse(argv)
    from evaluation.accuracy import accuracy_report, evaluate_sets
    from evaluation.build import build_evaluator
    from evaluation.config import EvalConfig
    from genetic_algorithm import LayerSet
    from model_preparation.scoring import Device, mmlu_folder, spell_score
    from models.layer_files import check_layers
    from models.loading import read_llamba_config

    pair = chosen_pair(arguments)
    depth = read_llamba_config(locate(pair, "base")).n_layer
    combination, base = LayerSet(check_layers(arguments.layers, depth)), LayerSet(())
    device = Device.choose(arguments.gpu_id)
    config = EvalConfig(
        pair=pair.name,
        tasks=tuple(arguments.tasks),
        task_dir=arguments.task_dir,
        mmlu_dir=mmlu_folder(arguments.mmlu_dir),
        device=device.name,
        dtype=device.dtype_name,
    )
    engine = build_evaluator(config, max_limit=arguments.limit, locate=locate)
    accuracies = evaluate_sets(engine, [base, combination], arguments.limit)
    print(accuracy_report(accuracies), file=sys.stderr)
    totals = {str(layers): spell_score(accuracy.total) for layers, accuracy in accuracies.items()}
    gain = accuracies[combination].total.accuracy - accuracies[base].total.accuracy
    print(
        json.dumps(
            {
                "pair": pair.name,
                "layers": list(combination.indices),
                "limit": arguments.limit,
                "base": totals[str(base)],
                "combination": totals[str(combination)],
                "gain": round(gain, 6),
            }
        )
    )
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="test_specific_combination.py",
        description=(__doc__ or "").split("\n", 1)[0],
        examples=(
            "python model_preparation/test_specific_combination.py --layers 17 --gpu_id 0 --limit 10",
            "python -m model_preparation.test_specific_combination --pair tiny --layers 2 9 --limit 250",
        ),
    )
    add = parser.add_argument
    add("--layers", type=layer, nargs="+", required=True, metavar="I", help="layers that run the donor's block")
    add(
        "--gpu_id", "--gpu-id", "--gpu", default="auto", metavar="N|cpu|auto", help="device [auto: GPU 0, else the CPU]"
    )
    add("--limit", type=_limit, default=10, metavar="N|none", help="questions of each subject [%(default)s]")
    add_pair_options(parser)
    add("--tasks", nargs="+", default=[], metavar="TASK", help="lm-eval tasks or groups [the pair's]")
    add("--task-dir", "--task_dir", type=Path, metavar="DIR", help="folder of task files of your own")
    add("--mmlu-dir", "--mmlu_dir", type=Path, metavar="DIR", help="a local copy of cais/mmlu [the hub]")
    return parser.parse_args(argv)


def _limit(text: str) -> int | None:
    if text.lower() == "none":
        return None
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1; none asks all questions")
    return value


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("test_specific_combination.py", main)
