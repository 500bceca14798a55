"""The Chinese documents name what the English ones name: the same commands, flags, files and numbers of blocks."""

from __future__ import annotations

import re

import pytest

from .documents import TRANSLATIONS, blocks, code_spans, commands, links, read


def shell(name: str) -> list[list[str]]:
    return [commands(block.text) for block in blocks(read(name), "bash")]


def python(name: str) -> list[str]:
    return [re.sub(r"\s*#.*", "", block.text) for block in blocks(read(name), "python")]


def tree(text: str) -> list[str]:
    """First words of the lines of blocks without a language, that is of trees; what follows them is prose."""
    shown = [block.text for block in blocks(text) if block.language in ("", "text")]
    lines = [line for block in shown for line in block.splitlines() if line.strip() and not line.endswith((":", "："))]
    return [re.split(r" {2,}", line.strip())[0] for line in lines]


@pytest.mark.parametrize(("english", "chinese"), TRANSLATIONS.items())
def test_commands_and_snippets_are_the_same(english: str, chinese: str) -> None:
    assert shell(chinese) == shell(english)
    assert python(chinese) == python(english)
    assert tree(read(chinese)) == tree(read(english))


@pytest.mark.parametrize(("english", "chinese"), TRANSLATIONS.items())
def test_code_spans_are_the_same(english: str, chinese: str) -> None:
    there, here = set(code_spans(read(english))), set(code_spans(read(chinese)))
    assert (sorted(there - here), sorted(here - there)) == ([], [])


@pytest.mark.parametrize(("english", "chinese"), TRANSLATIONS.items())
def test_links_lead_to_the_same_places(english: str, chinese: str) -> None:
    back = {other: name for name, other in TRANSLATIONS.items()}

    def targets(name: str) -> set[str]:
        return {target.partition("#")[0] for target in links(read(name))} - {"", *TRANSLATIONS, *back}

    assert targets(chinese) == targets(english)


@pytest.mark.parametrize(("english", "chinese"), TRANSLATIONS.items())
def test_they_have_the_same_parts(english: str, chinese: str) -> None:
    def levels(name: str) -> list[int]:
        return [
            len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", read(name), flags=re.DOTALL), re.M)
        ]

    assert levels(chinese) == levels(english)


@pytest.mark.parametrize("chinese", TRANSLATIONS.values())
def test_they_are_chinese(chinese: str) -> None:
    text = re.sub(r"```.*?```|`[^`]*`|\([^)]*\)", "", read(chinese), flags=re.DOTALL)
    letters, signs = len(re.findall(r"[a-z]{3,}", text)), len(re.findall(r"[一-鿿]", text))
    assert signs > 3 * letters


@pytest.mark.parametrize("chinese", TRANSLATIONS.values())
def test_chinese_lines_are_not_wrapped(chinese: str) -> None:
    """Where a line ends within a paragraph, browsers show a space."""
    text = re.sub(r"^```.*?^```$", "", read(chinese), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"^[^#|\n].*\n[^-#|\d\s].*", text, re.MULTILINE)
