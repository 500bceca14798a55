"""Code of a user's own, named on the command line as MODULE:NAME."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from genetic_algorithm.errors import SearchError

_SPELLING = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_spec(text: str) -> bool:
    """Whether it is spelled as MODULE:NAME, such as my_package.my_module:make."""
    return _SPELLING.fullmatch(text) is not None


def imported(option: str, spec: str, what: str) -> Callable[..., Any]:
    """What MODULE:NAME names; the working folder is looked through first, as `python -m` does.

    Args:
        option: By which it was given, for errors.
        spec: MODULE:NAME.
        what: What the named thing is, for errors: `factory` or `class`.

    Raises:
        SearchError: There is nothing to call by that name, or importing its module fails.
    """
    if not is_spec(spec):
        raise SearchError(
            f"{option} {spec} is not MODULE:{what.upper()}, such as my_package.my_module:make; a file mine.py is mine"
        )
    module_name, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # also for an installed command
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if module_name.endswith(".py"):
            meant = f"{module_name.removesuffix('.py')}:{name}"
            raise SearchError(f"{option} {spec} names a file, not a module; did you mean {meant}?") from error
        if not f"{module_name}.".startswith(f"{error.name}."):  # something that the module itself imports
            raise SearchError(f"{option} {spec}: {_where(error)}; install it, or mend the import") from error
        raise SearchError(
            f"{option} {spec}: {error}; check the name, and that it can be imported from {os.getcwd()}"
        ) from error
    except Exception as error:
        raise SearchError(f"{option} {spec}: {_where(error)}; mend it, or see all with GA_DEBUG=1") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise SearchError(f"{option} {spec}: {module_name} has no {what} {name}; define it there, or name another")
    return found


def _where(error: Exception) -> str:
    """An error of somebody's module in one line, with the place."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if "importlib" not in frame.filename][-1]  # that import it, not that say so
    return f"{last.filename}, line {last.lineno}: {type(error).__name__}: {error}"
