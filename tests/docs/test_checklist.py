"""DEPLOYMENT_READY.md goes through what scripts/verify_setup.sh shows, and through nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from .documents import ROOT, code_spans, read


def test_the_checklist_has_each_line_that_verify_setup_shows() -> None:
    command = [sys.executable, "-m", "evaluation.doctor", "--pair", "tiny", "--gpu", "cpu", "--no-measure", "--json"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    shown = {one["name"] for one in (*told["parts"], *told["surroundings"])}
    document = read("DEPLOYMENT_READY.md")
    assert not sorted(shown - set(code_spans(document)))

    items = re.findall(r"^(?:- \[ \] |\| )(`[^:|]*)", document.partition("## Does all")[0], re.MULTILINE)
    listed = {span for item in items for span in re.findall(r"`([^`]+)`", item)}
    assert listed
    assert not sorted(listed - shown)
