"""The zoo: pairs of a base (Llamba) and the donor (Llama) whose layers are put in. Loads no torch."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.errors import ModelError

TINY_DIR = Path(__file__).resolve().parent / "tiny_pair"
BUNDLED_TASKS = TINY_DIR / "tasks"
"""lm-eval task files that come with the project."""

Role = Literal["base", "donor"]
_HUB_ID = re.compile(r"(?:(hf|ms):)?(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model on a hub."""

    hub: Literal["huggingface", "modelscope"]
    id: str
    """`org/name`."""
    revision: str | None = None
    """Branch, tag or commit; None for the hub's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one model can be had: a folder, or hubs in the order to try."""

    spelling: str
    """What `parse` reads as this very source, in any folder: `tiny/base`, a hub id, or an absolute path."""
    folder: str | None = None
    """Absolute path."""
    hubs: tuple[HubModel, ...] = ()

    @property
    def name(self) -> str:
        """What is written into files: the id on the first hub, a bundled model's `tiny/base`, or the folder.

        An id has its `@revision`, where one was asked for. It is taken for the same model on either hub.
        """
        if not self.hubs:
            return self.spelling
        first = self.hubs[0]
        return f"{first.id}@{first.revision}" if first.revision else first.id

    @property
    def hub_id(self) -> str | None:
        """The id by which hubs know it: that on Hugging Face where it has one; None for a folder."""
        ids = {model.hub: model.id for model in reversed(self.hubs)}
        return ids.get("huggingface") or ids.get("modelscope")

    @classmethod
    def parse(cls, text: str) -> Source:
        """A source from a folder, `org/name` (Hugging Face, then ModelScope), `hf:org/name` or `ms:org/name`.

        Hub ids take `@revision`. `NAME/base` and `NAME/donor` are those of the pair NAME of the zoo.

        Raises:
            ModelError: It is none of these, or both the zoo's and a folder here.
        """
        path = Path(os.path.expanduser(text))
        name, _, role = text.partition("/")
        if role in ("base", "donor") and name in PAIRS:
            if os.path.exists(path):
                pair = f"the {role} of the pair {name}"
                raise ModelError(
                    f"{text!r} is {pair} and also a folder here; write ./{text}, or run elsewhere for {pair}"
                )
            return PAIRS[name].base if role == "base" else PAIRS[name].donor
        if text and os.path.isdir(path):  # False for what can be no path, too, as a name that is too long
            folder = str(path.resolve())
            return cls(spelling=folder, folder=folder)
        if text and os.path.isfile(path):
            raise ModelError(f"{text!r} is a file; give the folder it lies in")
        found = _HUB_ID.fullmatch(text)
        if found is None:
            forms = "a folder, org/name, hf:org/name or ms:org/name (with @revision if need be)"
            raise ModelError(f"{text!r} is neither a folder here nor a hub id; give {forms}")
        hub, model_id, revision = found.groups()
        huggingface = HubModel(hub="huggingface", id=model_id, revision=revision)
        modelscope = HubModel(hub="modelscope", id=model_id, revision=revision)
        hubs = {"hf": (huggingface,), "ms": (modelscope,)}.get(hub, (huggingface, modelscope))
        return cls(spelling=text, hubs=hubs)

    def is_same_model(self, other: Source) -> bool:
        """Whether both name the same folder, or the same id on a hub."""
        return self == other or bool({hub.id for hub in self.hubs} & {hub.id for hub in other.hubs})


