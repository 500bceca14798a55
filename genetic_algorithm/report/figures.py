"""Drawings as SVG that stands in a page: matplotlib's object interface, no global state, no fonts embedded.

Colours are drawn as fixed ones and then replaced by the page's variables, so that a dark page has light ink.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

from genetic_algorithm.report.words import escaped

INK, MUTED, GRID, PAPER, BLUE, RUST = "#1b1f24", "#59626d", "#d8dde3", "#fefefe", "#1f5f9e", "#a8480c"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", BLUE: "blue", RUST: "rust"}
WIDTH = 380.0
"""Of every figure, in units of which its text is 10 high. A phone shows one as about a pixel, a desk as 1.5."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a name may hold any sign
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "lines.linewidth": 1.4,
    "path.simplify": False,
    "hatch.linewidth": 0.6,
    "hatch.color": GRID,
}


def drawn(name: str, alt: str, height: float, draw: Callable[[Any], None]) -> str:
    """One figure as an `<svg>` element.

    Args:
        name: unique on the page; its ids begin with it.
        alt: what the drawing shows, in words and figures.
        height: in the units of `WIDTH`.
        draw: gets a matplotlib `Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its caches
    import matplotlib  # late: slow to import, and a page without drawings needs none
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's fonts have it, or the reader's
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        text = io.StringIO()  # not by savefig, which draws all of it once more to lay it out
        canvas.print_svg(text, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(text.getvalue(), name, alt)


def _inline(svg: str, name: str, alt: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{escaped(alt)}">', svg, count=1
    )
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    prefix = f"{name}-{hashlib.sha256(name.encode()).hexdigest()[:4]}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    svg = svg.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
