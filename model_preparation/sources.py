"""Which pair a tool works on, and where its models lie.

Nothing is downloaded that is already here: each hub's own cache is asked first, without the network.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from evaluation.surroundings import interpreter
from model_preparation import hubs
from models.errors import ModelError
from models.pairs import PAIRS, Pair, Role, Source, default_pair, get_pair, named_pair

ROOT = Path(__file__).resolve().parents[1]
METADATA = "metadata.json"


def default_layers_dir() -> Path:
    """Where extracted layers lie unless a tool is told otherwise: in the clone, else in the working folder."""
    project = ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()
    return project / "extracted_llama_layers"


def add_pair_options(parser: argparse._ActionsContainer, *, otherwise: str | None = None) -> None:
    """Add --pair, --base and --donor; `otherwise` says what holds where neither they nor the environment do."""
    otherwise = otherwise or "that of the extracted layers, else by the GPU"
    model = "a folder, org/name, hf:org/name or ms:org/name, @revision after an id"
    add = parser.add_argument
    add(
        "--pair",
        metavar="NAME",
        help=f"base and donor: {', '.join(PAIRS)}, BASE:DONOR, or FILE.yaml [$PAIR, else {otherwise}]",
    )
    add("--base", metavar="MODEL", help=f"another base, or with --donor one without a pair: {model} [$BASE]")
    add("--donor", metavar="MODEL", help="another donor, named likewise [$DONOR]")


@dataclass(frozen=True, slots=True)
class Choice:
    """A pair and why it is that one."""

    pair: Pair
    reason: str


def asked_pair(pair: str | None = None, base: str | None = None, donor: str | None = None) -> Choice | None:
    """The pair that options name, else the environment ($PAIR, $BASE, $DONOR); None where neither does.

    Raises:
        ModelError: as `models.pairs.named_pair`.
    """
    named, where = _in_force(pair, base, donor)
    found = named_pair(*named.values())
    reason = " and ".join(name for name, value in named.items() if value) + where
    return None if found is None else Choice(found, reason)


def pair_or_tiny(arguments: argparse.Namespace) -> Pair:
    """The pair that options or environment name, else the bundled one, whatever the machine has."""
    asked = asked_pair(arguments.pair, arguments.base, arguments.donor)
    return asked.pair if asked else PAIRS["tiny"]


def lone_model(arguments: argparse.Namespace) -> tuple[Role, Source] | None:
    """For tools that one model is enough for: the base or donor that is named alone, if one is.

    Raises:
        ModelError: it is neither a folder nor a hub id.
    """
    pair, base, donor = _in_force(arguments.pair, arguments.base, arguments.donor)[0].values()
    if pair or bool(base) == bool(donor):
        return None
    return ("base", Source.parse(base)) if base else ("donor", Source.parse(donor or ""))


def _in_force(pair: str | None, base: str | None, donor: str | None) -> tuple[dict[str, str | None], str]:
    """The three options; where none is given the three variables. One place is never mixed with the other."""
    options = {"--pair": pair, "--base": base, "--donor": donor}
    variables = {name: os.environ.get(name) for name in ("PAIR", "BASE", "DONOR")}
    return (options, "") if any(options.values()) else (variables, " in the environment")


def choose_pair(
    pair: str | None = None, layers_dir: Path | None = None, *, base: str | None = None, donor: str | None = None
) -> Choice:
    """The pair to work on: the one asked for, else whose layers were extracted, else what suits the machine.

    Raises:
        ModelError: if there is no such pair.
    """
    if asked := asked_pair(pair, base, donor):
        return asked
    folder = layers_dir or default_layers_dir()
    if extracted := read_metadata(folder).get("pair"):
        try:
            return Choice(get_pair(str(extracted)), f"the layers in {folder}")
        except ModelError as error:
            raise ModelError(
                f"the layers in {folder} are of a pair that is not here: {error}; or name another --pair"
            ) from None
    return suitable_pair()


def suitable_pair() -> Choice:
    """The pair that suits the GPU of this machine."""
    pair = default_pair(_gpu_bytes())
    least = pair.default_from_gpu_bytes
    why = f"there is a GPU of {least / 1e9:.0f} GB or more" if least else "the bundled one"
    return Choice(pair, f"{why}; --pair NAME or PAIR chooses another")


def _gpu_bytes() -> int:
    """Memory of the largest GPU that torch can use; 0 where there is none."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return max((torch.cuda.get_device_properties(i).total_memory for i in range(count)), default=0)


def chosen_pair(arguments: argparse.Namespace, layers_dir: Path | None = None) -> Pair:
    """As `choose_pair`, of the options that `add_pair_options` added; announced on stderr."""
    return announce(choose_pair(arguments.pair, layers_dir, base=arguments.base, donor=arguments.donor))


