"""Make the bundled tiny pair again: its questions, its donor, its base.

    python -m models.tiny_pair questions              # seconds, any machine
    python -m models.tiny_pair donor --device cuda    # about 5 minutes on one H200
    python -m models.tiny_pair base --device cuda     # about 1 minute, needs the donor

    python -m models.tiny_pair all --size larger --output-dir DIR --minutes 3   # four times as wide

Questions come out the same on every machine. Weights do not, to the last bit: kernels differ between devices, so a
donor trained again is another donor of the same kind. `benchmarks/landscape.py` then scores every set of layers.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from models.tiny_pair.write import write_model, write_questions, write_text

HERE = Path(__file__).resolve().parent
DONOR_SHARE = 0.7  # of the time for both models


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.tiny_pair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=("questions", "donor", "base", "all"), help="what to make")
    parser.add_argument("--size", choices=("tiny", "larger"), default="tiny", help="of the models [%(default)s]")
    parser.add_argument("--output-dir", type=Path, help=f"folder of the pair [tiny: {HERE}]")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (hours) [%(default)s]")
    parser.add_argument("--donor-seed", type=int, default=0, help="weights and batches of the donor [%(default)s]")
    parser.add_argument("--steps", type=int, metavar="N", help="most steps of each model, for a trial")
    parser.add_argument("--minutes", type=float, metavar="M", help="most time for all that is asked, a share for each")
    parser.add_argument("--base-accuracy", type=float, metavar="F", help="stop distilling once the base is so good")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the part asked for; the last line printed is one JSON object."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out: Path = args.output_dir or HERE
    asked = {"device": args.device, "compile": not args.no_compile}
    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    made = {}
    if args.part in ("questions", "all"):
        write_questions(out / "tasks")
        made["questions"] = str(out / "tasks")
    if args.part in ("donor", "all"):
        from models.tiny_pair.train_donor import DONORS, train

        seconds = _left(deadline, DONOR_SHARE if args.part == "all" else 1.0)
        training = replace(DONORS[args.size], seed=args.donor_seed, **asked).within(args.steps, seconds)
        donor, record = train(training)
        write_model(donor, out / "donor")
        write_text(out / "donor" / "training.json", json.dumps(asdict(training) | record, indent=1) + "\n")
        made["donor"] = str(out / "donor")
    if args.part in ("base", "all"):
        from transformers import LlamaForCausalLM

        from models.tiny_pair.distill_base import DISTILLATIONS, distil

        distillation = replace(DISTILLATIONS[args.size], **asked).within(args.steps, _left(deadline))
        if args.base_accuracy is not None:
            distillation = replace(distillation, stop_at=args.base_accuracy)
        base, record = distil(LlamaForCausalLM.from_pretrained(out / "donor"), distillation)
        write_model(base, out / "base")
        write_text(out / "base" / "training.json", json.dumps(asdict(distillation) | record, indent=1) + "\n")
        made["base"] = str(out / "base")
    print(json.dumps(made))
    return 0


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.size != "tiny" and (args.output_dir is None or args.output_dir.resolve() == HERE):
        parser.error(f"the {args.size} pair must not replace the bundled one; give --output-dir a folder of its own")
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps {args.steps} trains nothing; give at least 1")
    if args.minutes is not None and not args.minutes > 0:
        parser.error(f"--minutes {args.minutes} is no time; give more than 0")


def _left(deadline: float | None, share: float = 1.0) -> float | None:
    """Seconds until the deadline, or a share of them; None for no end."""
    return None if deadline is None else max(1.0, share * (deadline - time.monotonic()))


if __name__ == "__main__":
    sys.exit(main())
