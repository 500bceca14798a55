from __future__ import annotations

import json

import pytest

from models.configuration_llamba import LLAMA, MAMBA, LlambaConfig


def test_hub_fields_without_layer_types_are_pure_llamba(llamba_config):
    config = llamba_config()
    assert config.layer_types == [MAMBA] * 4
    assert config.attention_layers == ()
    assert (config.hidden_size, config.num_hidden_layers, config.tie_word_embeddings) == (32, 4, False)


def test_a_hybrid_takes_the_donors_fields_and_keeps_them_on_disk(tmp_path, llamba_config, llama_config):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
    donor = llama_config(rope_parameters=rope, head_dim=16, intermediate_size=40)
    config = llamba_config().with_attention([2, 0], donor)
    config.save_pretrained(tmp_path)
    loaded = LlambaConfig.from_pretrained(tmp_path)
    assert loaded.layer_types == [LLAMA, MAMBA, LLAMA, MAMBA]
    assert loaded.attention_layers == (0, 2)
    built = loaded.llama_config()
    for name in ("head_dim", "intermediate_size", "rms_norm_eps", "rope_parameters", "num_key_value_heads"):
        assert getattr(built, name) == getattr(donor, name)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_taking_all_layers_out_again_gives_the_base(llamba_config, llama_config):
    assert llamba_config(layers=(1, 3)).with_attention([]).attention_layers == ()


def test_the_vocabulary_is_padded(llamba_config):
    assert llamba_config(pad_vocab_size_multiple=8).padded_vocab_size == 64
    assert llamba_config(pad_vocab_size_multiple=1).padded_vocab_size == 61


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layer": "four"}, "n_layer must be a whole number of at least 1, got 'four'"),
        ({"vocab_size": None}, "vocab_size must be a whole number"),
        ({"norm_epsilon": "small"}, "norm_epsilon must be a number above 0, got 'small'"),
        ({"mlp_cfg": [1]}, r"mlp_cfg must be an object, got \[1\]"),
        ({"ssm": {"d_state": 0}}, "ssm_cfg.d_state must be a whole number of at least 1, got 0"),
        ({"ssm": {"n_v_heads": 3, "n_qk_heads": 3}}, "n_v_heads 3 does not divide the inner width 32"),
        ({"ssm": {"n_qk_heads": 3}}, "n_qk_heads 3 does not divide n_v_heads 4"),
        ({"ssm": {"activation": "relu"}}, "activation 'relu' is not one of identity, silu, swish"),
        ({"layer_types": ["mlp"] * 4}, r"layer_types holds \['mlp'\]"),
        ({"layer_types": [MAMBA] * 3}, "layer_types has 3 entries, n_layer is 4"),
        ({"layer_types": [LLAMA] * 4}, "attention_cfg must give"),
    ],
)
def test_a_field_that_does_not_fit_is_named(llamba_config, fields, message):
    with pytest.raises(ValueError, match=message):
        llamba_config(**fields)


def test_a_layer_outside_the_model_is_named(llamba_config, llama_config):
    with pytest.raises(ValueError, match=r"layer 4 is outside 0\.\.3"):
        llamba_config().with_attention([1, 4], llama_config())
