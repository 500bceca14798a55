"""Tests a checkpoint folder: does it load, run and generate, and with --full_eval, how well does it answer.

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
from model_preparation.checkpoint import load_model, read_info
from models.errors import ModelError
from models.pairs import Pair, get_pair

if TYPE_CHECKING:
    from model_preparation.scoring import Device
    from models.modeling_llamba import LlambaForCausalLM

PROMPT = "Hello world"
NEW_TOKENS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file. The last line printed is JSON."""
    arguments = _parse(argv)
    if not arguments.full_eval and (arguments.limit is not None or arguments.tasks or arguments.mmlu_dir):
        raise ModelError("--limit, --tasks and --mmlu-dir are about --full_eval; give that as well")
    from model_preparation.scoring import Device

    info = read_info(arguments.checkpoint)
    device = Device.choose(arguments.gpu)
    model, tokenizer = load_model(arguments.checkpoint, dtype=device.dtype, device=device.name)
    check_files_agree(arguments.checkpoint, model)
    report: dict[str, Any] = {
        "checkpoint": str(arguments.checkpoint),
        "layers": info.replaced_layers,
        "parameters": model.num_parameters(),
        "inference": try_inference(model, tokenizer),
    }
    if arguments.full_eval:
        report["evaluation"] = _evaluate(arguments, info.pair, model, tokenizer, device)
    print(json.dumps(report))
    return 0


def try_inference(model: LlambaForCausalLM, tokenizer: Any) -> dict[str, Any]:
    """Generate a little text.

    Raises:
        ModelError: the model gives numbers that are none.
    """
    import torch

    inputs = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        logits_BTV = model(**inputs).logits
        if not torch.isfinite(logits_BTV).all():
            raise ModelError("the model gives scores that are not numbers; make the checkpoint again")
        began = time.perf_counter()
        tokens_BT = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        seconds = time.perf_counter() - began
    new = tokens_BT.shape[1] - inputs["input_ids"].shape[1]
    text = tokenizer.decode(tokens_BT[0], skip_special_tokens=True)
    print(f"{PROMPT!r} continues: {text!r}", file=sys.stderr)
    return {"text": text, "new_tokens": new, "tokens_per_second": round(new / seconds, 1)}


def check_files_agree(folder: Path, model: LlambaForCausalLM) -> None:
    """Check that model.pt and model_state_dict.pt open and hold the model that the safetensors hold.

    Names, shapes and the first row of each tensor are compared; the files are mapped, not read whole.

    Raises:
        ModelError: a file is missing, damaged or another model.
    """
    from models.weights import WeightFile

    expected = model.state_dict()
    with WeightFile(folder / "model_state_dict.pt") as state:
        _compare(folder / "model_state_dict.pt", {name: state[name] for name in state.names}, expected)
    _compare(folder / "model.pt", _open_whole(folder / "model.pt").state_dict(), expected)


def _open_whole(path: Path) -> LlambaForCausalLM:
    import pickle
    import zipfile

    import torch

    from model_preparation.saved_model import rebuild

    if not path.is_file():
        raise ModelError(f"{path} is missing; make the checkpoint again")
    if not zipfile.is_zipfile(path):  # its table of contents is at the end
        raise ModelError(f"{path} is cut short; make the checkpoint again")
    try:
        with torch.serialization.safe_globals([rebuild]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{path} is damaged ({reason}); make the checkpoint again") from error


def _compare(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    import torch

    if lacking := sorted(expected.keys() ^ found.keys()):
        raise ModelError(f"{path} and the safetensors differ in {lacking[0]}; make the checkpoint again")
    for name, tensor in expected.items():
        other = found[name]
        same = other.shape == tensor.shape
        if not same or not torch.equal(other[:1].to(tensor.dtype), tensor[:1].cpu()):
            raise ModelError(f"{path} and the safetensors differ in {name}; make the checkpoint again")


def _evaluate(
    arguments: argparse.Namespace, pair_name: str, model: LlambaForCausalLM, tokenizer: Any, device: Device
) -> dict[str, Any]:
    from evaluation.config import EvalConfig
    from model_preparation.scoring import mmlu_folder, score_model, spell_score

    pair = _pair(pair_name, arguments)
    config = EvalConfig(
        pair=pair.name,
        tasks=tuple(arguments.tasks),
        mmlu_dir=mmlu_folder(arguments.mmlu_dir),
        device=device.name,
        dtype=device.dtype_name,
        batch_tokens=arguments.batch_tokens,
    )
    began = time.perf_counter()
    accuracy = score_model(model, tokenizer, config, arguments.limit)
    tasks = list(config.tasks) or (["mmlu"] if config.mmlu_dir else list(pair.tasks))
    limited = "" if arguments.limit is None else f", the first {arguments.limit} questions of each subject"
    print(f"{' '.join(tasks)}{limited}:", file=sys.stderr)
    for name, score in (*accuracy.subjects.items(), ("in all", accuracy.total)):
        print(
            f"  {name:40} {score.accuracy:.4f} +- {score.standard_error:.4f}  ({score.asked})",
            file=sys.stderr,
        )
    return {
        "tasks": tasks,
        "limit": arguments.limit,
        **spell_score(accuracy.total),
        "subjects": {name: spell_score(score) for name, score in accuracy.subjects.items()},
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
    parser = Parser(prog="test_checkpoint.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a checkpoint")
    add("--full_eval", "--full-eval", action="store_true", help="also answer questions")
    add("--limit", type=_positive, metavar="N", help="questions of each subject [all]")
    add("--tasks", nargs="+", default=[], metavar="TASK", help="lm-eval tasks or groups [those of its pair]")
    add("--mmlu-dir", "--mmlu_dir", type=Path, metavar="DIR", help="a local copy of cais/mmlu [the hub]")
    add("--gpu", default="auto", metavar="N|cpu|auto", help="device [auto: GPU 0 where there is one]")
    add("--batch-tokens", type=_positive, metavar="N", help="tokens per forward pass [by device]")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


if __name__ == "__main__":
    from evaluation.entry import run_tool

    raise SystemExit(run_tool("test_checkpoint.py", main))
