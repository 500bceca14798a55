"""Every direct dependency has its row in CONTRIBUTING.md, and every row has its dependency."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def normalised(requirement: str) -> str:
    """The name in a requirement, as indices compare names: https://peps.python.org/pep-0503/."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def in_requirements() -> Iterator[str]:
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith(("#", "-")):
                yield normalised(line)


def in_pyproject() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        yield from map(normalised, requirements)


def rows() -> list[list[str]]:
    """Cells of the tables under "Dependencies", their heads left out."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    (table,) = [part for part in section if part.startswith("Dependencies\n")]
    lines = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| package ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_each_dependency_has_one_row_and_each_row_a_dependency() -> None:
    named = [normalised(row[0]) for row in rows()]
    assert len(named) == len(set(named))
    assert set(named) == {*in_requirements(), *in_pyproject()}


def test_each_row_says_what_for_under_which_licence_and_what_without() -> None:
    assert rows()
    assert not [row[0] for row in rows() if len(row) != 4 or not all(row)]


def test_what_is_pinned_is_within_what_the_project_asks_for() -> None:
    """requirements.txt and pyproject.toml name the same packages, but for what builds the project."""
    pinned = {normalised(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert pinned - {"setuptools"} == set(map(normalised, project["dependencies"]))
