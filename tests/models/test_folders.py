"""Saved folders: through transformers, and by strangers who have nothing of this project but the folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.configuration_llamba import LlambaConfig
from models.loading import load_base, register
from models.modeling_llamba import LlambaForCausalLM


@torch.no_grad()
@pytest.mark.parametrize("layers", [(), (1, 3)])
@pytest.mark.parametrize("tied", [False, True])
def test_a_round_trip(tmp_path, random_model, layers, tied):
    model, ids = random_model(layers, tie_embeddings=tied), torch.randint(1, 61, (2, 9))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    expected = model(ids).logits
    loaded, notes = LlambaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.config.layer_types == model.config.layer_types
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    for again in (loaded, load_base(tmp_path)):
        assert torch.equal(again(ids).logits, expected)
        assert (again.lm_head.weight is again.backbone.embedding.weight) == tied


def test_auto_classes_know_llamba_once_asked_to(tmp_path, random_model):
    random_model((2,)).save_pretrained(tmp_path)
    register()
    register()
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is LlambaForCausalLM


def test_trust_remote_code_needs_only_the_folder(tmp_path, monkeypatch, random_model):
    folder = tmp_path / "checkpoint"
    model, ids = random_model((1,)), torch.randint(1, 61, (2, 9))
    monkeypatch.setattr(LlambaConfig, "_auto_class", "AutoConfig")
    monkeypatch.setattr(LlambaForCausalLM, "_auto_class", "AutoModelForCausalLM")
    model.save_pretrained(folder)
    code = sorted(path.name for path in folder.glob("*.py"))
    assert code == ["configuration_llamba.py", "mixer.py", "modeling_llamba.py", "scan.py"]
    expected = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    program = f"""
        import sys, torch
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
        ids = model.generate(torch.tensor({ids.tolist()}), max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert not any(name.split(".")[0] == "models" for name in sys.modules), "the project was imported"
        print(ids.tolist())
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        env=kept | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == expected.tolist()
