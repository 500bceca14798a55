"""One search holds a run folder, on disks of every kind; who comes second is told how to go on."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from genetic_algorithm import run_folder

RUN = {"search": 1}
_flock = fcntl.flock


def on_nfs(descriptor: Any, operation: int) -> None:
    """As flock of NFSv4, which locks for one alone only what is open for writing."""
    if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    _flock(descriptor, operation)


def without_locks(descriptor: Any, operation: int) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_on_nfs_a_second_search_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", on_nfs)
    with run_folder.opened(tmp_path / "run", RUN, {}):
        with pytest.raises(run_folder.SearchError, match="another search is running"):
            run_folder.peek(tmp_path / "run", RUN)
        with (
            pytest.raises(run_folder.SearchError, match="another search is running"),
            run_folder.opened(tmp_path / "run", RUN, {}),
        ):
            pass
    assert run_folder.peek(tmp_path / "run", RUN) is None
    assert not caplog.messages


def test_a_disk_without_locks_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks)
    for _ in range(2):  # a new run, and one that is taken up
        caplog.clear()
        with run_folder.opened(tmp_path / "run", RUN, {}):
            assert run_folder.peek(tmp_path / "run", RUN) is None
        assert caplog.messages == [
            f"the disk of {tmp_path}/run has no locks: see to it that no second search runs there"
        ]


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_what_cannot_be_written_can_be_looked_at(reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan (--dry-run) of a run on a volume that is read-only."""
    with run_folder.opened(tmp_path / "run", RUN, {}):
        pass
    usual = Path.open

    def read_only(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        if set(mode) & set("+wa"):
            raise OSError(reason, os.strerror(reason), str(path))
        return usual(path, mode, *more, **named)

    monkeypatch.setattr(Path, "open", read_only)
    assert run_folder.peek(tmp_path / "run", RUN) is None


@pytest.mark.parametrize(
    ("announced", "told"),
    [
        ({"loopback": False}, "wait for it, help it with --join, or choose"),
        ({"loopback": True}, "stop it and start it with --listen and --gpus or --cpu-workers so that --join can"),
        ([], "stop it and start it with --listen"),
        (None, "stop it and start it with --listen"),
    ],
)
def test_help_is_advised_where_the_run_can_be_joined(announced: Any, told: str, tmp_path: Path) -> None:
    with run_folder.opened(tmp_path / "run", RUN, {}) as opened:
        if announced is not None:
            opened.paths.cluster.write_text(json.dumps(announced))
        with pytest.raises(run_folder.SearchError) as refused:
            run_folder.peek(tmp_path / "run", RUN)
    assert told in str(refused.value)
