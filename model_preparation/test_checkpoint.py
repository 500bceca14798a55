"""Tests a checkpoint folder: is it whole, does it run, how fast, and with --full_eval, how well does it answer.

cd model_preparation && python test_checkpoint.py --checkpoint ../model_checkpoints/best_4layer
python -m model_preparation.test_checkpoint --checkpoint model_checkpoints/best_4layer --full_eval --limit 100
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: the project is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.entry import Parser
from model_preparation.checkpoints.info import read_info
from model_preparation.options import add_device_options, positive
from model_preparation.sources import default_layers_dir
from models.errors import ModelError
from models.pairs import PAIRS, Pair, get_pair

if TYPE_CHECKING:
    from models.modeling_llamba import LlambaForCausalLM

_EXAMPLES = """\
examples:
  python test_checkpoint.py --checkpoint ../model_checkpoints/best_4layer
  python test_checkpoint.py --checkpoint ../model_checkpoints/best_4layer --verify --gpu cpu --dtype bfloat16
  python test_checkpoint.py --checkpoint ../model_checkpoints/best_4layer --full_eval --limit 100
"""
PROMPT = "Hello world"
NEW_TOKENS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file. The last line printed is JSON."""
    arguments = _parse(argv)
    named = ("limit", "tasks", "task_dir", "mmlu_dir", "output_path")
    if not arguments.full_eval and any(getattr(arguments, name) for name in named):
        told = "--limit, --tasks, --task-dir, --mmlu-dir and --output_path"
        raise ModelError(f"{told} are about --full_eval; give that as well")
    from model_preparation.checkpoints.verification import check_agree, check_numbers, check_there, verify
    from model_preparation.device import Device, load_on
    from model_preparation.speed import measure

    folder = arguments.checkpoint
    info = read_info(folder)
    check_there(folder, info)
    files = verify(folder, info) if arguments.verify else 0
    device = Device.choose(arguments.gpu, arguments.dtype)
    model, tokenizer = load_on(device, folder, info)
    check_numbers(model)
    check_agree(folder, info, model)
    told = f"; {files} files are what was written" if files else ""
    print(f"{folder}: {', '.join(info.formats)}{told}; on {device}", file=sys.stderr)
    report: dict[str, Any] = {
        "checkpoint": str(folder),
        "layers": info.replaced_layers,
        "parameters": model.num_parameters(),
        "formats": info.formats,
        "verified_files": files,
        "device": device.name,
        "dtype": device.dtype_name,
        "inference": try_inference(model, tokenizer, PAIRS.get(info.pair)),
    }
    speed = measure(model, compiled=arguments.compile and model.device.type == "cuda")
    print(speed.table(device.name), file=sys.stderr)
    report["speed"] = speed.as_json()
    if arguments.full_eval:
        report["evaluation"] = _evaluate(arguments, info.pair, model, tokenizer)
    print(json.dumps(report))
    return 0


def try_inference(model: LlambaForCausalLM, tokenizer: Any, pair: Pair | None = None) -> dict[str, Any]:
    """Generate a little text, and show it.

    Args:
        model: the hybrid.
        tokenizer: its tokenizer.
        pair: the one of the zoo that it was made of, if it was of one.

    Raises:
        ModelError: the model gives numbers that are none.
    """
    import torch

    from model_preparation.talking import Sampling, generate

    context_1T = tokenizer(PROMPT, return_tensors="pt")["input_ids"].to(model.device)
    with torch.inference_mode():
        if not torch.isfinite(model(context_1T).logits).all():
            raise ModelError("the model gives scores that are not numbers; make the checkpoint again")
        settings = Sampling(max_new_tokens=NEW_TOKENS).settings(model.generation_config)
        tokens_1T = generate(model, context_1T, settings)
    new = tokens_1T.shape[1] - context_1T.shape[1]
    text = tokenizer.decode(tokens_1T[0], skip_special_tokens=True)
    language = f" ({pair.name} speaks {pair.language})" if pair and pair.language else ""
    print(f"{PROMPT!r} continues: {text!r}{language}", file=sys.stderr)
    return {"text": text, "new_tokens": new}


def _evaluate(
    arguments: argparse.Namespace, pair_name: str, model: LlambaForCausalLM, tokenizer: Any
) -> dict[str, Any]:
    from evaluation.config import EvalConfig
    from model_preparation.scoring import mmlu_folder, score_model, spell_score

    pair = _pair(pair_name, arguments)
    config = EvalConfig(
        pair=pair.name,
        tasks=tuple(arguments.tasks),
        task_dir=arguments.task_dir,
        mmlu_dir=mmlu_folder(arguments.mmlu_dir),
        batch_tokens=arguments.batch_tokens,
    )
    began = time.perf_counter()
    output = arguments.output_path or default_layers_dir().with_name("results") / "lm_eval"
    name = arguments.checkpoint.resolve().name
    run = score_model(model, tokenizer, config, arguments.limit, name=name, output=output)
    tasks = list(config.tasks) or (["mmlu"] if config.mmlu_dir else list(pair.tasks))
    limited = "" if arguments.limit is None else f", the first {arguments.limit} questions of each subject"
    print(f"{' '.join(tasks)}{limited}:", file=sys.stderr)
    for subject, score in (*run.subjects.items(), ("in all", run.total)):
        print(
            f"  {subject:40} {score.accuracy:.4f} +- {score.standard_error:.4f}  ({score.asked})",
            file=sys.stderr,
        )
    print(f"each answer, as lm-eval writes it: {run.folder}", file=sys.stderr)
    return {
        "tasks": tasks,
        "limit": arguments.limit,
        **spell_score(run.total),
        "subjects": {subject: spell_score(score) for subject, score in run.subjects.items()},
        "files": str(run.folder),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _pair(name: str, arguments: argparse.Namespace) -> Pair:
    """The pair the checkpoint is of; where that was of local folders now gone, tasks must be named."""
    try:
        return get_pair(name)
    except ModelError:
        if not arguments.tasks and not arguments.mmlu_dir:
            raise
        return get_pair("tiny")  # lends nothing but its folder of tasks


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="test_checkpoint.py",
        description=(__doc__ or "").split("\n", 1)[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a checkpoint")
    add("--verify", action="store_true", help="read every file and compare it with its checksum (minutes at 8B)")
    add("--no-compile", "--no_compile", dest="compile", action="store_false", help="decode uncompiled (saves a minute)")
    add("--full_eval", "--full-eval", action="store_true", help="also answer questions")
    add("--limit", type=positive, metavar="N", help="questions of each subject [all]")
    add("--tasks", nargs="+", default=[], metavar="TASK", help="lm-eval tasks or groups [those of its pair]")
    add("--task-dir", "--task_dir", type=Path, metavar="DIR", help="folder of task files of your own")
    add("--mmlu-dir", "--mmlu_dir", type=Path, metavar="DIR", help="a local copy of cais/mmlu [the hub]")
    add("--output_path", "--output-path", type=Path, metavar="DIR", help="lm-eval's files go there [results/lm_eval]")
    add_device_options(parser)
    add("--batch-tokens", "--batch_tokens", type=positive, metavar="N", help="tokens per forward pass [by device]")
    return parser.parse_args(argv)


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("test_checkpoint.py", main)
