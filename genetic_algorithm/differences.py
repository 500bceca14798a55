"""Where two configurations differ, told so that a person finds the field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def differences(theirs: Any, ours: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, their value, our value) for each leaf of two JSON values that differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in dict.fromkeys((*theirs, *ours)):
            yield from differences(theirs.get(key), ours.get(key), f"{name}.{key}" if name else str(key))
    elif theirs != ours:
        yield name, theirs, ours


def told(name: str, theirs: Any, ours: Any) -> str:
    """`name was 1 and is now 2`, long values cut short."""
    return f"{' '.join(name.split())} was {_short(theirs)} and is now {_short(ours)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
