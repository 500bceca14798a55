from __future__ import annotations

import shutil
from itertools import combinations

import pytest
import torch
from transformers import LlamaForCausalLM

from models.errors import ModelError
from models.hybrid import HybridPair, load_hybrid
from models.layer_files import check_layers, layer_file
from models.loading import load_base, load_donor_layer_state

SETS = [(), (0,), (3,), (1, 2), (0, 1, 2, 3)]


def walked(pair: HybridPair, ids: torch.Tensor, layers: tuple[int, ...]) -> torch.Tensor:
    hidden = pair.embed(ids)
    for i in range(pair.depth):
        hidden = (pair.donor if i in layers else pair.base)(i, hidden)
    return pair.logits(hidden.flatten(0, 1)).unflatten(0, ids.shape)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_by_layer_is_the_assembled_model(pair_folders, dtype):
    pair = HybridPair.load(*pair_folders, dtype=dtype)
    assert (pair.depth, pair.dtype, pair.device.type) == (4, dtype, "cpu")
    ids = torch.randint(1, 61, (3, 11))
    for layers in SETS:
        logits = walked(pair, ids, layers)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, pair.assemble(layers)(ids).logits.float())


@torch.no_grad()
def test_no_two_hybrids_are_alike(pair_folders):
    pair, ids = HybridPair.load(*pair_folders), torch.randint(1, 61, (1, 11))
    sets = [layers for size in range(5) for layers in combinations(range(4), size)]
    assert len({walked(pair, ids, layers).numpy().tobytes() for layers in sets}) == 16


@torch.no_grad()
def test_right_padding_and_other_lengths_change_nothing(pair_folders):
    pair, ids = HybridPair.load(*pair_folders), torch.randint(1, 61, (2, 20))
    long = walked(pair, ids, (1, 2))  # makes a longer rotary table first
    torch.testing.assert_close(walked(pair, ids[:, :7], (1, 2)), long[:, :7], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(walked(pair, ids, (1, 2)), long)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama3", "dynamic"])
def test_rotary_scaling_is_the_donors(tmp_path, pair_folders, llama_config, kind):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    donor = llama_config(rope_parameters=rope, max_position_embeddings=16)
    donor.save_pretrained(pair_folders[1])
    pair = HybridPair.load(*pair_folders)
    for length in (30, 5):
        ids = torch.randint(1, 61, (2, length))
        expected = pair.assemble((0, 2))(ids).logits
        torch.testing.assert_close(walked(pair, ids, (0, 2)), expected)


def test_an_assembled_model_shares_weights_and_generates(pair_folders):
    pair = HybridPair.load(*pair_folders)
    model = pair.assemble([2])
    assert model.config.attention_layers == (2,)
    shared = {p.data_ptr() for p in pair.model.parameters()}
    own = {name for name, p in model.named_parameters() if p.data_ptr() not in shared}
    assert {name.split(".")[2] for name in own} == {"2"}
    assert model.generate(torch.ones(1, 3).long(), max_new_tokens=4, pad_token_id=0).shape == (1, 7)


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", ["identity", "silu"])
@pytest.mark.parametrize(("qk_heads", "multiple"), [(1, 1), (2, 8), (4, 64)])
def test_pairs_of_every_kind(tmp_path, random_model, llama_config, tied, activation, qk_heads, multiple):
    shape = {"tie_embeddings": tied, "pad_vocab_size_multiple": multiple}
    base = random_model(ssm={"activation": activation, "n_qk_heads": qk_heads}, **shape)
    base.save_pretrained(tmp_path / "base")
    LlamaForCausalLM(llama_config(tie_word_embeddings=tied)).save_pretrained(tmp_path / "donor")
    pair, ids = HybridPair.load(tmp_path / "base", tmp_path / "donor"), torch.randint(1, 61, (2, 9))
    torch.testing.assert_close(walked(pair, ids, ()), base(ids).logits)
    hybrid = load_hybrid(tmp_path / "base", (1, 2), tmp_path / "donor")
    logits = walked(pair, ids, (1, 2))
    assert torch.equal(hybrid(ids).logits, logits)
    assert not torch.equal(logits, walked(pair, ids, ()))
    for model in (pair.model, hybrid):
        assert (model.lm_head.weight is model.backbone.embedding.weight) == tied
        assert model.lm_head.weight.shape[0] % multiple == 0
    hybrid.save_pretrained(tmp_path / "hybrid")
    assert torch.equal(load_base(tmp_path / "hybrid")(ids).logits, logits)


def test_models_of_other_shapes_are_no_pair(tmp_path, pair_folders, llama_config):
    other = llama_config(num_hidden_layers=6, hidden_size=64, vocab_size=72, intermediate_size=96, rms_norm_eps=1e-6)
    LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    told = (
        "base and donor differ in hidden_size 32 and 64, num_hidden_layers 4 and 6, vocab_size 61 and 72, "
        "intermediate_size of the MLP 48 and 96, epsilon of the norms 1e-05 and 1e-06"
    )
    for load in (HybridPair.load, lambda base, donor: load_hybrid(base, (1,), donor)):
        with pytest.raises(ModelError, match=told):
            load(pair_folders[0], tmp_path / "other")


@torch.no_grad()
def test_extracted_layers_serve_as_well(tmp_path, pair_folders):
    base, donor = pair_folders
    ids = torch.randint(1, 61, (2, 9))
    expected = walked(HybridPair.load(base, donor), ids, (1, 3))
    layers = tmp_path / "extracted"
    layers.mkdir()
    shutil.copy(donor / "config.json", layers)
    for i in (1, 3):
        torch.save(load_donor_layer_state(donor, i), layer_file(layers, i))
    assert torch.equal(load_hybrid(base, (3, 1), layers_dir=layers)(ids).logits, expected)
    assert torch.equal(load_hybrid(base, (1, 3), donor)(ids).logits, expected)
    with pytest.raises(ModelError, match=r"layer_00\.pt is missing"):
        HybridPair.load(base, layers_dir=layers)
    (layers / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        load_hybrid(base, (1,), layers_dir=layers)
    assert torch.equal(load_hybrid(base, (1, 3), donor, layers_dir=layers)(ids).logits, expected)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([4], "layer 4 does not exist; layers are 0 to 3"),
        ([-1], "layer -1 does not exist"),
        ([1, 1], "layer 1 is given more than once"),
    ],
)
def test_layers_that_cannot_be(pair_folders, layers, message):
    with pytest.raises(ModelError, match=message):
        load_hybrid(pair_folders[0], layers, pair_folders[1])
    assert check_layers([3, 0], 4) == (0, 3)


def test_a_base_must_be_pure(tmp_path, pair_folders, random_model):
    random_model((1,)).save_pretrained(tmp_path / "mixed")
    with pytest.raises(ModelError, match="no Llama blocks"):
        HybridPair.load(tmp_path / "mixed", pair_folders[1])


def test_a_donor_must_be_named(pair_folders):
    with pytest.raises(ModelError, match="neither the donor's folder"):
        HybridPair.load(pair_folders[0])
