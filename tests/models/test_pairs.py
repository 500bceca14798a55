from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import ModelError
from models.pairs import PAIRS, get_pair

ROOT = Path(__file__).resolve().parents[2]


def test_known_pairs():
    assert {"tiny", "llamba-8b"} <= set(PAIRS)
    assert all(pair.name == name and pair.tasks and pair.description for name, pair in PAIRS.items())
    tiny, large = get_pair("tiny"), get_pair("llamba-8b")
    assert tiny.is_local
    assert tiny.tasks == ("tiny",)
    assert tiny.task_dir is not None
    assert not large.is_local
    assert large.tasks == ("mmlu",)
    for pair in (tiny, large):
        for name, ids in ((pair.base, pair.base_ids), (pair.donor, pair.donor_ids)):
            assert not ids or name == ids[0][1]
            assert {source for source, _ in ids} <= {"huggingface", "modelscope"}


def test_an_unknown_pair_names_the_nearest():
    with pytest.raises(ModelError, match=r"no pair is called 'lamba8b'; did you mean 'llamba-8b'\?"):
        get_pair("lamba8b")
    with pytest.raises(ModelError, match="known: tiny, llamba-8b, or BASE_FOLDER:DONOR_FOLDER"):
        get_pair("")


def test_two_folders_are_a_pair(tmp_path):
    for name in ("base", "donor"):
        (tmp_path / name).mkdir()
    pair = get_pair(f"{tmp_path}/base:{tmp_path}/donor")
    assert (pair.base, pair.donor) == (str(tmp_path / "base"), str(tmp_path / "donor"))
    assert pair.is_local
    with pytest.raises(ModelError, match=r"the donor's folder .*/nowhere' does not exist"):
        get_pair(f"{tmp_path}/base:{tmp_path}/nowhere")


def test_the_zoo_loads_no_torch():
    program = "import sys, models.pairs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
