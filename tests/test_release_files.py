"""What is written for those who cite, follow or change the project agrees with the project."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    assert yaml.safe_load(text("CITATION.cff"))["version"] == version
    headings = re.findall(r"^## \[(.+?)\] - (\S+)", text("CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0][0] == version
    assert all(date == "Unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in headings)


def test_the_changelog_has_the_kinds_of_change_that_its_form_knows() -> None:
    kinds = re.findall(r"^### (.+)$", text("CHANGELOG.md"), flags=re.MULTILINE)
    assert kinds
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_has_what_its_schema_asks_for() -> None:
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == tomllib.loads(text("pyproject.toml"))["project"]["license"]
    assert all(citation[key] for key in ("message", "title", "authors"))


def test_the_authors_are_the_same_everywhere() -> None:
    project = [one["name"] for one in tomllib.loads(text("pyproject.toml"))["project"]["authors"]]
    cited = [
        one.get("name") or f"{one['given-names']} {one['family-names']}"
        for one in yaml.safe_load(text("CITATION.cff"))["authors"]
    ]
    assert project == cited
    assert f"Copyright (c) 2025 {' and '.join(project)}\n" in text("LICENSE")


def test_every_variable_that_tests_read_is_told() -> None:
    read = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"environ(?:\.get\(|\[)\"(GA_\w+)\"", path.read_text(encoding="utf-8"))
    }
    assert "GA_INTEGRATION" in read
    assert not {
        name for name in read if f"`{name}" not in text("CONTRIBUTING.md") and f"${name}" not in text("CONTRIBUTING.md")
    }


def test_every_file_with_tests_that_the_checks_leave_out_is_told() -> None:
    left_out = re.compile(r"import .*\blong_one\b|^GA_INTEGRATION=1 |environ\.get\(\"GA_INTEGRATION", re.MULTILINE)
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if left_out.search(path.read_text(encoding="utf-8"))
    }
    told = set(re.findall(r"`(tests/[^`]+\.py)`", text("CONTRIBUTING.md")))
    assert len(files) > 10
    assert not {file for file in files if not any(fnmatch(file, one) for one in told)}
    assert all(list(ROOT.glob(one)) for one in told)
