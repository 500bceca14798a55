from __future__ import annotations

import pytest
import torch

from models.configuration_llamba import LLAMA
from models.modeling_llamba import LlambaForCausalLM, LlambaMixer, new_cache
from models.scan import quadratic_scan

MIXES = [(), (0,), (3,), (1, 2), (0, 1, 2, 3)]


def tokens(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(1, 61, (batch, length))


@pytest.mark.parametrize("activation", ["identity", "silu"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_mixer_is_the_formula(llamba_config, activation, groups):
    config = llamba_config(ssm={"n_qk_heads": groups, "activation": activation})
    mixer = LlambaMixer(config, 0)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    u = torch.randn(2, 11, 32)
    inner, states = 32, 8
    xbc, z, a = mixer.in_proj(u).split([inner + 2 * groups * states, inner, 4], dim=-1)
    xbc = torch.nn.functional.pad(xbc.transpose(1, 2), (3, 0))
    xbc = torch.nn.functional.conv1d(xbc, mixer.conv1d.weight, mixer.conv1d.bias, groups=xbc.shape[1]).transpose(1, 2)
    xbc = torch.nn.functional.silu(xbc) if activation == "silu" else xbc
    x, b, c = xbc.split([inner, groups * states, groups * states], dim=-1)
    x = x.unflatten(-1, (4, 8))
    decay = -torch.nn.functional.softplus(a)
    y, _ = quadratic_scan(x, decay, b.unflatten(-1, (groups, states)), c.unflatten(-1, (groups, states)))
    y = (y + mixer.D[:, None] * x).flatten(-2)
    expected = mixer.out_proj(y * torch.nn.functional.silu(z + mixer.z_bias))
    torch.testing.assert_close(mixer(u), expected, rtol=1e-4, atol=1e-4)


def test_tensors_have_their_hub_names(random_model):
    names = set(random_model((1,)).state_dict())
    blocks = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    blocks |= {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    mixer = {"in_proj.weight", "conv1d.weight", "conv1d.bias", "z_bias", "D", "out_proj.weight"}
    attention = {f"self_attn.{name}_proj.weight" for name in "qkvo"}
    expected = {"backbone.embedding.weight", "backbone.final_layernorm.weight", "lm_head.weight"}
    for i in range(4):
        own = attention if i == 1 else {f"mixer.{name}" for name in mixer}
        expected |= {f"backbone.layers.{i}.{name}" for name in blocks | own}
    assert names == expected


def test_the_donors_epsilon_is_used_in_its_blocks_only(random_model):
    layers = random_model((1,)).backbone.layers
    assert layers[1].input_layernorm.variance_epsilon == 1e-6
    assert layers[0].input_layernorm.eps == 1e-5


@torch.no_grad()
@pytest.mark.parametrize("layers", MIXES)
def test_left_padding_changes_nothing(random_model, layers):
    model, ids = random_model(layers, ssm={"bias": True}), tokens()
    padded = torch.cat([torch.full((2, 5), 7), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = model(ids).logits
    torch.testing.assert_close(model(padded, mask, positions).logits[:, 5:], expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layers", MIXES)
@pytest.mark.parametrize("masked", [False, True])
def test_right_padding_changes_nothing_before_it(random_model, layers, masked):
    model, ids = random_model(layers), tokens()
    padded = torch.cat([ids, torch.full((2, 5), 7)], 1)
    mask = torch.ones_like(padded)
    mask[:, 9:] = 0
    logits = model(padded, mask if masked else None).logits[:, :9]
    torch.testing.assert_close(logits, model(ids).logits, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_padding_leaves_the_state_alone(random_model):
    model, hidden = random_model(ssm={"bias": True}), torch.randn(2, 9, 32)
    mixer, plain, padded = model.backbone.layers[0].mixer, new_cache(model.config), new_cache(model.config)
    mixer(hidden, plain)
    mask = torch.tensor([0, 0] + [1] * 9 + [0, 0, 0]).expand(2, -1)
    mixer(torch.nn.functional.pad(hidden, (0, 0, 2, 3), value=5.0), padded, mask)
    states = (cache.layers[0].recurrent_states[0] for cache in (plain, padded))
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_to_keep(random_model):
    model, ids = random_model((2,)), tokens()
    everything = model(ids).logits
    assert everything.shape == (2, 9, 61)  # without the rows that pad the vocabulary
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, everything[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, everything[:, [1, 4]])


def test_hidden_states_and_attentions_of_a_mix(random_model):
    model = random_model((1, 3))
    model.set_attn_implementation("eager")
    outputs = model(tokens(), output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 5
    assert [a.shape for a in outputs.attentions] == [(2, 4, 9, 9)] * 2


@torch.no_grad()
def test_attention_kernels_agree(random_model):
    model, ids = random_model((0, 2)), tokens()
    expected = model(ids).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-3, atol=1e-4)


def test_every_parameter_learns(random_model):
    model, ids = random_model((1,)).train(), tokens()
    loss = model(ids, labels=ids).loss
    loss.backward()
    expected = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_autocast_trains(random_model):
    model, ids = random_model((1,)), tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("layers", [(), (1,)])
def test_half_precision_is_near_full_precision(random_model, layers):
    model, ids = random_model(layers), tokens()
    expected = model(ids).logits
    logits = model.bfloat16()(ids).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() / expected.norm() < 0.05


def test_tied_embeddings_are_one_tensor(llamba_config):
    model = LlambaForCausalLM(llamba_config(tie_embeddings=True))
    assert model.lm_head.weight is model.backbone.embedding.weight
    assert model.get_input_embeddings() is model.backbone.embedding


def test_biases_are_where_the_configuration_puts_them(llamba_config):
    names = set(LlambaForCausalLM(llamba_config(lm_head_bias=True, ssm={"bias": True})).state_dict())
    assert {"lm_head.bias", "backbone.layers.0.mixer.in_proj.bias"} <= names
    assert "backbone.layers.0.mixer.z_bias" not in names


def test_input_must_be_one_of_two(random_model):
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        random_model()()


@torch.no_grad()
def test_masks_made_ahead_are_used(random_model):
    model, ids = random_model((1,)), tokens()
    causal = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(model(ids, {LLAMA: causal}).logits, model(ids).logits, rtol=1e-3, atol=1e-4)
