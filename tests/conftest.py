"""What all tests share: one thread a process, because they are small and run side by side (pytest -n)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("GA_LANGUAGE", None)  # which a script that runs the tests sets

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with published reference outputs, which is no part of the project."""
    folder = Path(os.environ.get("GA_SHARED", ROOT.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference outputs in {folder}; set GA_SHARED to the folder that holds reference/")
    return folder