def announce(choice: Choice) -> Pair:
    """Say on stderr which pair is used and why, unless it was just named, and return it."""
    if choice.reason != "--pair":
        print(f"pair {choice.pair.name} ({choice.reason})", file=sys.stderr)
    return choice.pair


def donor_source(model_name: str, arguments: argparse.Namespace) -> tuple[Pair | None, Source]:
    """The donor that `--model_name` means, and its pair where it is one of a pair's.

    Args:
        model_name: `llama` for the donor of the pair in use or the one that --donor names; a pair of the zoo; or
            a model, as `Source.parse` takes it.
        arguments: what `add_pair_options` added.

    Raises:
        ModelError: nothing is known by that name; or --pair, --base or --donor contradict it.
    """
    given = [f"--{name}" for name in ("pair", "base", "donor") if getattr(arguments, name)]
    if model_name == "llama":
        alone = lone_model(arguments)
        return (None, alone[1]) if alone and alone[0] == "donor" else _of_pair(chosen_pair(arguments))
    if given:
        raise ModelError(
            f"--model_name {model_name} names a donor already; leave out either it or {' and '.join(given)}"
        )
    if model_name in PAIRS:
        return _of_pair(PAIRS[model_name])
    try:
        return None, Source.parse(model_name)
    except ModelError as error:
        raise ModelError(f"--model_name {error}, llama for the pair's donor, or a pair ({', '.join(PAIRS)})") from None


def _of_pair(pair: Pair) -> tuple[Pair, Source]:
    return pair, pair.donor


def read_metadata(layers_dir: Path) -> dict[str, Any]:
    """What extract_layers.py wrote about a folder of layers; empty where there is nothing.

    Raises:
        ModelError: if it cannot be read.
    """
    path = layers_dir / METADATA
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); extract the layers again with --force") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} does not hold an object; extract the layers again with --force")
    if found and not _describes_layers(found):
        raise ModelError(f"{path} is not what extract_layers.py writes; extract the layers again with --force")
    return found


def _describes_layers(found: dict[str, Any]) -> bool:
    files = found.get("files")
    return (
        isinstance(found.get("source"), str)
        and isinstance(found.get("num_layers"), int)
        and isinstance(files, dict)
        and all(
            isinstance(one, dict) and isinstance(one.get("sha256"), str) and "bytes" in one for one in files.values()
        )
        and all(isinstance(found.get(name), str | None) for name in ("pair", "revision", "donor_fingerprint"))
    )


def locate(pair: Pair, role: Role, *, download: bool = True) -> Path:
    """The local folder of a pair's base or donor, downloaded first where it is not here.

    Args:
        pair: of the zoo, or of any two models.
        role: which of the two.
        download: whether the network may be used.

    Raises:
        ModelError: if it is nowhere; says what each hub answered and what to do.
    """
    return _locate(pair.source(role), f"the {role} of the pair {pair.name}", ["--pair", pair.name], download)


def locate_source(source: Source, what: str, *, download: bool = True) -> Path:
    """The local folder of one model, as `locate`; `what` says in errors which it is, such as "the donor"."""
    return _locate(source, what, ["--donor" if "donor" in what else "--base", source.spelling], download)


def _locate(source: Source, what: str, options: list[str], download: bool) -> Path:
    if source.folder is not None:
        if not Path(source.folder).is_dir():
            raise ModelError(f"{what} is not in {source.folder}; restore that folder")
        return Path(source.folder)
    for model in source.hubs:
        if found := hubs.cached(model):
            return found
    # What could have been meant as a folder, too: `parse` took it for an id because no such folder is here.
    mistyped = source.spelling.partition("@")[0] == source.hubs[0].id
    no_folder = f"there is no folder {source.hubs[0].id}, and "
    if not download:
        command = shlex.join(["-m", "model_preparation.modelscope_utils", *options])
        of_that_name = f": {no_folder}no download of that name" if mistyped else ""
        raise ModelError(f"{what} is not on this machine{of_that_name}; download it with: {interpreter()} {command}")
    answers = []
    for model in source.hubs:
        try:
            return hubs.download(model)
        except hubs.HubError as error:
            answers.append(str(error))
    said = "; ".join(answers)
    if mistyped:
        raise ModelError(f"{what} cannot be had: {no_folder}the hubs, asked for a model of that name, say: {said}")
    raise ModelError(f"{what} cannot be had: {said}; a folder that holds it does as well")


def source_name(pair: Pair, role: Role) -> str:
    """What a pair's base or donor is called elsewhere: a hub id, a bundled model, or else its folder."""
    return pair.source(role).name


def tool_version() -> str:
    """The version of this project, for what is written into files."""
    try:
        return metadata.version("ga-layer-search")
    except metadata.PackageNotFoundError:  # used from a clone that is not installed
        with (ROOT / "pyproject.toml").open("rb") as file:
            return str(tomllib.load(file)["project"]["version"])
