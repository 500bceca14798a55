"""DEPLOYMENT_READY.md goes through what scripts/verify_setup.sh shows, and through nothing else."""

from __future__ import annotations

import json
import re

import pytest

from evaluation import doctor
from model_preparation.hubs import reach

from .documents import code_spans, read


def test_the_checklist_has_each_line_that_verify_setup_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reach, "ask", lambda places: dict.fromkeys(places, "not in this test"))
    assert doctor.main(["--pair", "tiny", "--gpu", "cpu", "--no-measure", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    shown = {one["name"] for one in (*told["parts"], *told["surroundings"])}
    document = read("DEPLOYMENT_READY.md")
    assert not sorted(shown - set(code_spans(document)))

    items = re.findall(r"^(?:- \[ \] |\| )(`[^:|]*)", document.partition("## Does all")[0], re.MULTILINE)
    listed = {span for item in items for span in re.findall(r"`([^`]+)`", item)}
    assert listed
    assert not sorted(listed - shown)
