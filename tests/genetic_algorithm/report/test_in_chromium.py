"""The report in a real browser, where there is one: no complaint, all is drawn, nothing is wider than the screen.

A page of ours holds the report in frames of exactly the widths of a phone and a desk, looks at what was laid out, and
is printed with what it saw.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genetic_algorithm.report import compare
from tests.genetic_algorithm.report.runs import CONFIG, EVALUATOR, Deep, Told, WithDivergence

WIDTHS = (400, 1400)
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
LOOK = """
<script>
function look(frame) {
  const page = frame.contentDocument, top = page.documentElement, seen = {};
  seen.width = frame.contentWindow.innerWidth;
  seen.scroll_width = Math.max(top.scrollWidth, page.body.scrollWidth);
  const scrolls = element => element.closest(".scroll") !== null;
  seen.too_wide = [...page.body.querySelectorAll("*")].filter(element => !scrolls(element) &&
    element.getBoundingClientRect().right > seen.width + 1).map(element => element.outerHTML.slice(0, 120));
  seen.drawings = [...page.querySelectorAll("svg")].map(drawing => {
    const box = drawing.getBoundingClientRect();
    const outside = [...drawing.querySelectorAll("text")].filter(text => {
      const its = text.getBoundingClientRect();
      return its.left < box.left - 3 || its.right > box.right + 3 ||
        its.top < box.top - 3 || its.bottom > box.bottom + 3;
    }).map(text => text.textContent);
    const shapes = [...drawing.querySelectorAll("path, use, image")].filter(shape => {
      const its = shape.getBoundingClientRect();
      return its.width > 0 || its.height > 0;
    }).length;
    const letters = Math.min(...[...drawing.querySelectorAll("text")].map(text =>
      parseFloat(getComputedStyle(text).fontSize) * box.width / drawing.viewBox.baseVal.width));
    return {width: box.width, height: box.height, shapes: shapes, outside: outside, letters: letters};
  });
  seen.overprinted = [...page.querySelectorAll("th")].filter(head => head.scrollWidth > head.clientWidth + 1)
    .map(head => head.textContent);
  const last = page.querySelector("footer").getBoundingClientRect();
  seen.height = last.bottom - page.body.getBoundingClientRect().top;
  return seen;
}
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map(look);
  const told = document.createElement("pre");
  told.textContent = JSON.stringify(seen);
  document.body.append(told);
});
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)}); on Debian: apt-get install chromium")
    return found


def looked_at(browser: str, page: str, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What each frame shows of a page, and what the browser's console says."""
    (folder / "page.html").write_text(page)
    frames = "".join(f'<iframe src="page.html" style="width:{w}px; height:900px; border:0"></iframe>' for w in WIDTHS)
    (folder / "frames.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{LOOK}<body>{frames}")
    command = [browser, *QUIET, f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files"]
    command += ["--window-size=1900,1000", "--virtual-time-budget=10000", "--dump-dom", str(folder / "frames.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    told = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert told, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(told[1])), console


def assert_fits(seen: list[dict[str, Any]], drawings: int) -> None:
    assert [of["width"] for of in seen] == list(WIDTHS)
    for of in seen:
        assert of["scroll_width"] <= of["width"]
        assert of["too_wide"] == []
        assert of["overprinted"] == []
        assert len(of["drawings"]) == drawings
        for drawing in of["drawings"]:
            assert drawing["width"] > 300
            assert drawing["height"] > 60
            assert drawing["shapes"] > 10
            assert drawing["outside"] == []
            assert drawing["letters"] >= 7  # pixels of the smallest, on a phone
        assert of["height"] > 1000


PAGES = {
    "over": lambda: Told().finish().page(),
    "hostile names": lambda: (
        Told(names=("W" * 300, "</svg><script>console.error(1)</script>", "x y", r"$\alpha$"))
        .finish()
        .page(folder=Path("/" + "long/" * 80), command=["run_search", "x" * 400])
    ),
    "divergences of a deep model": lambda: (
        Told(replace(CONFIG, goal="kl", strategy="scan", max_layers=2), WithDivergence(0, per_subject=60))
        .finish()
        .page()
    ),
    "80 layers": lambda: Told(replace(CONFIG, max_passes=None, max_questions=25_000), Deep(80)).finish().page(),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_report_is_drawn_whole_on_a_phone_and_on_a_desk(name: str, browser: str, tmp_path: Path) -> None:
    seen, console = looked_at(browser, PAGES[name](), tmp_path)
    assert console == []
    assert_fits(seen, 6)


def test_an_unfinished_search_and_a_comparison_are_too(browser: str, tmp_path: Path) -> None:
    told = Told()
    for _ in range(3):
        told.step()
    (tmp_path / "unfinished").mkdir()
    seen, console = looked_at(browser, told.page(is_over=False), tmp_path / "unfinished")
    assert console == []
    assert_fits(seen, len(seen[0]["drawings"]))
    assert len(seen[0]["drawings"]) >= 4
    runs = []
    for seed, name in enumerate(("a" * 200, "deploy_20261128_044800", "c", "d")):
        differing = {"evaluator": EVALUATOR, "search": vars(replace(CONFIG, seed=seed))}
        runs.append(told.documents(is_over=False, folder=Path(f"/runs/{name}"), run=differing))
    seen, console = looked_at(browser, compare.render(runs), tmp_path)
    assert console == []
    assert_fits(seen, 1)


def test_what_is_wrong_with_a_page_is_seen(browser: str, tmp_path: Path) -> None:
    page = Told().finish().page()
    wide = page.replace("<main>", '<main><div style="width: 1000px">wide</div><script>nothing()</script>')
    flat = re.sub(r"<svg ", '<svg style="height: 0" ', wide, count=1)
    seen, console = looked_at(browser, flat, tmp_path)
    assert len(console) == len(WIDTHS)
    assert "nothing is not defined" in console[0]
    assert seen[0]["scroll_width"] > 1000
    assert any("wide" in element for element in seen[0]["too_wide"])
    assert not seen[1]["too_wide"]
    assert seen[0]["drawings"][0]["height"] == 0
