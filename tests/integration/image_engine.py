"""Builds the image for real and runs it: with docker, or with podman where there is no docker engine."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "ga-layer-search:test"
BUILD_LIMIT_S, RUN_LIMIT_S = 3600, 1200


@dataclass(frozen=True)
class Engine:
    """A program that takes docker's commands.

    `base` is the image that ours was built on; `options` are those that `run` needs on this machine.
    """

    program: tuple[str, ...]
    options: tuple[str, ...]
    base: str

    def call(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """One command of the engine, whatever its exit code."""
        return subprocess.run(
            [*self.program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`run` without a network; it ends with the container."""
        return self.call("run", "--rm", "--network", "none", *self.options, *arguments, timeout=RUN_LIMIT_S)

    def start(self, name: str, *arguments: str) -> None:
        """`run` in the background, under a name."""
        done = self.call("run", "--detach", "--network", "none", "--name", name, *self.options, *arguments)
        assert done.returncode == 0, done.stderr

    def bytes_of(self, image: str) -> int:
        """Size of an image with all its layers, as they lie on disk."""
        return int(self.call("image", "inspect", "--format", "{{.Size}}", image).stdout)


def built_image() -> Engine:
    """Build the CPU image as it is in this folder, and return what runs it; skip where nothing can."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        engine = Engine(("docker",), (), "debian:12-slim")
        arguments = ["--build-arg", f"BASE_IMAGE={engine.base}", "--build-arg", "TORCH_VARIANT=cpu"]
        _build(["docker", "build", "-f", "docker/Dockerfile", *arguments, "-t", IMAGE, "."])
        return engine
    shared = Path(os.environ.get("GA_SHARED", ROOT.parent / "shared"))
    lab = Path(os.environ.get("GA_IMAGE_LAB", shared / "lab" / "image_lab.sh"))
    if not lab.is_file() or os.getuid() != 0:
        pytest.skip(f"no docker engine answers here, and {lab} (GA_IMAGE_LAB), which does without, is not there for us")
    place = Path(os.environ.get("IMAGE_LAB", Path(os.environ.get("TMPDIR", "/tmp")) / "image-lab"))
    _build(["bash", str(lab), str(ROOT), IMAGE], BUILD_ARGS="TORCH_VARIANT=cpu", IMAGE_LAB=str(place))
    store = ("--root", f"{place}/storage", "--runroot", f"{place}/run", "--storage-driver", "overlay")
    limits = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096", "--pull", "never")
    program = ("podman", *store, "--runtime", "runc", "--cgroup-manager", "cgroupfs")
    return Engine(program, limits, "localhost/base:latest")


def _build(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_LIMIT_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
