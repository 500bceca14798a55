"""Reading folders, good and bad; every fault must be one line that names the file and says what to do."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import ModelError
from models.hybrid import HybridPair
from models.layer_files import fingerprint, layer_file
from models.loading import (
    check_pair,
    load_base,
    load_donor_layer_state,
    load_layer_file,
    read_llama_config,
    read_llamba_config,
)


def refused(call, *names: object) -> str:
    """The one-line message with which `call` refuses; it holds all `names`."""
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert str(name) in message
    return message


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def shard(folder: Path) -> list[Path]:
    """Rewrite model.safetensors as two shards with an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / part)
    weight_map = {name: part for part, own in parts.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return [folder / part for part in parts]


def pickled(folder: Path, **options: object) -> Path:
    """Rewrite model.safetensors as pytorch_model.bin."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("form", ["whole", "shards", "pickled", "old pickle"])
def test_every_format_gives_the_same_weights(pair_folders, form):
    base, donor = pair_folders
    expected, layer = load_base(base).state_dict(), load_donor_layer_state(donor, 2)
    for folder in pair_folders:
        if form == "shards":
            shard(folder)
        elif form != "whole":
            pickled(folder, _use_new_zipfile_serialization=form == "pickled")
    assert all(torch.equal(a, expected[name]) for name, a in load_base(base).state_dict().items())
    again = load_donor_layer_state(donor, 2)
    assert sorted(again) == sorted(layer)
    assert all(torch.equal(a, layer[name]) for name, a in again.items())


def test_weights_come_in_the_dtype_asked_for(pair_folders):
    model = load_base(pair_folders[0], dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_donor_layer_has_its_llama_names(pair_folders):
    state = load_donor_layer_state(pair_folders[1], 0)
    assert {"self_attn.q_proj.weight", "mlp.gate_proj.weight", "input_layernorm.weight"} <= set(state)
    assert len(state) == 9
    refused(lambda: load_donor_layer_state(pair_folders[1], 4), pair_folders[1], "layer 4", "give")


def test_a_bare_llama_and_old_rotary_buffers_are_read(pair_folders):
    path = pair_folders[1] / "model.safetensors"
    weights = {name.removeprefix("model."): a for name, a in load_file(path).items()}
    save_file(weights | {"layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path)
    assert len(load_donor_layer_state(pair_folders[1], 1)) == 9


def test_a_tied_head_may_be_in_the_file_as_well(tmp_path, random_model):
    model = random_model(tie_embeddings=True)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    save_file(
        weights | {"lm_head.weight": weights["backbone.embedding.weight"].clone()},
        tmp_path / "model.safetensors",
    )
    loaded = load_base(tmp_path)
    assert loaded.lm_head.weight is loaded.backbone.embedding.weight


@pytest.mark.parametrize("size", [0, 5, 200, 20_000])
def test_truncated_safetensors(pair_folders, size):
    path = pair_folders[0] / "model.safetensors"
    cut(path, size)
    refused(lambda: load_base(pair_folders[0]), path, "damaged or cut short", "download")


@pytest.mark.parametrize("size", [0, 5, 200, 20_000])
def test_truncated_pickle(pair_folders, size):
    path = pickled(pair_folders[0])
    cut(path, size)
    refused(lambda: load_base(pair_folders[0]), path, "damaged or cut short", "download")


def test_a_missing_or_truncated_shard(pair_folders):
    first, second = shard(pair_folders[0])
    cut(first, 300)
    refused(lambda: load_base(pair_folders[0]), first, "damaged or cut short")
    second.unlink()
    refused(lambda: load_base(pair_folders[0]), second, "is missing", "2 shards")


def test_a_bad_index(pair_folders):
    shard(pair_folders[0])
    index = pair_folders[0] / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}))
    refused(lambda: load_base(pair_folders[0]), index, "../elsewhere.safetensors")
    for text in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(text)
        refused(lambda: load_base(pair_folders[0]), index, "download")


def test_no_weights_and_no_folder(pair_folders):
    (pair_folders[0] / "model.safetensors").unlink()
    refused(lambda: load_base(pair_folders[0]), pair_folders[0], "holds no weights")
    refused(lambda: load_base(pair_folders[0] / "nowhere"), "nowhere", "does not exist")
    refused(lambda: load_base(pair_folders[0] / "config.json"), "config.json", "does not exist")


def test_tensors_that_are_missing_unknown_or_of_another_shape(pair_folders):
    path = pair_folders[0] / "model.safetensors"
    weights = load_file(path)
    name = "backbone.layers.1.mixer.D"
    save_file({key: a for key, a in weights.items() if key != name}, path)
    refused(lambda: load_base(pair_folders[0]), pair_folders[0], f"lacks {name}")
    save_file(weights | {"backbone.layers.1.mixer.dt_bias": torch.ones(4)}, path)
    refused(lambda: load_base(pair_folders[0]), pair_folders[0], "backbone.layers.1.mixer.dt_bias")
    save_file(weights | {name: torch.ones(3)}, path)
    refused(lambda: load_base(pair_folders[0]), name, "[3]", "[4]")


@pytest.mark.parametrize(
    "text",
    ["", "{", "\x00\xff", "[]", "3", '{"d_model": 32}'],
)
def test_a_config_that_is_no_configuration(pair_folders, text):
    for folder, read in zip(pair_folders, (read_llamba_config, read_llama_config), strict=True):
        (folder / "config.json").write_text(text, encoding="latin-1")
        refused(lambda read=read, folder=folder: read(folder), folder / "config.json")


def test_a_config_with_a_value_that_cannot_be(pair_folders):
    base, donor = pair_folders
    for fields, name in [
        ({"n_layer": "x"}, "n_layer"),
        ({"ssm_cfg": {"d_state": -1}}, "ssm_cfg.d_state"),
        ({"mlp_cfg": {"act_fn": "foo"}}, "act_fn"),
        ({"model_type": "mamba2"}, "mamba2"),
    ]:
        saved = (base / "config.json").read_text()
        change_config(base, **fields)
        refused(lambda: load_base(base), base / "config.json", name)
        (base / "config.json").write_text(saved)
    for fields, name in [
        ({"hidden_size": "x"}, "hidden_size"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"hidden_act": "foo"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}}, "rope_type"),
        ({"model_type": "qwen2"}, "qwen2"),
    ]:
        saved = (donor / "config.json").read_text()
        change_config(donor, **fields)
        refused(lambda: read_llama_config(donor), donor / "config.json", name)
        (donor / "config.json").write_text(saved)


@pytest.mark.parametrize("wrong", [{"num_attention_heads": 0}, {"hidden_size": 9}, {"rms_norm_eps": "x"}, None])
def test_a_hybrid_with_impossible_llama_blocks(tmp_path, random_model, wrong):
    random_model((1,)).save_pretrained(tmp_path)
    assert read_llamba_config(tmp_path).attention_layers == (1,)
    fields = json.loads((tmp_path / "config.json").read_text())["attention_cfg"]
    change_config(tmp_path, attention_cfg=None if wrong is None else fields | wrong)
    refused(lambda: read_llamba_config(tmp_path), tmp_path / "config.json")


def test_a_donor_that_does_not_fit_has_every_difference_named(llamba_config, llama_config):
    check_pair(llamba_config(), llama_config())
    donor = llama_config(hidden_size=64, num_hidden_layers=3, vocab_size=50)
    message = refused(lambda: check_pair(llamba_config(), donor), "hidden_size 32 and 64")
    assert "num_hidden_layers 4 and 3" in message
    assert "vocab_size 61 and 50" in message
    assert "hidden_size" not in refused(lambda: check_pair(llamba_config(), llama_config(vocab_size=50)))


def test_a_donor_of_another_width_is_refused_before_its_weights_are_read(pair_folders):
    base, donor = pair_folders
    change_config(donor, hidden_size=64)
    (donor / "model.safetensors").unlink()
    refused(lambda: HybridPair.load(base, donor), "hidden_size 32 and 64")


@pytest.fixture
def layers_dir(tmp_path, pair_folders) -> Path:
    folder = tmp_path / "extracted"
    folder.mkdir()
    shutil.copy(pair_folders[1] / "config.json", folder)
    for i in range(4):
        torch.save(load_donor_layer_state(pair_folders[1], i), layer_file(folder, i))
    return folder


def test_an_extracted_layer_is_the_donors(layers_dir, pair_folders):
    assert layer_file(layers_dir, 2).name == "layer_02.pt"
    state, expected = load_layer_file(layers_dir, 2), load_donor_layer_state(pair_folders[1], 2)
    assert all(torch.equal(a, expected[name]) for name, a in state.items())


def test_bad_layer_files(layers_dir, pair_folders):
    path = layer_file(layers_dir, 3)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) - 40):
        path.write_bytes(whole[:size])
        refused(lambda: load_layer_file(layers_dir, 3), path, "damaged or cut short")
    torch.save([1, 2], path)
    refused(lambda: load_layer_file(layers_dir, 3), path, "not a dictionary of tensors")
    torch.save({"self_attn.q_proj.weight": 3}, path)
    refused(lambda: load_layer_file(layers_dir, 3), path, "q_proj", "not a tensor")
    torch.save({"self_attn.q_proj.weight": torch.ones(2, 2)}, path)
    refused(lambda: HybridPair.load(pair_folders[0], layers_dir=layers_dir), path, "[2, 2]")
    path.unlink()
    refused(lambda: HybridPair.load(pair_folders[0], layers_dir=layers_dir), path, "is missing", "extract_layers")


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return (Path.touch, (self.mark,))


def test_no_file_can_run_code(layers_dir, tmp_path):
    path = layer_file(layers_dir, 0)
    torch.save({"weight": Trap(tmp_path / "mark")}, path)
    refused(lambda: load_layer_file(layers_dir, 0), path)
    path.write_bytes(pickle.dumps(Trap(tmp_path / "mark"), protocol=2))
    refused(lambda: load_layer_file(layers_dir, 0), path)
    assert not (tmp_path / "mark").exists()


def test_a_fingerprint_follows_the_weights_not_the_folder(pair_folders, layers_dir, tmp_path):
    base = pair_folders[0]
    first = fingerprint(base)
    copy = shutil.copytree(base, tmp_path / "copy")
    change_config(copy, transformers_version="9.9")
    assert fingerprint(copy) == first
    change_config(copy, norm_epsilon=1e-6)
    assert fingerprint(copy) != first
    weights = load_file(base / "model.safetensors")
    weights["backbone.layers.2.mixer.D"][1] += 1
    save_file(weights, base / "model.safetensors")
    assert fingerprint(base) != first
    assert fingerprint(layers_dir) != fingerprint(pair_folders[1])


@pytest.mark.parametrize("form", ["whole", "pickled"])
def test_a_fingerprint_of_samples_sees_every_tensor(monkeypatch, pair_folders, form):
    monkeypatch.setattr("models.weights._WHOLE_BYTES", 0)
    monkeypatch.setattr("models.weights._SAMPLE_BYTES", 8)
    monkeypatch.setattr("models.weights._SAMPLES", 4)
    base = pair_folders[0]
    weights = load_file(base / "model.safetensors")
    seen = set()
    for name in [None, *weights]:
        changed = {key: a + (key == name) for key, a in weights.items()}
        if form == "whole":
            save_file(changed, base / "model.safetensors")
        else:
            (base / "model.safetensors").unlink(missing_ok=True)
            torch.save(changed, base / "pytorch_model.bin")
        seen.add(fingerprint(base))
    assert len(seen) == len(weights) + 1
