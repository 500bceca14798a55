"""A checkpoint loads in each way that the guide and README.txt show, and it is the same model each time."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from model_preparation import get_model_modelscope, load_model
from model_preparation.saved_model import follow_layers, rebuild
from models.loading import load_base

ROOT = Path(__file__).resolve().parents[2]

GUIDE = """
import torch
model = torch.load('{name}/model.pt')
model.eval()
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained('{name}/tokenizer')
inputs = tokenizer("Hello world", return_tensors="pt")
with torch.no_grad():
    outputs = model.generate(**inputs, max_new_tokens=3)
text = tokenizer.decode(outputs[0], skip_special_tokens=True)
first = model(**inputs).logits

import sys
sys.path.append({tools!r})
from modelscope_utils import get_model_modelscope
model, tokenizer, _, _ = get_model_modelscope('unaligned_llamba')
state_dict = torch.load('{name}/model_state_dict.pt')
model.load_state_dict(state_dict)
model.eval()
assert torch.equal(model(**inputs).logits, first)

from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained('{name}', trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained('{name}', trust_remote_code=True)
assert type(model).__module__.startswith('transformers_modules.')
torch.testing.assert_close(model(**tokenizer("Hello world", return_tensors="pt")).logits, first)
print(text)
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on PYTHONPATH, says what installing this project says: its entry points."""
    folder = tmp_path_factory.mktemp("site")
    about = folder / "ga_layer_search-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ga-layer-search\nVersion: 0\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        "[torch.backends]",
        *(f"{k} = {v}" for k, v in project["entry-points"]["torch.backends"].items()),
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))
    return folder


def run(code: str, *, cwd: Path, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PAIR", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=kept | {"PYTHONPATH": path} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_lines_of_the_guide_work_as_they_stand(
    checkpoint: Path, installed: Path, pair_name: str, tmp_path: Path
) -> None:
    code = GUIDE.format(name=checkpoint.name, tools=str(ROOT / "model_preparation"))
    path = os.pathsep.join([str(installed), str(ROOT)])
    # transformers copies remote code into its own folder of modules
    done = run(code, cwd=checkpoint.parent, path=path, PAIR=pair_name, HF_MODULES_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hello world")


def test_where_the_project_is_not_installed_the_error_is_the_one_readme_txt_speaks_of(
    checkpoint: Path,
) -> None:
    code = f"import torch; torch.load('{checkpoint.name}/model.pt')"
    done = run(code, cwd=checkpoint.parent, path=str(ROOT), TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.returncode == 1
    text = (checkpoint / "README.txt").read_text()
    for words in ("Weights only load failed", "model_preparation.saved_model.rebuild"):
        assert words in done.stderr
        assert words in text


def test_importing_torch_does_not_depend_on_what_else_is_called_models(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise ImportError('not yours')")
    path = os.pathsep.join([str(tmp_path), str(installed), str(ROOT)])
    code = "import sys, torch; assert 'models' not in sys.modules and 'transformers' not in sys.modules"
    done = run(code, cwd=tmp_path, path=path)
    assert done.returncode == 0, done.stderr


def test_the_other_lines_of_readme_txt(checkpoint: Path, pair_name: str) -> None:
    expected = load_model(checkpoint)[0].state_dict()
    whole = torch.load(checkpoint / "model.pt", weights_only=False)
    based, _, config, folder = get_model_modelscope("unaligned_llamba", pair=pair_name)
    based.load_state_dict(torch.load(checkpoint / "model_state_dict.pt"))
    assert Path(folder).name == "base"
    assert config.attention_layers == ()
    assert based.config.attention_layers == (1, 3)
    for state in (whole.state_dict(), based.state_dict()):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert whole.generation_config.eos_token_id == 1


def test_model_pt_can_be_mapped_and_is_trainable(checkpoint: Path) -> None:
    with torch.serialization.safe_globals([rebuild]):
        model = torch.load(checkpoint / "model.pt", mmap=True, map_location="cpu", weights_only=True)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_base_keeps_its_layers_with_a_state_dict_of_its_own_kind(folders: tuple[Path, Path]) -> None:
    model = follow_layers(load_base(folders[0]))
    model.load_state_dict(load_base(folders[0]).state_dict())
    assert model.config.attention_layers == ()


def test_the_taken_on_layers_are_on_the_models_device_in_its_dtype(
    folders: tuple[Path, Path], checkpoint: Path
) -> None:
    model = follow_layers(load_base(folders[0], dtype=torch.float32)).train()
    model.load_state_dict(torch.load(checkpoint / "model_state_dict.pt"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.backbone.layers[1].training
    tokens_BT = torch.arange(6)[None]
    expected = load_model(checkpoint, dtype=torch.float32)[0]
    assert torch.equal(model.eval()(tokens_BT).logits, expected(tokens_BT).logits)
    assert model.generate(tokens_BT, max_new_tokens=2, do_sample=False).shape[1] <= 8
