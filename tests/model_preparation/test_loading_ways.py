"""A checkpoint loads in each way that the guide and README.txt show, and it is the same model each time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model_preparation import get_model_modelscope, load_model
from model_preparation.saved_model import LAYERS_KEY, follow_layers, labelled, rebuild, whole
from models.errors import ModelError
from models.hybrid import load_hybrid
from models.loading import load_base
from models.modeling_llamba import LlambaForCausalLM

from .conftest import llamba_config, write_tokenizer

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
    text = (checkpoint / "README.txt").read_text()
    advice = re.search(r"then write before torch.load\n\n((?: {5}.*\n)+)", text)
    assert advice is not None
    load = f"torch.load('{checkpoint.name}/model.pt')"
    code = f"import torch\ntry:\n    {load}\nexcept Exception as error:\n    print(error)\n"
    code += f"{textwrap.dedent(advice[1])}\n{load}; print('opened')"
    done = run(code, cwd=checkpoint.parent, path=str(ROOT), TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    for words in ("Weights only load failed", "model_preparation.saved_model.rebuild"):
        assert words in done.stdout
        assert words in text
    assert done.stdout.endswith("\nopened\n"), done.stderr
    assert "weights_only=False" not in text


def test_importing_torch_does_not_depend_on_what_else_is_called_models(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise ImportError('not yours')")
    path = os.pathsep.join([str(tmp_path), str(installed), str(ROOT)])
    code = "import sys, torch; assert 'models' not in sys.modules and 'transformers' not in sys.modules"
    done = run(code, cwd=tmp_path, path=path)
    assert done.returncode == 0, done.stderr


def test_the_other_lines_of_readme_txt(checkpoint: Path, pair_name: str) -> None:
    expected = load_model(checkpoint)[0].state_dict()
    whole = torch.load(checkpoint / "model.pt")
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


def same(model: LlambaForCausalLM, other: LlambaForCausalLM) -> bool:
    """Whether two models have the same layers and weights, and give the same logits."""
    tokens_BT = torch.arange(6)[None]
    expected = other.state_dict()
    return (
        model.config.layer_types == other.config.layer_types
        and model.state_dict().keys() == expected.keys()
        and all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        and torch.equal(model(tokens_BT).logits, other(tokens_BT).logits)
    )


@pytest.fixture(scope="module")
def other_hybrid(folders: tuple[Path, Path]) -> LlambaForCausalLM:
    """With other layers than the checkpoint, but one."""
    return load_hybrid(folders[0], (0, 3), folders[1], dtype=torch.bfloat16)


@pytest.mark.parametrize("how", ["a plain dict", "safetensors", "one tensor less but not strict"])
def test_a_state_dict_without_metadata_tells_its_layers_by_its_names(
    how: str, checkpoint: Path, pair_name: str
) -> None:
    model = get_model_modelscope("unaligned_llamba", pair=pair_name)[0]
    if how == "safetensors":
        state = load_file(checkpoint / "model.safetensors")
    else:
        state = dict(torch.load(checkpoint / "model_state_dict.pt"))
    assert not hasattr(state, "_metadata")
    expected = load_model(checkpoint)[0]
    if how.endswith("strict"):
        norm = state.pop("backbone.layers.1.input_layernorm.weight")
        model.load_state_dict(state, strict=False)
        assert torch.count_nonzero(model.backbone.layers[1].input_layernorm.weight) == 0
        model.load_state_dict({"backbone.layers.1.input_layernorm.weight": norm}, strict=False)
    else:
        model.load_state_dict(state)
    assert same(model, expected)
    assert model.generate(torch.arange(3, 6)[None], max_new_tokens=2, do_sample=False).shape[1] <= 5


@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_hybrids_and_bases_take_on_each_others_layers(
    keeps_metadata: bool, folders: tuple[Path, Path], checkpoint: Path, other_hybrid: LlambaForCausalLM
) -> None:
    def state_of(model: LlambaForCausalLM) -> dict[str, torch.Tensor]:
        state = labelled(model.config)(model.state_dict())
        return state if keeps_metadata else dict(state)

    base, hybrid = load_base(folders[0], dtype=torch.bfloat16), load_model(checkpoint)[0]
    model = follow_layers(load_base(folders[0], dtype=torch.bfloat16), other_hybrid.config.attention_cfg)
    for other in (hybrid, other_hybrid, base, base, hybrid):
        model.load_state_dict(state_of(other))
        assert same(model, other)
    model = follow_layers(load_hybrid(folders[0], (2,), folders[1], dtype=torch.bfloat16))
    model.load_state_dict(state_of(hybrid))  # of hybrids the shape of Llama blocks is known
    assert same(model, hybrid)


def test_layers_are_taken_on_inside_another_module_and_keep_the_attention_kernel(
    folders: tuple[Path, Path], checkpoint: Path, other_hybrid: LlambaForCausalLM
) -> None:
    model = follow_layers(load_hybrid(folders[0], (3,), folders[1], dtype=torch.bfloat16))
    model.set_attn_implementation("eager")
    wrapped = torch.nn.ModuleDict({"inner": model})
    wrapped.load_state_dict(
        {f"inner.{name}": tensor for name, tensor in load_model(checkpoint)[0].state_dict().items()}
    )
    assert model.config.attention_layers == (1, 3)
    model(torch.arange(6)[None])
    kernels = {model.backbone.layers[i].self_attn.config._attn_implementation for i in (1, 3)}
    assert kernels == {"eager"}


def spoiled(state: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    """A state dict that fits no model."""
    name = "backbone.layers.1.self_attn.q_proj.weight"
    if how == "Missing key":
        del state[name]
    elif how == "has shape":
        state[name] = state[name][:-1]
    elif how == "Unexpected key":
        state["backbone.layers.77.self_attn.q_proj.weight"] = state[name]
    return state


@pytest.mark.parametrize("how", ["Missing key", "has shape", "Unexpected key"])
def test_a_state_dict_that_does_not_fit_is_one_error(
    how: str, folders: tuple[Path, Path], checkpoint: Path, other_hybrid: LlambaForCausalLM
) -> None:
    model = follow_layers(load_base(folders[0]), other_hybrid.config.attention_cfg)
    state = spoiled(dict(torch.load(checkpoint / "model_state_dict.pt")), how)
    with pytest.raises(RuntimeError, match=how) as raised:
        model.load_state_dict(state)
    if how == "has shape":  # the others are torch's own, which it raises after it has loaded what it could
        assert "backbone.layers.1.self_attn.q_proj.weight" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert same(model, load_base(folders[0]))


def test_where_nothing_tells_the_shape_of_llama_blocks_that_is_the_error(
    folders: tuple[Path, Path], checkpoint: Path
) -> None:
    model = follow_layers(load_base(folders[0]))
    with pytest.raises(RuntimeError, match=r"^layers 1, 3 of this state dict are Llama blocks, .* how many heads"):
        model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    assert same(model, load_base(folders[0]))
    state = torch.load(checkpoint / "model_state_dict.pt")
    state._metadata[""][LAYERS_KEY]["attention_cfg"] = {"num_attention_heads": 0}
    with pytest.raises(RuntimeError, match="describes Llama blocks that cannot be"):
        model.load_state_dict(state)
    assert same(model, load_base(folders[0]))


def test_a_donor_that_is_not_here_matters_only_to_state_dicts_that_do_not_tell(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(folders[0], tmp_path / "base")
    write_tokenizer(base)
    model = get_model_modelscope(str(base))[0]  # a folder, which has no donor
    with pytest.raises(RuntimeError, match="have the donor of the pair on this machine"):
        model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    model.load_state_dict(torch.load(checkpoint / "model_state_dict.pt"))
    assert same(model, load_model(checkpoint)[0])


def written_by_a_newer_version(path: Path, how: str) -> None:
    """A model.pt with something that this version does not know."""
    model = LlambaForCausalLM(llamba_config())
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    arguments = [config, generation, model.state_dict()]
    if how == "a field":
        config["sliding_window"] = 7
    else:
        arguments.append(how)

    class Newer:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return rebuild, tuple(arguments)

    torch.save(Newer(), path)


@pytest.mark.parametrize(("how", "told"), [("a field", "sliding_window"), ("an argument", "more than is known")])
def test_a_model_of_a_newer_version_is_one_clear_error(how: str, told: str, tmp_path: Path) -> None:
    written_by_a_newer_version(tmp_path / "model.pt", how)
    with pytest.raises(ModelError, match=f"newer version .*{told}.*; update GA Layer Search"):
        torch.load(tmp_path / "model.pt")


def test_what_a_hub_adds_to_a_configuration_is_not_taken_for_something_newer(tmp_path: Path) -> None:
    model = LlambaForCausalLM(llamba_config()).eval()
    config = model.config.to_dict() | {"resid_dropout": 0.0, "auto_map": {"AutoConfig": "evil.Config"}}
    torch.save(whole(config, model.generation_config.to_dict())(model.state_dict()), tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt")
    assert same(loaded, model)
    assert loaded.config.to_dict() == model.config.to_dict()
