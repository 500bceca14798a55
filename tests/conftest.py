"""What all tests share: one thread a process, because they are small and run side by side (pytest -n)."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("GA_LANGUAGE", None)  # which a script that runs the tests sets
os.environ["LC_ALL"] = "C.UTF-8"  # English messages, whoever runs the tests
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of the many processes compiles all that it imports
sys.dont_write_bytecode = False

with contextlib.suppress(ImportError):  # tests on a GPU do without
    from hypothesis import settings

    settings.register_profile("the same in every run", derandomize=True, deadline=None, database=None)
    settings.load_profile("the same in every run")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Importing all tests makes millions of objects that stay; looking among them for garbage takes seconds."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


long_one = pytest.mark.skipif(
    os.environ.get("GA_INTEGRATION") != "1", reason="takes long; set GA_INTEGRATION=1 for it (CONTRIBUTING.md)"
)
"""Of tests that the checks of every day leave out."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with published reference outputs, which is no part of the project."""
    folder = Path(os.environ.get("GA_SHARED", ROOT.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference outputs in {folder}; set GA_SHARED to the folder that holds reference/")
    return folder
