"""Numbers, layer sets and tables as a page shows them. Everything that came from outside is escaped here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from genetic_algorithm.intervals import Z95

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
"""Where there is no number, and before negative ones."""
CHOSE = "questions that chose"
"""Those of the search, as against the hold-out."""
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def cleaned(value: object) -> str:
    """Any text on one line, a question mark for what no page may hold."""
    return _UNPRINTABLE.sub("?", " ".join(str(value).split()))


def shortened(value: object, longest: int = 34) -> str:
    """Any text, cleaned, its end left out where it is long: what stands in a drawing."""
    text = cleaned(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def escaped(value: object) -> str:
    """Any text, cleaned, safe between tags and in a quoted attribute."""
    return html.escape(cleaned(value), quote=True)


def verbatim(value: str) -> str:
    """Any text with its white space as it is, safe within `<pre>`."""
    return html.escape(_UNPRINTABLE.sub("?", value))


def layers_of(indices: Iterable[int]) -> str:
    """`11+13+17`, or `none`."""
    return "+".join(str(int(i)) for i in indices) or "none"


def number(value: float | None, digits: int = 3) -> str:
    """`0.947`; a dash where there is none."""
    return NONE if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """`+0.012`."""
    return NONE if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """`0.947 ± 0.007`."""
    return number(value, digits) if value is None or error is None else f"{number(value, digits)} ± {error:.{digits}f}"


def sentence(text: str) -> str:
    """Text that begins with a capital, escaped."""
    return escaped(text[:1].upper() + text[1:])


def count(value: float) -> str:
    """`14,042`."""
    return f"{value:,.0f}"


def plural(value: float, noun: str, several: str = "") -> str:
    """`1 layer`, `2,304 layers`, `0.5 hours`; `several` where the plural is not made by an s at the end."""
    shown = count(value) if float(value).is_integer() else f"{value:,g}"
    return f"{shown} {noun if value == 1 else several or f'{noun}s'}"


def p_value(value: float) -> str:
    """`< 0.001`, `0.04`, as HTML."""
    return "&lt; 0.001" if value < 0.001 else f"{value:.2g}"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    words: Sequence[int] = (0,),
    is_wide: bool = False,
) -> str:
    """A table in a box of its own that scrolls where the page is narrow.

    Args:
        head: of the columns, HTML.
        rows: cells, HTML.
        caption: HTML.
        words: columns that hold words; the others are numbers, set flush right.
        is_wide: whether cells may be long, and are broken.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        return "".join(f"<{tag}{scope}{'' if i in words else ' class=n'}>{cell}</{tag}>" for i, cell in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    told = f"<caption>{caption}</caption>" if caption else ""
    heads = f"<thead><tr>{cells('th', head)}</tr></thead>"
    opened = f'<div class="scroll" tabindex="0"><table{" class=wide" if is_wide else ""}>'
    return f"{opened}{told}{heads}\n<tbody>{body}</tbody></table></div>\n"


@dataclass(frozen=True, slots=True)
class Measure:
    """What the search is for, as a page names it.

    `sign` is -1 for divergences: these are shown as they are, the lower the better, while the search maximises their
    negative.
    """

    label: str
    short: str
    sign: int

    @classmethod
    def of(cls, goal: str, is_weighted: bool) -> Measure:
        """Of a search's goal, and of whether its questions have different weights."""
        if goal == "kl":
            return cls("divergence, nats (lower is better)", "divergence from the donor", -1)
        return cls("weighted accuracy", "weighted accuracy", 1) if is_weighted else cls("accuracy", "accuracy", 1)

    def chosen(self, entry: dict[str, Any]) -> tuple[float, float]:
        """Value and standard error of a result's entry on the questions that chose, as shown."""
        if "value" in entry:
            return self.sign * entry["value"], entry["value_error"]
        return entry["accuracy"], entry["standard_error"]

    def part(self, entry: dict[str, Any], name: str) -> tuple[float, float] | None:
        """The same on a part that has a prefix in the result: `holdout` or `full`; None where it was not asked."""
        if f"{name}_value" in entry:
            low, high = entry[f"{name}_value_interval"]
            return self.sign * entry[f"{name}_value"], (high - low) / 2 / Z95
        if entry.get(f"{name}_accuracy") is None:
            return None
        return entry[f"{name}_accuracy"], entry[f"{name}_standard_error"]
