"""The zoo: pairs of a base (Llamba) and the donor (Llama) whose layers are put in. Loads no torch."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from models.errors import ModelError

TINY_DIR = Path(__file__).resolve().parent / "tiny_pair"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A base and its donor, which share one tokenizer, and the questions they are judged on."""

    name: str
    """What `--pair` takes."""
    base: str
    """A local folder; for a hub model its id on the first source of `base_ids`."""
    donor: str
    """A local folder; for a hub model its id on the first source of `donor_ids`."""
    base_ids: tuple[tuple[str, str], ...] = ()
    """(source, id) in the order to try, source `huggingface` or `modelscope`; empty for a local folder."""
    donor_ids: tuple[tuple[str, str], ...] = ()
    """As `base_ids`."""
    tasks: tuple[str, ...] = ("mmlu",)
    """Names of lm-eval tasks or groups asked where none are named."""
    task_dir: Path | None = None
    """Folder with the files of those tasks; None for tasks that come with lm-eval."""
    description: str = ""
    """One line for a list."""

    @property
    def is_local(self) -> bool:
        """Whether both models are folders on this machine, so that no network is needed."""
        return not self.base_ids and not self.donor_ids


_PAIRS = (
    Pair(
        name="tiny",
        base=str(TINY_DIR / "base"),
        donor=str(TINY_DIR / "donor"),
        tasks=("tiny",),
        task_dir=TINY_DIR / "tasks",
        description="bundled, trained for this project; needs neither GPU nor network",
    ),
    Pair(
        name="llamba-8b",
        base="goombalab/Llamba-8B-untied-unaligned",
        donor="LLM-Research/Meta-Llama-3.1-8B-Instruct",
        base_ids=(("huggingface", "goombalab/Llamba-8B-untied-unaligned"),),
        donor_ids=(
            ("modelscope", "LLM-Research/Meta-Llama-3.1-8B-Instruct"),
            ("huggingface", "meta-llama/Llama-3.1-8B-Instruct"),
        ),
        description="Llamba-8B (untied, unaligned) and Llama-3.1-8B-Instruct; a GPU of 18 GB or more",
    ),
)

PAIRS: dict[str, Pair] = {pair.name: pair for pair in _PAIRS}
"""The known pairs by name."""


def get_pair(name: str) -> Pair:
    """The pair of that name; `BASE_FOLDER:DONOR_FOLDER` names two local folders instead.

    Raises:
        ModelError: Nothing is known by that name, or a folder does not exist.
    """
    if pair := PAIRS.get(name):
        return pair
    base, separator, donor = name.partition(os.pathsep)
    if separator:
        return local_pair(base, donor)
    near = difflib.get_close_matches(name, PAIRS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join(PAIRS)
    folders = f"BASE_FOLDER{os.pathsep}DONOR_FOLDER"
    raise ModelError(f"no pair is called {name!r}; {hint}known: {known}, or {folders}")


def local_pair(base: str | Path, donor: str | Path, *, tasks: tuple[str, ...] = ("mmlu",)) -> Pair:
    """A pair of two folders on this machine.

    Raises:
        ModelError: One of them is not a folder.
    """
    folders = []
    for role, folder in (("base", base), ("donor", donor)):
        if not Path(folder).is_dir():
            raise ModelError(f"the {role}'s folder {str(folder)!r} does not exist; give one with a config.json")
        folders.append(str(Path(folder).resolve()))
    return Pair(
        name=os.pathsep.join(folders),
        base=folders[0],
        donor=folders[1],
        tasks=tasks,
        description="local folders",
    )
