"""Kernels that are not coarse against the model's own code, run eagerly: the same roundings, the same bits.

Bits of a matrix product depend on the library and, on some devices, on the shape. So mixers are compared bit by bit
where the shapes are the model's own, and else by how few roundings turn out otherwise.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, apply_rotary_pos_emb

from models.configuration_llamba import LlambaConfig
from models.mixer import LlambaMixer
from models.modeling_llamba import LlambaMLP, LlambaRMSNorm
from models.packed.kernels import AttentionShape, MixerWeights
from models.packed.layout import Layout, make_layout
from tests.models.packed.interpreter import (
    DEVICE,
    INTERPRETED,
    complete,
    run_in_the_interpreter,
    runs_kernels,
    starts_interpreter,
    use_silu_of_the_cpu,
)

pytest.importorskip("triton", reason="needs Triton (pip install triton), which PyTorch for CUDA brings along")

D, HEADS, STATES, CHUNK = 64, 2, 8, 32
RARE = 2e-3
"""Most elements that may round otherwise, where sums of float32 have another order: 2**-24 of some terms in 2**-9."""


@starts_interpreter
def test_in_the_interpreter() -> None:
    run_in_the_interpreter(__file__)


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if INTERPRETED:
        complete(monkeypatch)


@pytest.fixture
def fast():
    from models.packed.triton_kernels import TritonKernels

    return TritonKernels()


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def layout_of(lengths: list[int], prefixes: list[int] | None = None, parents: list[int] | None = None) -> Layout:
    return make_layout(
        np.array(lengths),
        np.zeros(1, np.int64),
        device=DEVICE,
        prefix_lengths=None if prefixes is None else np.array(prefixes),
        prefix_of_row=None if parents is None else np.array(parents),
    )


def whole_texts(layout: Layout) -> list[Tensor]:
    """The packed tokens of each text, its prefix's first."""
    texts = zip(*(part.tolist() for part in layout.texts), strict=True)
    return [torch.cat([torch.arange(b, b + m), torch.arange(f, f + n)]).to(DEVICE) for f, n, b, m, _ in texts]


def by_texts(layout: Layout, x_NE: Tensor, run) -> Tensor:
    """What `run` makes of each whole text [B, T, E], packed; two at a time, as batches are laid out otherwise."""
    made: Tensor | None = None
    for token_T in whole_texts(layout):
        out_TE = run(torch.stack(2 * [x_NE[token_T]]))[0]
        made = x_NE.new_empty(len(x_NE), out_TE.shape[-1]) if made is None else made
        made[token_T] = out_TE
    assert made is not None
    return made


def module_of(kind, *args, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    """A module with drawn weights."""
    module = kind(*args).to(DEVICE, dtype).requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (0.5 if parameter.dim() > 1 else 1.0))
    return module


def llamba(**changes) -> LlambaConfig:
    ssm = {"n_v_heads": HEADS, "n_qk_heads": HEADS, "d_state": STATES, "chunk_size": CHUNK}
    return LlambaConfig(vocab_size=32, d_model=D, n_layer=1, mlp_cfg={"intermediate_size": 96}, ssm_cfg=ssm | changes)


def between_projections(mixer: LlambaMixer):
    """What the mixer's own code does between its projections: these do nothing any more."""
    mixer.in_proj = mixer.out_proj = torch.nn.Identity()
    return mixer


def weights_of(mixer: LlambaMixer) -> MixerWeights:
    return MixerWeights(
        conv_CW=mixer.conv1d.weight[:, 0],
        conv_bias_C=mixer.conv1d.bias,
        z_bias_I=mixer.z_bias,
        D_H=mixer.D,
        heads=mixer.heads,
        groups=mixer.groups,
        states=mixer.states,
        silu_after_conv=mixer.silu_after_conv,
        chunk=mixer.chunk_size,
    )


def mixed(fast, layout: Layout, dtype: torch.dtype = torch.bfloat16, **changes) -> tuple[Tensor, Tensor]:
    """The kernel's and the model's."""
    mixer = module_of(LlambaMixer, llamba(**changes), 0, dtype=dtype)
    weights = weights_of(mixer)
    x_NE = random(len(layout), mixer.channels + mixer.inner + mixer.heads, dtype=dtype)
    expected = by_texts(layout, x_NE, between_projections(mixer))
    return fast.mix(x_NE.clone(), weights, layout), expected


def otherwise(actual: Tensor, expected: Tensor) -> float:
    """Share of elements that are not the same bits."""
    assert actual.dtype == expected.dtype == torch.bfloat16
    return float((actual != expected).float().mean())


