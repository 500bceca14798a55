"""How every command of the project ends: one clear line instead of a traceback, and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

_PACKAGES = {
    "datasets", "huggingface_hub", "lm_eval", "numpy", "safetensors", "scipy", "tokenizers", "torch", "tqdm",
    "transformers", "yaml",
}  # fmt: skip
"""Imported names of what requirements.txt lists and no tool goes without."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Parser(argparse.ArgumentParser):
    """Refuses arguments in one line, not below a screen of usage; its help ends with `examples`, which all run."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:
        if examples:
            options["epilog"] = "\n  ".join(("examples:", *examples))
            options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with exit code 2; of a flag that is unknown, also which is the nearest."""
        if unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            close = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            message += "".join(f"; the nearest is {name}" for name in close)
        self.exit(2, f"{self.prog}: error: {_one_line(message)}; --help lists the options\n")


def run_tool(name: str, main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run `main(argv)` and return the exit code.

    2: the user gave something that cannot be (a ModelError, SearchError or EvaluationError, or what argparse
    refuses); 1: the machine refused (OSError; a full disk is named as such), or this Python lacks a package that
    set-up installs; 130: interrupted. Each prints `name: error: <one line>` on stderr. A programming error keeps its
    traceback, and with GA_DEBUG=1 in the environment so does every error.
    """
    debug = os.environ.get("GA_DEBUG") == "1"
    try:
        return main(argv)
    except SystemExit as stop:  # argparse has printed its line
        if isinstance(stop.code, str):
            print(f"{name}: error: {_one_line(stop.code)}", file=sys.stderr)
            return 1
        return stop.code or 0
    except KeyboardInterrupt:
        if debug:
            raise
        told = in_language(
            "stopped; files that were complete are kept. Give the same command again to go on.",
            "已停止；已写完的文件都保留着。再次运行同一条命令即可继续。",
        )
        print(f"{name}: {told}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:  # before _user_errors, which would import the same
        package = (error.name or "").partition(".")[0]
        if debug or not _is_lacking(package):
            raise
        print(f"{name}: error: {_spell_lack(package)}", file=sys.stderr)
        return 1
    except _user_errors() as error:  # imported only now, so that Ctrl-C at the start finds its line, too
        if debug:
            raise
        print(f"{name}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        print(f"{name}: error: {describe_os_error(error)}", file=sys.stderr)
        return 1


def become_tool(name: str, main: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run `main` as this process, and end it with the exit code of `run_tool`.

    Who interrupts it does not wait for libraries to take themselves down: that takes seconds on a busy machine.
    """
    code = run_tool(name, main)
    if code in (130, 143):
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    gc.freeze()  # else Python ends by looking for garbage in all that was imported, for a second
    sys.exit(code)


def require_packages(name: str) -> None:
    """End with one line where this Python has none of the set-up's packages; for tools that import them at their top.

    Raises:
        SystemExit: it has not.
    """
    if _is_lacking("numpy"):
        print(f"{name}: error: {_spell_lack('numpy')}", file=sys.stderr)
        sys.exit(1)


def _is_lacking(package: str) -> bool:
    return package in _PACKAGES and find_spec(package) is None


def _spell_lack(package: str) -> str:
    from evaluation.surroundings import INSTALL

    return (
        f"{sys.executable} has no package {package}; activate the environment that set-up made "
        f"(source .venv/bin/activate, or: conda activate ga_layer_search), or make it: {INSTALL}"
    )


def last_line(english: str, chinese: str) -> None:
    """Say on stderr what comes next, where a script runs this; scripts/lib.sh chooses the language by the locale."""
    if os.environ.get("GA_LANGUAGE"):
        print(in_language(english, chinese), file=sys.stderr)


def in_language(english: str, chinese: str) -> str:
    """The one of two texts that the user reads: in the language of the script that runs this, else of the locale."""
    names = ("GA_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")  # as scripts/lib.sh reads them
    language = next(filter(None, map(os.environ.get, names)), "")
    return chinese if language.startswith("zh") else english


def _user_errors() -> tuple[type[Exception], ...]:
    from evaluation.errors import EvaluationError
    from genetic_algorithm.errors import SearchError
    from models.errors import ModelError

    return ModelError, SearchError, EvaluationError


def describe_os_error(error: OSError) -> str:
    """One line that names the file, what is wrong with it, and the next step."""
    if error.errno in _FULL:
        where = f" for {error.filename}" if error.filename else ""
        return (
            f"the disk is full{where} ({os.strerror(error.errno or 0)}); free some space or choose another "
            "folder, then give the same command again: finished work is kept"
        )
    if error.filename is None or error.strerror is None:
        return _one_line(error)
    return _one_line(f"{error.filename}: {error.strerror}; check that path and its permissions, or choose another")


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
