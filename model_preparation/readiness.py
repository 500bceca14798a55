"""What of a pair is on this machine, and whether the hubs answer that have the rest; downloads nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.surroundings import SPARE_BYTES, Finding, disks
from model_preparation.hubs import reach
from model_preparation.sources import locate
from models.errors import ModelError
from models.pairs import Pair, Role

_HUBS = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
ROLES: tuple[Role, ...] = ("base", "donor")


def look(pair: Pair, root: Path, mmlu_dir: Path | None = None) -> list[Finding]:
    """Models and questions of a pair, room for what is missing, and the hubs."""
    hubs = _hubs()
    answering = [one.name for one in hubs if one.found is not None]
    models = [_model(pair, role, answering) for role in ROLES]
    is_missing = any(one.found is None for one in models)
    is_cut_off = hubs[0].found is None
    room = _room(pair, root) if is_missing and pair.size_gb else []
    return [*models, _questions(pair, mmlu_dir, is_cut_off=is_cut_off), *room, *hubs]


def _model(pair: Pair, role: Role, answering: Sequence[str]) -> Finding:
    """One that is not here is needed beforehand where none of its hubs answers, of which a search would fetch it."""
    try:
        return Finding(role, f"{pair.source(role).name} in {locate(pair, role, download=False)}")
    except ModelError as error:
        brings = f"a search of the pair {pair.name}, whose {role} is {pair.source(role).name}"
        remedy = str(error).partition("; ")[2]
        is_needed = not any(_HUBS[model.hub] in answering for model in pair.source(role).hubs)
        return Finding(role, None, brings, remedy if is_needed else f"a search fetches it; or {remedy}", is_needed)


def _questions(pair: Pair, mmlu_dir: Path | None, *, is_cut_off: bool) -> Finding:
    if mmlu_dir is not None:
        return Finding("questions", f"MMLU in {mmlu_dir}")
    if pair.tasks != ("mmlu",):
        return Finding("questions", f"{', '.join(pair.tasks)}, bundled")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    datasets = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    for place in (datasets / "cais___mmlu", home / "hub" / "datasets--cais--mmlu"):
        if place.is_dir():
            return Finding("questions", f"MMLU in {place}")
    remedy = "a search fetches them from Hugging Face; without a network, give a copy of cais/mmlu with --mmlu-dir DIR"
    return Finding(
        "questions",
        None,
        f"a search of the pair {pair.name}, whose questions are those of MMLU",
        remedy,
        is_needed=is_cut_off,
    )


def _room(pair: Pair, root: Path) -> list[Finding]:
    """Whether the larger of the hubs' disks has room for a pair that is not here."""
    wanted = int((pair.size_gb or 0) * 1e9) + SPARE_BYTES
    places = [one for one in disks(root) if "cache" in one.name and "question" not in one.name and one.found]
    free = [float((one.found or "").split()[0]) * 1e9 for one in places]
    if free and max(free) >= wanted:
        return []
    remedy = "free some space, or name other folders with HF_HOME and MODELSCOPE_CACHE"
    return [Finding("room", None, f"{wanted / 1e9:.1f} GB for the download of {pair.name}", remedy, is_needed=True)]


def _hubs(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    from huggingface_hub import is_offline_mode

    places = reach.endpoints(environment)
    variables = {"Hugging Face": "HF_ENDPOINT", "ModelScope": "MODELSCOPE_ENDPOINT"}
    brings = "models that are not here yet"
    if is_offline_mode():
        return [Finding(name, None, brings, "not asked: unset HF_HUB_OFFLINE to ask it") for name in places]
    why = reach.ask(places)
    found = []
    for name, place in places.items():
        remedy = f"{reach.host(place)} cannot be reached ({why[name]}); check the network, or name a mirror with "
        answers = f"{reach.host(place)} answers"
        found.append(Finding(name, answers if why[name] is None else None, brings, remedy + variables[name]))
    return found
