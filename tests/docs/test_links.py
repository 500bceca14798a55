"""Every link leads somewhere: to a file, to a heading of a page; others have the shape of an address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .documents import PAGES, ROOT, anchors, links, page_of


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    lost = []
    for target in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            is_there = re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/\S*)?|mailto:\S+@\S+", target) is not None
        else:
            there, anchor = page_of(target, page), target.partition("#")[2]
            is_there = there.exists() and there.is_relative_to(ROOT)
            if anchor:
                is_there = is_there and there.suffix == ".md" and anchor in anchors(there.read_text(encoding="utf-8"))
        if not is_there:
            lost.append(target)
    assert not lost


def test_anchors_are_those_that_github_makes() -> None:
    page = "# A `b` c!\n## 快速开始：十分钟\n## Twice\n## Twice\n### [Linked](x.md), and more\n## a_b -- c\n"
    page += "```\n# not one\n```\n"
    assert anchors(page) == {"a-b-c", "快速开始十分钟", "twice", "twice-1", "linked-and-more", "a_b----c"}


def test_links_in_code_are_none() -> None:
    page = 'see [a](b.md#c "title"), ![p](q_(r).png) and `[x](y)`\n```\n[no](link)\n```\n'
    assert list(links(page)) == ["b.md#c", "q_(r).png"]
