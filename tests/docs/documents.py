"""The documents of users, read as what they are made of: blocks, commands, code spans, headings, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.test_architecture import ROOT, tracked

WITH_COMMANDS = ("README.md", "SETUP.md", "MODEL_CHECKPOINTS_GUIDE.md", "DEPLOYMENT_READY.md")
ONE_PAGE = "CHECKPOINT_QUICKSTART.txt"
TRANSLATIONS = {
    "README.md": "README.zh-CN.md",
    "MODEL_CHECKPOINTS_GUIDE.md": "MODEL_CHECKPOINTS_GUIDE.zh-CN.md",
}
PAGES = tracked("*.md")
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    language: str
    text: str


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str | None = None) -> list[Block]:
    found = [Block(one[1], one[2]) for one in _FENCE.finditer(text)]
    return [one for one in found if language in (None, one.language)]


def prose(text: str) -> str:
    """A page without its blocks."""
    return _FENCE.sub("", text)


def code_spans(text: str) -> list[str]:
    """What stands in backticks; a span that was wrapped is one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def commands(script: str) -> list[str]:
    """Logical lines of shell, without comments."""
    joined = re.sub(r"\\\n\s*", " ", script)
    lines = (re.sub(r"(^|\s+)#( .*)?$", "", line) for line in joined.splitlines())
    return [line.rstrip() for line in lines if line.strip()]


def one_page_commands() -> list[str]:
    """Of the quickstart: indented lines below its top, less tables and what is typed at Python."""
    told = re.sub(r"\\\n\s*", " ", read(ONE_PAGE).partition("In the folder\n")[0])
    return [line.strip() for line in re.findall(r"^ {4}(?!>>> )(\S.*)$", told, re.MULTILINE)]


def one_page_python() -> str:
    return "\n".join(re.findall(r"^ {4}>>> (.*)$", read(ONE_PAGE), re.MULTILINE))


def anchors(text: str) -> set[str]:
    """Of each heading, as GitHub makes it: letters of any script, digits, hyphens and underscores stay."""
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        if count:
            seen[f"{slug}-{count}"] = 1
    return set(seen)


def links(text: str) -> Iterator[str]:
    """Targets of links and pictures."""
    without_code = re.sub(r"`[^`]*`", "", prose(text))
    yield from re.findall(r"\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?: \"[^\"]*\")?\)", without_code)


def page_of(target: str, page: Path) -> Path:
    """The file that a relative link on `page` names."""
    path = target.partition("#")[0]
    return page if not path else (page.parent / path).resolve()
