"""A pair whose models come from two hubs, in a fresh process that knows of them by its environment alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from models.pairs import TINY_DIR
from tests.model_preparation.hub_server import HubServer

ROOT = Path(__file__).resolve().parents[3]
LOCATE = """
import json, sys
from model_preparation.sources import locate
from models.errors import ModelError
from models.pairs import make_pair
found = []
for pair in (make_pair("hf:org/base", "ms:org/donor"), make_pair("hf:org/other", "ms:org/other")):
    for role in ("base", "donor"):
        try:
            found.append(str(locate(pair, role)))
        except ModelError as error:
            found.append(f"ModelError: {error}")
print(json.dumps(found))
"""


def test_both_models_of_a_pair_come_by_the_environment_and_are_there_offline(tmp_path: Path) -> None:
    server = HubServer()
    server.add("org/base", TINY_DIR / "base")
    server.add("org/donor", TINY_DIR / "donor")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "MODELSCOPE_", "TRANSFORMERS_"))
    }
    environment |= {"HF_HOME": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "ms"), "HOME": str(tmp_path)}
    environment["NO_PROXY"] = "*"

    def located(**more: str) -> list[str]:
        command = [sys.executable, "-c", LOCATE]
        done = subprocess.run(
            command, cwd=ROOT, env=environment | more, capture_output=True, text=True, check=False, timeout=100
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return json.loads(done.stdout)

    with server.running():
        environment |= {"HF_ENDPOINT": server.url, "MODELSCOPE_ENDPOINT": server.url}
        base, donor, *others = located()
    for folder, cache, source in ((base, "hf", "base"), (donor, "ms", "donor")):
        assert Path(folder).is_relative_to(tmp_path / cache)
        weights = "model.safetensors"
        assert (Path(folder) / weights).read_bytes() == (TINY_DIR / source / weights).read_bytes()
    assert all("shows no model org/other" in other for other in others)
    base_again, donor_again, *others = located(HF_HUB_OFFLINE="1")
    assert (base_again, donor_again) == (base, donor)
    assert all("org/other is not in" in other and "HF_HUB_OFFLINE is set" in other for other in others)
