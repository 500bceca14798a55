"""The messages that the documents quote under what goes wrong are those that tools and scripts give."""

from __future__ import annotations

import re

import pytest

from tests.test_architecture import tracked

from .documents import read

THEIRS = {"Weights only load failed"}
"""Messages of libraries."""
SOURCE = " ".join(
    path.read_text(encoding="utf-8")
    for pattern in ("*.sh", "evaluation/*.py", "models/*.py", "model_preparation/*.py")
    for path in tracked(pattern)
)


def quoted(document: str, part: str) -> list[str]:
    """What stands in backticks in the first column of the table of a part, commands and files left out."""
    table = read(document).partition(f"## {part}\n")[2].partition("\n## ")[0]
    spans = [span for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for span in re.findall(r"`([^`]+)`", row)]
    return [span for span in spans if " " in span and not span.startswith(("import ", "test_"))]


@pytest.mark.parametrize(
    ("document", "part"), [("SETUP.md", "What goes wrong"), ("MODEL_CHECKPOINTS_GUIDE.md", "When something fails")]
)
def test_quoted_messages_are_real(document: str, part: str) -> None:
    messages = quoted(document, part)
    assert len(messages) > 2
    for message in set(messages) - THEIRS:
        pieces = re.split(r"\.\.\.|\S*\d\S*|\(pair tiny\)", message)
        fixed = max((piece.strip() for piece in pieces), key=len)
        assert len(fixed) > 10, message
        assert fixed in SOURCE, message
