"""What files written in the background change in the process: nothing that outlasts them."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from model_preparation.writers import reading_ahead, writing_beside

SPANS = {"reading_ahead": reading_ahead, "writing_beside": lambda: writing_beside("files")}


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Leave the garbage collector as it was."""
    was_enabled = gc.isenabled()
    yield
    (gc.enable if was_enabled else gc.disable)()


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("was_enabled", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_garbage_is_not_looked_for_in_what_is_imported_meanwhile(
    span: Callable[[], AbstractContextManager[object]], was_enabled: bool, fails: bool
) -> None:
    (gc.enable if was_enabled else gc.disable)()
    try:
        with span():
            assert not gc.isenabled()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert gc.isenabled() is was_enabled


def test_nor_in_all_of_it_at_the_end(tmp_path: Path) -> None:
    """Where the tool is run as a command; a caller of `main` keeps a collector that collects."""
    tool = "model_preparation.create_replaced_model_checkpoint"
    look = (
        "import atexit, gc, runpy, sys\n"
        "atexit.register(lambda: print('frozen:', gc.get_freeze_count() > 0))\n"  # runs last
        f"sys.argv = ['create', '--layers', '1', '--base', 'no', '--donor', 'no', '--output_dir', {str(tmp_path)!r}]\n"
    )
    command = look + f"runpy.run_module({tool!r}, run_name='__main__')"
    called = (
        look + f"from {tool} import main\nfrom evaluation.entry import run_tool\nsys.exit(run_tool('create', main))"
    )
    for code, frozen in ((command, True), (called, False)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert f"frozen: {frozen}" in done.stdout
