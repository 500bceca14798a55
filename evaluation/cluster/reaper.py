"""Ends what a process started when that process ends, however it does: Ray's daemons outlive a killed driver.

    python -m evaluation.cluster.reaper MARK FOLDER

Every process started under a driver has GA_CLUSTER=MARK in its environment. This one waits until its standard input is
closed, which the system does for a driver that was killed, then kills all others that have it, and removes FOLDER.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

MARK = "GA_CLUSTER"
GRACE_S = 0.5


def start(mark: str, folder: Path) -> subprocess.Popen[bytes]:
    """Watch over this process from now on; closing the standard input of what is returned ends the watch, too."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), mark, str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the driver
        cwd="/",
    )


def marked(mark: str) -> Iterator[int]:
    """Processes of this user that have the mark."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
            except OSError:  # gone, or another user's
                continue


def reap(mark: str, folder: Path) -> None:
    """Kill every marked process, then remove the folder."""
    for _ in range(20):
        left = list(marked(mark))
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not left:
            break
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Wait, then clean up."""
    parser = argparse.ArgumentParser(prog="reaper", description="Ends what a killed driver left; started by drivers.")
    parser.add_argument("mark", help="value of GA_CLUSTER in the environment of what is to end")
    parser.add_argument("folder", type=Path, help="removed in the end")
    args = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    time.sleep(GRACE_S)
    reap(args.mark, args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