@dataclass(frozen=True, slots=True, kw_only=True)
class BestSet:
    """A layer set known to be good."""

    layers: tuple[int, ...]
    score: float | None
    """MMLU accuracy, where one is known."""
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A base and its donor, which share one tokenizer, and all that tools know of the two."""

    name: str
    """What `--pair` takes: a name of the zoo, `BASE:DONOR`, or the absolute path of a pair file."""
    base: Source
    donor: Source
    tasks: tuple[str, ...] = ("mmlu",)
    """Names of lm-eval tasks or groups asked where none are named."""
    unseen_tasks: tuple[str, ...] = ()
    """Tasks like `tasks` on questions that a search with `tasks` does not meet; empty where there are none."""
    task_dir: Path | None = None
    """Folder with the files of those tasks; None for tasks that come with lm-eval."""
    description: str = ""
    """One line for a list."""
    license: str | None = None
    """Of a hybrid's weights, as hubs spell it; None where unknown."""
    language: str = ""
    """What its models speak, where that is none of people's."""
    preset: str = "quick"
    """Of the search, where none is asked for."""
    landscape: Path | None = None
    """File with the score of every layer set, where all were scored."""
    best_sets: tuple[BestSet, ...] = ()
    """Published sets, small ones first and of each size the best first; `known_best` also reads the landscape."""
    size_gb: float | None = None
    """Weights of base and donor in bfloat16, in 10**9 bytes."""
    default_from_gpu_bytes: int | None = None
    """GPU memory from which on this is the pair where none is named; None: only when it is named."""

    @property
    def is_local(self) -> bool:
        """Whether both models are folders on this machine, so that no network is needed."""
        return not self.base.hubs and not self.donor.hubs

    def source(self, role: Role) -> Source:
        """Of the base or the donor."""
        return self.base if role == "base" else self.donor

    def known_best(self) -> tuple[BestSet, ...]:
        """Layer sets known to be good, small ones first: of a landscape the best of each size, else published ones.

        The first of each size is the best one known.
        """
        if self.landscape is None:
            return self.best_sets
        landscape = json.loads(self.landscape.read_text(encoding="utf-8"))
        right = {_indices(name): count for name, count in landscape["sets"].items()}
        found = []
        for size in sorted({len(layers) for layers in right} - {0}):
            best = max((layers for layers in right if len(layers) == size), key=right.__getitem__)
            accuracy = right[best] / landscape["questions"]
            told = f"the best of all sets of {size}: {accuracy:.4f} on all search questions"
            found.append(BestSet(layers=best, score=None, description=told))  # the score would be one of MMLU
        return tuple(found)


