"""Whether a search holds its folder, as far as that can be seen from here."""

from __future__ import annotations

import os
from pathlib import Path

_SHARED = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "afs",
    "9p",
    "virtiofs",
    "panfs",
    "wekafs",
}
_MOUNTS = Path("/proc/self/mountinfo")


def is_locked(path: Path) -> bool | None:
    """Whether a running search holds a file: asked for a moment only, and shared. None where that cannot be told.

    On file systems that several machines share, a lock may not be seen, nor be there at all.
    """
    try:
        import fcntl
    except ImportError:  # no locks on this system
        return None
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return None if _is_shared(path) else False


def _is_shared(path: Path) -> bool:
    """Whether other machines may write there."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return False
    real, longest, kind = os.path.realpath(path), "", ""
    for line in lines:  # "36 35 98:0 /root /mount/point options ... - type source options"
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if len(point) >= len(longest) and os.path.commonpath([real, point]) == point:
            longest, kind = point, after.split()[0]
    return kind in _SHARED or kind.startswith("fuse")
