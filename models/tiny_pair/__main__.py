"""Make the bundled tiny pair again: its questions, its donor, its base.

    python -m models.tiny_pair questions              # seconds, any machine
    python -m models.tiny_pair donor --device cuda    # about 5 minutes on one H200
    python -m models.tiny_pair base --device cuda     # about 1 minute, needs the donor

Questions come out the same on every machine. Weights do not, to the last bit: kernels differ between devices, so a
donor trained again is another donor of the same kind. `benchmarks/landscape.py` then scores every set of layers.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from models.tiny_pair.write import write_model, write_questions, write_text

HERE = Path(__file__).resolve().parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.tiny_pair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=("questions", "donor", "base", "all"), help="what to make")
    parser.add_argument("--output-dir", type=Path, default=HERE, help="folder of the pair [%(default)s]")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (hours) [%(default)s]")
    parser.add_argument("--donor-seed", type=int, default=0, help="weights and batches of the donor [%(default)s]")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the part asked for; the last line printed is one JSON object."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out: Path = args.output_dir
    made = {}
    if args.part in ("questions", "all"):
        write_questions(out / "tasks")
        made["questions"] = str(out / "tasks")
    if args.part in ("donor", "all"):
        from models.tiny_pair.train_donor import DonorTraining, train

        training = DonorTraining(seed=args.donor_seed, device=args.device, compile=not args.no_compile)
        donor, record = train(training)
        write_model(donor, out / "donor")
        write_text(out / "donor" / "training.json", json.dumps(asdict(training) | record, indent=1) + "\n")
        made["donor"] = str(out / "donor")
    if args.part in ("base", "all"):
        from transformers import LlamaForCausalLM

        from models.tiny_pair.distill_base import Distillation, distil

        distillation = Distillation(device=args.device, compile=not args.no_compile)
        base, record = distil(LlamaForCausalLM.from_pretrained(out / "donor"), distillation)
        write_model(base, out / "base")
        write_text(out / "base" / "training.json", json.dumps(asdict(distillation) | record, indent=1) + "\n")
        made["base"] = str(out / "base")
    print(json.dumps(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
