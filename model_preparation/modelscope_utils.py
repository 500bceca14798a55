"""Gets models: from this machine where they are, else from ModelScope or Hugging Face.

from modelscope_utils import get_model_modelscope
model, tokenizer, config, folder = get_model_modelscope("unaligned_llamba")

python -m model_preparation.modelscope_utils --pair llamba-8b      downloads a pair and says where it lies
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
from model_preparation.sources import Role, announce, choose_pair, locate
from models.errors import ModelError
from models.pairs import PAIRS, Pair

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


def get_model_modelscope(
    name: str,
    *,
    layers: Sequence[int] = (),
    pair: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Any, Any, Any, str]:
    """A model, ready to run.

    A base takes on the layers of a `model_state_dict.pt` by itself when it loads that file.

    Args:
        name: `unaligned_llamba` or `llama`, for base or donor of the pair in use (`pair`, else $PAIR, else
            that of the extracted layers, else the bundled one); or a pair's name, for its base; or a folder.
        layers: Layers of the donor to put into the base.
        pair: For the two names above.
        dtype: Weights are cast to it; None for that of the files.
        device: Where the weights go.

    Returns:
        Model, tokenizer, configuration, and the folder the model was read from.

    Raises:
        ModelError: nothing is known by that name, or it cannot be had.
    """
    from model_preparation.checkpoint import load_tokenizer, stored_dtype
    from model_preparation.saved_model import follow_layers
    from models.hybrid import load_hybrid
    from models.loading import load_base

    role, chosen = _which(name, pair)
    folder = Path(name) if chosen is None else locate(chosen, role)
    if role == "donor" and layers:
        raise ModelError("layers are put into a base, not into a donor; ask for unaligned_llamba")
    dtype = dtype or stored_dtype(folder)
    if role == "donor" or _model_type(folder) == "llama":
        from transformers import LlamaForCausalLM

        model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
        return model, load_tokenizer(folder), model.config, str(folder)
    if layers:
        if chosen is None:
            raise ModelError("layers need a donor: give the name of a pair, or BASE_FOLDER:DONOR_FOLDER")
        model = load_hybrid(folder, layers, locate(chosen, "donor"), dtype=dtype, device=device)
    else:
        model = load_base(folder, dtype=dtype, device=device)
    others = [locate(chosen, "donor", download=False)] if chosen and not _has_tokenizer(folder) else []
    return follow_layers(model), load_tokenizer(folder, *others), model.config, str(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Download what a pair needs and print where it is, as JSON."""
    parser = Parser(prog="modelscope_utils.py", description="Download a pair; say where it lies.")
    parser.add_argument(
        "--pair",
        metavar="NAME",
        help=f"one of {', '.join(PAIRS)} [$PAIR, else that of the extracted layers, else by the GPU]",
    )
    parser.add_argument("--offline", action="store_true", help="only look; download nothing")
    arguments = parser.parse_args(argv)
    pair = announce(choose_pair(arguments.pair))
    folders = {role: str(locate(pair, role, download=not arguments.offline)) for role in ("base", "donor")}
    print(json.dumps({"pair": pair.name} | folders))
    return 0


def _which(name: str, pair: str | None) -> tuple[Role, Pair | None]:
    """Base or donor, and of which pair; no pair for a folder."""
    if role := ROLES.get(name):
        return role, announce(choose_pair(pair))
    if name in PAIRS:
        return "base", PAIRS[name]
    if Path(name).is_dir():
        return "base", None
    raise ModelError(
        f"no model is called {name!r}; known are {', '.join(ROLES)} and the pairs {', '.join(PAIRS)}; or give a folder"
    )


def _model_type(folder: Path) -> str:
    from models.weights import read_json

    return str(read_json(folder / "config.json").get("model_type", ""))


def _has_tokenizer(folder: Path) -> bool:
    from model_preparation.sources import tokenizer_folders

    return any(True for _ in tokenizer_folders(folder))


if __name__ == "__main__":
    from evaluation.entry import run_tool

    raise SystemExit(run_tool("modelscope_utils.py", main))