@runs_kernels
@pytest.mark.parametrize("changes", [{}, {"n_qk_heads": 1}, {"activation": "silu"}], ids=str)
@pytest.mark.parametrize(
    "layout",
    [layout_of([16]), layout_of([96, 70]), layout_of([24, 56, 33], [40, 64], [0, 0, 1])],
    ids=["short", "apart", "sharing"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mix_gives_the_model_s_bits(
    fast, monkeypatch, dtype: torch.dtype, layout: Layout, changes: dict[str, object]
) -> None:
    """In float32, where no last rounding hides it: any operation done otherwise changes a bit somewhere."""
    if INTERPRETED:
        use_silu_of_the_cpu(monkeypatch)
    elif dtype == torch.float32 and changes.get("n_qk_heads") == 1 and len(layout) == 16:
        pytest.skip("of one float32 chunk the model's code multiplies a view, for which cuBLAS sums in another order")
    actual, expected = mixed(fast, layout, dtype, **changes)
    assert torch.equal(actual, expected)


@runs_kernels
@pytest.mark.parametrize(
    "layout",
    [
        layout_of([1, 31, 33, 70]),
        layout_of([5, 40, 1, 3], [70, 2], [0, 0, 1, -1]),
        layout_of([5, 20], [64], [0, 0]),
    ],
    ids=["apart", "sharing", "sharing whole chunks"],
)
@pytest.mark.parametrize("changes", [{}, {"bias": True}], ids=str)
def test_mix_rounds_as_the_model_does(fast, layout: Layout, changes: dict[str, object]) -> None:
    actual, expected = mixed(fast, layout, **changes)
    assert otherwise(actual, expected) < RARE


@runs_kernels
def test_mix_in_slices_is_the_same(fast) -> None:
    from models.packed.triton_exact import mix
    from models.packed.whole import WholeTexts

    layout = layout_of([5, 40], [70], [0, -1])
    mixer = module_of(LlambaMixer, llamba(n_v_heads=4, n_qk_heads=4), 0)
    x_NE, weights = random(len(layout), mixer.channels + mixer.inner + mixer.heads), weights_of(mixer)
    chunks = WholeTexts(layout).chunks(CHUNK, 4)
    assert torch.equal(mix(x_NE, weights, chunks, token_bytes=1), mix(x_NE, weights, chunks))


@runs_kernels
def test_coarse_is_another_rounding(fast) -> None:
    """Or the tests above would see nothing."""
    layout = layout_of([70])
    mixer = module_of(LlambaMixer, llamba(), 0)
    x_NE, weights = random(len(layout), mixer.channels + mixer.inner + mixer.heads), weights_of(mixer)
    coarse, exact = (fast.mix(x_NE.clone(), weights, layout, coarse=c) for c in (True, False))
    assert otherwise(coarse, exact) > 0.1


@runs_kernels
def test_rotation_gives_the_model_s_bits() -> None:
    from models.packed.triton_pointwise import rotate

    shape, tokens = AttentionShape(query_heads=3, key_heads=1, width=16), 70
    angle_TP = (torch.arange(tokens)[:, None] * torch.rand(8)).repeat(1, 2)
    cos_TP, sin_TP = angle_TP.cos().to(DEVICE, torch.bfloat16), angle_TP.sin().to(DEVICE, torch.bfloat16)
    qkv_NE = random(tokens, 5 * 16)
    q, k, v = (part[None].transpose(1, 2) for part in qkv_NE.unflatten(-1, (5, 16)).split([3, 1, 1], 1))
    turned = apply_rotary_pos_emb(q, k, cos_TP[None], sin_TP[None])
    expected = torch.cat([*turned, v], 1).transpose(1, 2).flatten(2)[0]
    rotate(qkv_NE, shape, cos_TP, sin_TP, torch.arange(tokens, device=DEVICE))
    assert torch.equal(qkv_NE, expected)


@runs_kernels
@pytest.mark.parametrize(
    "layout", [layout_of([1, 31, 70]), layout_of([5, 40, 1, 3], [70, 2], [0, 0, 1, -1])], ids=["apart", "sharing"]
)
def test_attend_rounds_as_the_model_does(fast, layout: Layout) -> None:
    config = LlamaConfig(hidden_size=D, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    attention = module_of(LlamaAttention, config, 0)
    angle_TP = (torch.arange(layout.longest_text)[:, None] * torch.rand(8)).repeat(1, 2)
    cos_TP, sin_TP = angle_TP.cos().to(DEVICE, torch.bfloat16), angle_TP.sin().to(DEVICE, torch.bfloat16)
    x_ND = random(len(layout), D)
    attention.o_proj = torch.nn.Identity()

    def run(x_BTD: Tensor) -> Tensor:
        tokens = x_BTD.shape[1]
        return attention(x_BTD, (cos_TP[None, :tokens], sin_TP[None, :tokens]), None)[0]

    qkv_NE = torch.cat([layer(x_ND) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)], -1)
    actual = fast.attend(qkv_NE, AttentionShape(4, 2, 16), cos_TP, sin_TP, layout)
    assert otherwise(actual, by_texts(layout, x_ND, run)) < RARE


@runs_kernels
@pytest.mark.parametrize("llama", [False, True])
@pytest.mark.parametrize("width", [48, 4096])
def test_norms_give_the_model_s_bits(fast, llama: bool, width: int) -> None:
    norm = module_of(LlamaRMSNorm if llama else LlambaRMSNorm, width, 1e-5)
    h_ND, delta_ND = random(40, width), random(40, width)
    assert torch.equal(fast.rms_norm(h_ND, norm.weight, 1e-5, llama=llama), norm(h_ND))
    expected_ND = h_ND + delta_ND
    sum_ND, normed_ND = fast.add_rms_norm(h_ND, delta_ND, norm.weight, 1e-5, llama=llama)
    assert torch.equal(sum_ND, expected_ND)
    assert torch.equal(normed_ND, norm(expected_ND))


@runs_kernels
def test_swiglu_gives_the_model_s_bits(fast) -> None:
    mlp = module_of(LlambaMLP, llamba())
    mlp.down_proj = torch.nn.Identity()
    x_ND = random(300, D)
    gate_up_NF = torch.cat([mlp.gate_proj(x_ND), mlp.up_proj(x_ND)], -1)
    assert torch.equal(fast.swiglu(gate_up_NF), mlp(x_ND))