def get_pair(name: str) -> Pair:
    """The pair of that name, which may be a YAML file (pair_file.py).

    `BASE:DONOR` names two models instead, each as `Source.parse` takes it.

    Raises:
        ModelError: Nothing is known by that name, a model is neither a folder nor a hub id, or the file is no pair's.
    """
    if pair := PAIRS.get(name):
        return pair
    if name.endswith((".yaml", ".yml")) and (":" not in name or os.path.isfile(name)):
        from models.pair_file import read_pair  # late: it needs this module, and YAML

        return read_pair(Path(os.path.expanduser(name)))
    # A colon also follows hf and ms, and may be part of a folder's name: the first place where both sides are models.
    places = [i for i, letter in enumerate(name) if letter == ":" and name[:i] not in ("hf", "ms")]
    errors = []
    for i in places:
        try:
            return make_pair(name[:i], name[i + 1 :])
        except ModelError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    near = difflib.get_close_matches(name, PAIRS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ModelError(f"no pair is called {name!r}; {hint}known: {', '.join(PAIRS)}, BASE:DONOR, or FILE.yaml")


def make_pair(base: str, donor: str) -> Pair:
    """A pair of two models, each as `Source.parse` takes it.

    What the zoo knows of a pair with the same base or donor (tasks, preset, licence) holds for this one, too.

    Raises:
        ModelError: One of them is neither a folder nor a hub id; says which.
    """
    return _pair_of(_parsed("base", base), _parsed("donor", donor))


def named_pair(pair: str | None, base: str | None, donor: str | None) -> Pair | None:
    """The pair that up to three names make: a pair's, and those of models that replace its base or donor.

    Returns:
        None where none of the three is given.

    Raises:
        ModelError: A model is missing, or the three leave nothing of the pair; or as `get_pair`.
    """
    if pair and base and donor:
        raise ModelError(f"the pair {pair} has no part beside another base and donor; leave one of the three out")
    if pair:
        known = get_pair(pair)
        return _pair_of(
            _parsed("base", base) if base else known.base, _parsed("donor", donor) if donor else known.donor, known
        )
    if base and donor:
        return make_pair(base, donor)
    if base or donor:
        given, missing = ("base", "donor") if base else ("donor", "base")
        raise ModelError(
            f"the {given} {base or donor} has no {missing}; give --{missing} MODEL, or --pair NAME for that pair's"
        )
    return None


def default_pair(gpu_bytes: int) -> Pair:
    """The pair for a machine whose largest GPU has that much memory; 0 for none."""
    fitting = [pair for pair in PAIRS.values() if _least_gpu(pair) <= gpu_bytes]
    return max(fitting, key=_least_gpu)


def _least_gpu(pair: Pair) -> float:
    return float("inf") if pair.default_from_gpu_bytes is None else pair.default_from_gpu_bytes


def _parsed(role: Role, text: str) -> Source:
    try:
        return Source.parse(text)
    except ModelError as error:
        raise ModelError(f"the {role} {error}") from None


def _pair_of(base: Source, donor: Source, *beside: Pair) -> Pair:
    known = (*beside, *PAIRS.values())
    for pair in known:
        if (pair.base, pair.donor) == (base, donor):
            return pair
    of_donor = next((pair for pair in known if donor.is_same_model(pair.donor)), None)
    of_base = next((pair for pair in known if base.is_same_model(pair.base)), None)
    facts = of_base or of_donor or Pair(name="", base=base, donor=donor)
    # Llama's licence binds whatever its layers are put into; of other models nothing is known.
    license_ = of_donor.license if of_donor and donor.hubs else None
    return Pair(
        name=f"{base.spelling}:{donor.spelling}",
        base=base,
        donor=donor,
        tasks=facts.tasks,
        unseen_tasks=facts.unseen_tasks,
        task_dir=facts.task_dir,
        description="models of your own",
        license=license_,
        preset=facts.preset,
    )


def _indices(layers: str) -> tuple[int, ...]:
    """A layer set from its spelling, such as 11+13; none is the empty one."""
    return () if layers == "none" else tuple(map(int, layers.split("+")))


def _zoo() -> tuple[Pair, ...]:
    def hub(hub: Literal["huggingface", "modelscope"], model_id: str) -> HubModel:
        return HubModel(hub=hub, id=model_id)

    def bundled(role: Role) -> Source:
        return Source(spelling=f"tiny/{role}", folder=str(TINY_DIR / role))

    def llamba(pair: str, model_id: str) -> Source:
        return Source(spelling=f"{pair}/base", hubs=(hub("huggingface", model_id),))

    def llama(pair: str, modelscope_id: str, gated_id: str) -> Source:
        return Source(spelling=f"{pair}/donor", hubs=(hub("modelscope", modelscope_id), hub("huggingface", gated_id)))

    llama_8b = llama("llamba-8b", "LLM-Research/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct")
    llama_3b = llama("llamba-3b", "LLM-Research/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-3B-Instruct")
    llama_1b = llama("llamba-1b", "LLM-Research/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct")
    limited = "published (MMLU, 50 questions per subject)"
    return (
        Pair(
            name="tiny",
            base=bundled("base"),
            donor=bundled("donor"),
            tasks=("tiny",),
            unseen_tasks=("tiny_heldout",),
            task_dir=BUNDLED_TASKS,
            description="bundled, trained for this project; needs neither GPU nor network",
            license="mit",
            language="an invented language",
            preset="tiny",
            landscape=TINY_DIR / "landscape.json",
            size_gb=0.01,
            default_from_gpu_bytes=0,
        ),
        Pair(
            name="llamba-8b",
            base=llamba("llamba-8b", "goombalab/Llamba-8B-untied-unaligned"),
            donor=llama_8b,
            description="Llamba-8B (untied, unaligned) and Llama-3.1-8B-Instruct; a GPU of 24 GB or more",
            license="llama3.1",
            best_sets=(
                BestSet(layers=(17,), score=0.514, description=f"the best of the 32 single layers {limited}"),
                BestSet(layers=(13, 17), score=0.554, description=f"the best of 145 sets of two layers {limited}"),
                BestSet(
                    layers=(11, 13, 17), score=0.589, description=f"the best of 140 sets of three layers {limited}"
                ),
                BestSet(layers=(13, 16, 17), score=0.566, description=f"another set of three layers {limited}"),
                BestSet(layers=(11, 13, 17, 29), score=0.5877, description=f"the best set of four layers {limited}"),
                BestSet(layers=(11, 13, 17, 21), score=0.57, description="another published set of four layers (MMLU)"),
                BestSet(layers=(10, 14, 17, 30), score=None, description="another published set of four layers"),
            ),
            size_gb=33.7,
            default_from_gpu_bytes=24_000_000_000,
        ),
        Pair(
            name="llamba-8b-aligned",
            base=llamba("llamba-8b-aligned", "cartesia-ai/Llamba-8B-untied"),
            donor=llama_8b,
            description="Llamba-8B (untied) after alignment, and Llama-3.1-8B-Instruct",
            license="llama3.1",
            size_gb=33.7,
        ),
        Pair(
            name="llamba-3b",
            base=llamba("llamba-3b", "cartesia-ai/Llamba-3B"),
            donor=llama_3b,
            description="Llamba-3B and Llama-3.2-3B-Instruct",
            license="llama3.2",
            size_gb=13.6,
        ),
        Pair(
            name="llamba-1b",
            base=llamba("llamba-1b", "cartesia-ai/Llamba-1B"),
            donor=llama_1b,
            description="Llamba-1B and Llama-3.2-1B-Instruct",
            license="llama3.2",
            size_gb=5.3,
        ),
    )


PAIRS: dict[str, Pair] = {pair.name: pair for pair in _zoo()}
"""The zoo: the known pairs by name."""
