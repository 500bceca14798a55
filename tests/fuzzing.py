"""Damage for files that are read, made by hypothesis from a file that is whole; the same in every run.

For longer, and with other damage each time:

    GA_FUZZ_EXAMPLES=5000 python -m pytest tests/evaluation/test_fuzzed_files.py
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, example, settings
from hypothesis import strategies as st

T = TypeVar("T")
Damage = bytes | None
"""What a file holds; None where a folder lies in its place."""

_EXAMPLES = os.environ.get("GA_FUZZ_EXAMPLES")


def fuzz(examples: int) -> settings:
    """So many examples of a test, or as many as GA_FUZZ_EXAMPLES says, and then not the same each time."""
    return settings(
        max_examples=int(_EXAMPLES or examples),
        derandomize=_EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def always(*contents: Damage) -> Callable[[T], T]:
    """Damage that once was not told apart, tried first in every run."""

    def decorate(test: Any) -> Any:
        for content in contents:
            test = example(content=content)(test)
        return test

    return decorate


NESTED = b"[" * 5000 + b"]" * 5000
"""JSON, but deeper than Python reads."""
_DEEP, _LONG = "@deep@", "@long@"
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, -(10**30), 10**400),
    *(0.5, -0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", "none", "1+2", "0-9", "0-99999999999999", "a\0b", "\ud800", "two\nlines", "../x", "/", "9" * 5000),
    *([], [0], [0.5, "x"], [[0]], {}, {"": None}, {"x": {"y": []}}, _DEEP, _LONG),
)
_TAGS = ("", "", "", "!!int", "!!float", "!!bool", "!!timestamp", "!!binary", "!!set", "!!python/name:os.system", "!x")
_ODD_TEXTS = (
    *('""', "~", "x", "0", "1e999", "2026-13-45", "~no-such-user/x", "x" * 300, '"a\\0b"', "/"),
    *("[]", "[[x]]", "{}", "{a: b}", "{[a]: b}", "&a [*a]", "*a", "9" * 5000),
)
_ODD_FILES: tuple[Damage, ...] = (
    *(None, b"", b"\n", b"\0", b"\0" * 4096, b"\xff\xfe\x00", b"PK\x03\x04", b"null", b"[]", b"{}", b"0", b'"x"'),
    *(b"NaN", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, NESTED, b"{}\n{}\n", b"1e999"),
)


def damaged(whole: bytes) -> st.SearchStrategy[Damage]:
    """What a disk, a network, an editor or a slip of the hand makes of a file."""
    places = st.integers(0, max(0, len(whole) - 1))
    extra = st.sampled_from((b"\0", b"\n", b"\xff", b'"', b"}", b",", b"-", b"9" * 400, b" " * 4096))
    made: list[st.SearchStrategy[Damage]] = [
        places.map(lambda at: whole[:at]),
        st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=4).map(
            lambda all_: _flipped(whole, all_)
        ),
        st.tuples(places, extra).map(lambda put: whole[: put[0]] + put[1] + whole[put[0] :]),
        st.tuples(places, places).map(lambda two: whole[: min(two)] + whole[max(two) :]),
        places.map(lambda at: whole[:at] + b"\0" * (len(whole) - at)),
        places.map(lambda at: whole + whole[at:]),
        st.sampled_from(_ODD_FILES),
    ]
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        return st.one_of(made)
    encodings = ("utf-16", "utf-8-sig", "utf-32-be")
    return st.one_of([*made, st.sampled_from(encodings).map(lambda encoding: text.encode(encoding))])


def damaged_json(document: Any) -> st.SearchStrategy[Damage]:
    """As `damaged`, and besides that documents that are JSON, in which values are not what they should be."""
    altered = st.one_of(altered_json(document), altered_json(document))  # twice as often as any other
    return st.one_of(altered.map(spelled), altered.map(spelled), damaged(json.dumps(document, indent=2).encode()))


@st.composite
def altered_json(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with one to three values replaced, taken out or doubled, or keys added."""
    made = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(made))
        if not places:
            return draw(st.sampled_from(_ODD_VALUES))
        inside, key = draw(st.sampled_from(places))
        value = copy.deepcopy(draw(st.sampled_from(_ODD_VALUES)))
        match draw(st.sampled_from(("replace", "replace", "replace", "remove", "add"))):
            case "replace":
                inside[key] = value
            case "remove":
                del inside[key]
            case _ if isinstance(inside, list):
                inside.insert(key, value)
            case _:
                inside[draw(st.sampled_from(("", "x", "journal", "\0", "two\nlines")))] = value
    return made


@st.composite
def altered_yaml(draw: st.DrawFn, whole: str) -> bytes:
    """YAML of one `key: value` a line, of which one or two values have another tag, or are something else."""
    lines = whole.splitlines()
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.sampled_from([i for i, line in enumerate(lines) if ": " in line]))
        key, _, value = lines[at].partition(": ")
        tag, value = draw(st.sampled_from(_TAGS)), draw(st.sampled_from((value, *_ODD_TEXTS)))
        lines[at] = f"{key}: {tag} {value}"
    return "\n".join(lines).encode()


def damaged_safetensors(whole: bytes) -> st.SearchStrategy[Damage]:
    """A safetensors file, cut or with bytes changed anywhere, most often in its header."""
    (length,) = struct.unpack("<Q", whole[:8])
    header, values = whole[8 : 8 + length], whole[8 + length :]

    def with_header(made: bytes) -> bytes:
        return struct.pack("<Q", len(made)) + made + values

    lengths = st.sampled_from([0, 1, 7, length - 1, length + 1, len(whole), 2**31, 2**63, 2**64 - 1])
    head = damaged(whole[: 8 + length]).map(lambda start: None if start is None else start + values)
    other = altered_json(json.loads(header)).map(lambda made: with_header(spelled(made)))
    return st.one_of(damaged(whole), head, other, other, lengths.map(lambda n: struct.pack("<Q", n) + whole[8:]))


def spelled(document: Any) -> bytes:
    """As JSON, in which some values are nested, or have digits, beyond what readers take."""
    text = json.dumps(document)
    return text.replace(f'"{_DEEP}"', NESTED.decode()).replace(f'"{_LONG}"', "9" * 5000).encode()


def put(path: Path, content: Damage) -> None:
    """Write what `damaged` made in place of what was there."""
    if path.is_dir():
        shutil.rmtree(path)
    if content is None:
        path.unlink(missing_ok=True)
        path.mkdir()
    else:
        path.write_bytes(content)


class Refused(str):
    """The line with which a file was refused."""


def read(reader: Callable[[], T], path: Path, *errors: type[Exception], nameless: tuple[str, ...] = ()) -> T | Refused:
    """What `reader` makes of the file at `path`: a value, or one line that names the file or its folder.

    Lines that begin with one of `nameless` are about more than one file. Any other error is a fault of the project.
    """
    try:
        return reader()
    except errors as error:
        told = str(error)
    except OSError as error:  # the command line names these by themselves
        told = f"{error.filename}: {error.strerror}"
    assert "\n" not in told, told
    assert str(path) in told or str(path.parent) in told or told.startswith(nameless), told
    return Refused(told)


def _flipped(whole: bytes, changes: list[tuple[int, int]]) -> bytes:
    made = bytearray(whole)
    for at, change in changes:
        if made:
            made[at] ^= change
    return bytes(made)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each value within a document: what it is in, and where there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
