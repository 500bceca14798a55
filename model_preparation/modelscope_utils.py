"""Gets models: from this machine where they are, else from ModelScope or Hugging Face.

from modelscope_utils import get_model_modelscope
model, tokenizer, config, folder = get_model_modelscope("unaligned_llamba")

python -m model_preparation.modelscope_utils --pair llamba-8b      downloads a pair and says where it lies
python -m model_preparation.modelscope_utils --list                tells which pairs there are
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run, or imported, as a file: the project is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.entry import Parser
from model_preparation.sources import (
    add_pair_options,
    announce,
    choose_pair,
    chosen_pair,
    locate,
    locate_source,
    lone_model,
)
from models.errors import ModelError
from models.pairs import PAIRS, Pair, Role, Source
from models.tokenizer import load_tokenizer, tokenizer_folders

if TYPE_CHECKING:
    import torch

ROLES: dict[str, Role] = {
    "unaligned_llamba": "base",
    "llamba": "base",
    "base": "base",
    "llama": "donor",
    "donor": "donor",
}
"""Names of a model of the pair in use."""
BOTH: tuple[Role, ...] = ("base", "donor")


def get_model_modelscope(
    name: str,
    *,
    layers: Sequence[int] = (),
    pair: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Any, Any, Any, str]:
    """A model, ready to run.

    A base takes on the layers of a state dict by itself when it loads one, such as `model_state_dict.pt`.

    Args:
        name: `unaligned_llamba` or `llama`, for base or donor of the pair in use (`pair`, else $PAIR, else
            that of the extracted layers, else the bundled one); or a pair's name, for its base; or a folder or
            hub id.
        layers: Layers of the donor to put into the base.
        pair: For the two names above.
        dtype: Weights are cast to it; None for that of the files.
        device: Where the weights go.

    Returns:
        Model, tokenizer, configuration, and the folder the model was read from.

    Raises:
        ModelError: nothing is known by that name, or it cannot be had.
    """
    from model_preparation.checkpoints.info import stored_dtype
    from model_preparation.saved_model import follow_layers
    from models.hybrid import load_hybrid
    from models.loading import load_base

    role, found = _which(name, pair)
    if role == "donor" and layers:
        raise ModelError("layers are put into a base, not into a donor; ask for unaligned_llamba")
    if isinstance(found, Source):
        chosen, folder = None, locate_source(found, f"the model {found.name}")
    else:
        chosen, folder = found, locate(found, role)
    dtype = dtype or stored_dtype(folder)
    if role == "donor" or _model_type(folder) == "llama":
        from transformers import LlamaForCausalLM

        model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
        return model, load_tokenizer(folder), model.config, str(folder)
    if layers:
        if chosen is None:
            raise ModelError("layers need a donor: give the name of a pair, or BASE:DONOR as pair")
        model = load_hybrid(folder, layers, locate(chosen, "donor"), dtype=dtype, device=device)
    else:
        model = load_base(folder, dtype=dtype, device=device)
    has_tokenizer = any(True for _ in tokenizer_folders(folder))
    others = [locate(chosen, "donor", download=False)] if chosen and not has_tokenizer else []
    return follow_layers(model, _llama_blocks(chosen)), load_tokenizer(folder, *others), model.config, str(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Download a pair, or the one model that is named, and print where it is, as JSON."""
    parser = Parser(
        prog="modelscope_utils.py",
        description="Download a pair or one model; say where it lies.",
        examples=(
            "python -m model_preparation.modelscope_utils --list",
            "python -m model_preparation.modelscope_utils --pair llamba-8b",
            "python -m model_preparation.modelscope_utils --pair tiny --offline",
        ),
    )
    add_pair_options(parser)
    parser.add_argument("--offline", action="store_true", help="only look; download nothing")
    parser.add_argument("--list", action="store_true", help="only tell which pairs there are")
    arguments = parser.parse_args(argv)
    if arguments.list:
        print(zoo_table())
        print(json.dumps({"pairs": list(PAIRS)}))
        return 0
    download = not arguments.offline
    if alone := lone_model(arguments):
        role, source = alone
        folder = locate_source(source, f"the {role} {source.name}", download=download)
        print(json.dumps({"pair": None, role: str(folder)}))
        return 0
    pair = chosen_pair(arguments)
    folders = {role: str(locate(pair, role, download=download)) for role in BOTH}
    print(json.dumps({"pair": pair.name} | folders))
    return 0


def zoo_table() -> str:
    """The known pairs: name, base, donor, licence of a hybrid, weights of both in GB."""
    rows = [("name", "base", "donor", "licence", "size")]
    for pair in PAIRS.values():
        size = "unknown" if pair.size_gb is None else f"{pair.size_gb:g} GB"
        rows.append((pair.name, pair.base.name, pair.donor.name, pair.license or "unknown", size))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _which(name: str, pair: str | None) -> tuple[Role, Pair | Source]:
    """Base or donor of which pair; or a model by itself, which may turn out to be either."""
    if role := ROLES.get(name):
        return role, announce(choose_pair(pair))
    if name in PAIRS:
        return "base", PAIRS[name]
    try:
        return "base", Source.parse(name)
    except ModelError as error:
        known = f"known are {', '.join(ROLES)} and the pairs {', '.join(PAIRS)}"
        raise ModelError(f"no model is called {name!r}; {known}; as a model of your own, {error}") from None


def _llama_blocks(pair: Pair | None) -> dict[str, Any] | None:
    """The shape of a pair's Llama blocks, for state dicts that do not tell; None where its donor is not here."""
    from models.configuration_llamba import attention_fields
    from models.loading import read_llama_config

    try:
        return attention_fields(read_llama_config(locate(pair, "donor", download=False))) if pair else None
    except ModelError:  # what needs it will say so
        return None


def _model_type(folder: Path) -> str:
    from models.weights import read_json

    return str(read_json(folder / "config.json").get("model_type", ""))


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("modelscope_utils.py", main)
