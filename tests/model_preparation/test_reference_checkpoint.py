"""The published implementation's numbers, through saved checkpoints loaded where this project is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from model_preparation.create_replaced_model_checkpoint import main
from models.configuration_llamba import LlambaConfig
from models.modeling_llamba import LlambaForCausalLM

from .conftest import write_tokenizer

TOLERANCE = 1e-2
ELSEWHERE = """
import importlib.util, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

for name in ("models", "evaluation", "model_preparation"):
    assert importlib.util.find_spec(name) is None, name
source, copy, inputs, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
model.save_pretrained(copy)
model = AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True)
with torch.no_grad():
    save_file({"logits": model(load_file(inputs)["input_ids"].long()).logits}, out)
"""


@pytest.fixture(scope="module")
def tensors(shared: Path) -> dict[str, torch.Tensor]:
    return load_file(shared / "reference" / "reference_a.safetensors")


@pytest.fixture(scope="module")
def made(shared: Path, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base as transformers saves it with its code, and the hybrid's checkpoint."""
    about = json.loads((shared / "reference" / "reference_a.json").read_text())
    root = tmp_path_factory.mktemp("reference")
    model = LlambaForCausalLM(LlambaConfig(**about["llamba_config"]))
    model.load_state_dict({n.removeprefix("llamba."): a for n, a in tensors.items() if n.startswith("llamba.")})
    with pytest.MonkeyPatch.context() as patch:  # what register_for_auto_class sets
        patch.setattr(LlambaConfig, "_auto_class", "AutoConfig")
        patch.setattr(LlambaForCausalLM, "_auto_class", "AutoModelForCausalLM")
        model.save_pretrained(root / "base")
    write_tokenizer(root / "base")
    donor = {n.removeprefix("llama."): a.contiguous() for n, a in tensors.items() if n.startswith("llama.")}
    LlamaConfig(**about["llama_config"]).save_pretrained(root / "donor")
    save_file(donor, root / "donor" / "model.safetensors", metadata={"format": "pt"})
    command = ["--base", str(root / "base"), "--donor", str(root / "donor"), "--output_dir", str(root / "hybrid")]
    assert main([*command, "--layers", *map(str, about["attention_layers"])]) == 0
    return {"llamba": root / "base", "hybrid": root / "hybrid"}


@pytest.mark.parametrize("name", ["llamba", "hybrid"])
def test_logits_are_those_of_the_published_implementation(
    name: str, made: dict[str, Path], tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file({"input_ids": tensors["input_ids"]}, tmp_path / "inputs.safetensors")
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    paths = [made[name], tmp_path / "copy", tmp_path / "inputs.safetensors", tmp_path / "out.safetensors"]
    kept = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}
    # Without `site` no .pth file is read, so an editable install of this project is not there; its metadata are.
    done = subprocess.run(
        [sys.executable, "-S", str(tmp_path / "elsewhere.py"), *map(str, paths)],
        env=kept
        | {
            "PYTHONPATH": sysconfig.get_paths()["purelib"],
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = load_file(tmp_path / "out.safetensors")["logits"], tensors[f"{name}_logits"]
    error = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"{name}: relative Frobenius error {error:.2e}")
    assert error < TOLERANCE
