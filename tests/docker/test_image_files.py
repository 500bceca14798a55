"""The files that describe the image agree with the project and with each other."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))


def test_the_labels_are_what_the_package_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE))
    assert labels["version"] == project["version"]
    assert labels["licenses"] == project["license"]
    assert labels["description"] == project["description"]
    assert labels["authors"] == project["authors"][0]["name"]
    assert labels["title"]


def test_the_base_can_be_chosen_and_is_a_certain_release() -> None:
    name, default = DOCKERFILE.splitlines()[0].removeprefix("ARG ").split("=")
    assert name == "BASE_IMAGE"
    assert re.search(r":\d+\.\d+\.\d+-runtime-", default)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${BASE_IMAGE}"}


def test_the_image_runs_as_a_user_without_rights_or_name() -> None:
    (user,) = re.findall(r"^USER (.+)", DOCKERFILE, re.M)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_what_the_image_holds_is_here_and_what_is_made_here_stays_out() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    held = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all(list(ROOT.glob(name)) for name in held)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert {name.removesuffix("*") for name in packages["find"]["include"]} <= held
    made = {line.rstrip("/*") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    assert not held & made


def test_every_service_of_compose_has_the_volumes_of_the_image() -> None:
    (volumes,) = re.findall(r"^VOLUME (.+)", DOCKERFILE, re.M)
    for service in COMPOSE["services"].values():
        assert {volume.rpartition(":")[2] for volume in service["volumes"]} == set(json.loads(volumes))
        build = service["build"]
        assert (ROOT / "docker" / build["context"] / build["dockerfile"]).resolve() == ROOT / "docker" / "Dockerfile"
        arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
        assert set(build.get("args", {})) <= arguments
