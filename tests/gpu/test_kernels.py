"""The Triton kernels at the sizes of the 8B pair; tests/models/packed has the hostile ones, which run here, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

from models.configuration_llamba import LlambaConfig
from models.mixer import LlambaMixer
from models.modeling_llamba import LlambaRMSNorm
from models.packed.choose import choose_kernels
from models.packed.kernels import AttentionShape, MixerWeights
from models.packed.layout import Layout, make_layout
from models.packed.plain import PlainKernels

pytest.importorskip("triton", reason="needs Triton (pip install triton), which PyTorch for CUDA brings along")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda")
D, F, HEADS, STATES, WIDTH = 4096, 14336, 32, 64, 128
CHANNELS = D + 2 * HEADS * STATES
ATTENTION = AttentionShape(query_heads=32, key_heads=8, width=WIDTH)
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 3e-5}
BATCH = 16
"""Texts that the model's own code runs at once, as lm-eval does."""

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
sharing_or_not = pytest.mark.parametrize("shares", [False, True], ids=["apart", "sharing"])
coarse_or_not = pytest.mark.parametrize("coarse", [False, True], ids=["exact", "coarse"])


@pytest.fixture(autouse=True)
def exact_and_poisoned() -> Iterator[None]:
    """Products of the twins without tf32; fresh random inputs; and memory full of nan, where results will lie."""
    torch.manual_seed(torch.initial_seed())
    was = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.full((2**29,), float("nan"), device=DEVICE)
    yield
    torch.backends.cuda.matmul.allow_tf32 = was


@pytest.fixture
def fast():
    from models.packed.triton_kernels import TritonKernels

    return TritonKernels()


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative, in the Frobenius norm; a nan is an error, too."""
    distance = (actual.float() - expected.float()).norm() / expected.float().norm()
    return float(distance.nan_to_num(float("inf")))


def layout_of(*, shares: bool, rows: int = 40) -> Layout:
    lengths = np.random.default_rng(0).integers(20, 400, rows)
    lengths[:2] = 1000, 1
    prefixes = np.array([300, 15, 1]) if shares else None
    parents = np.arange(rows) % 4 - 1 if shares else None
    return make_layout(lengths, lengths - 1, device=DEVICE, prefix_lengths=prefixes, prefix_of_row=parents)


def mixer_of(dtype: torch.dtype) -> MixerWeights:
    parts = (0.5 * random(CHANNELS, 4, dtype=dtype), 0.1 * random(CHANNELS, dtype=dtype))
    parts += (random(D, dtype=dtype), random(HEADS, dtype=dtype))
    return MixerWeights(*parts, heads=HEADS, groups=HEADS, states=STATES, silu_after_conv=False)


def rotary_tables(layout: Layout) -> tuple[Tensor, Tensor]:
    position_1T = torch.arange(layout.longest_text, device=DEVICE)[None]
    cos_1TP, sin_1TP = LlamaRotaryEmbedding(llama()).to(DEVICE)(random(1, dtype=torch.bfloat16), position_1T)
    return cos_1TP[0], sin_1TP[0]


def llama() -> LlamaConfig:
    config = LlamaConfig(hidden_size=D, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    return config


def by_the_model(layout: Layout, x_NE: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """What the model's own code makes of the texts in padded batches, the longest first, packed."""
    texts = [
        torch.cat([torch.arange(b, b + m), torch.arange(f, f + n)]).to(DEVICE)
        for f, n, b, m, _ in zip(*(part.tolist() for part in layout.texts), strict=True)
    ]
    texts.sort(key=len, reverse=True)
    packed: Tensor | None = None
    for begin in range(0, len(texts), BATCH):
        batch = texts[begin : begin + BATCH]
        token_BT = nn.utils.rnn.pad_sequence(batch, batch_first=True)
        made_BTE = run(x_NE[token_BT])
        packed = x_NE.new_empty(len(x_NE), made_BTE.shape[-1]) if packed is None else packed
        for token_T, made_TE in zip(batch, made_BTE, strict=True):
            packed[token_T] = made_TE[: len(token_T)]
    assert packed is not None
    return packed


def otherwise(actual: Tensor, expected: Tensor) -> float:
    """Share of elements that are not the same bits."""
    return float((actual != expected).float().mean())


@sharing_or_not
@dtypes
@coarse_or_not
def test_mix(fast, dtype: torch.dtype, shares: bool, coarse: bool) -> None:
    layout, mixer = layout_of(shares=shares), mixer_of(dtype)
    projected_NE = random(len(layout), CHANNELS + D + HEADS, dtype=dtype)
    in_float32 = MixerWeights(
        *(part.float() for part in (mixer.conv_CW, mixer.conv_bias_C, mixer.z_bias_I, mixer.D_H)),
        heads=HEADS,
        groups=HEADS,
        states=STATES,
        silu_after_conv=False,
    )
    expected = PlainKernels().mix(projected_NE.float(), in_float32, layout)
    actual = fast.mix(projected_NE, mixer, layout, coarse=coarse)
    assert error(actual, expected) < TOLERANCE[dtype]
    assert torch.equal(fast.mix(projected_NE, mixer, layout, coarse=coarse), actual)


@sharing_or_not
def test_mix_gives_the_model_s_bits(fast, shares: bool) -> None:
    layout, mixer = layout_of(shares=shares), mixer_of(torch.bfloat16)
    with torch.device(DEVICE):
        model = LlambaMixer(LlambaConfig(n_layer=1), 0).to(torch.bfloat16).requires_grad_(False)
    model.conv1d.weight.copy_(mixer.conv_CW.unsqueeze(1))
    model.conv1d.bias.copy_(mixer.conv_bias_C)
    model.z_bias.copy_(mixer.z_bias_I)
    model.D.copy_(mixer.D_H)
    model.in_proj = model.out_proj = nn.Identity()
    projected_NE = random(len(layout), CHANNELS + D + HEADS, dtype=torch.bfloat16)
    expected = by_the_model(layout, projected_NE, model)
    assert otherwise(fast.mix(projected_NE, mixer, layout, coarse=True), expected) > 0.1
    assert otherwise(fast.mix(projected_NE, mixer, layout), expected) == 0


@sharing_or_not
@dtypes
@coarse_or_not
def test_attend(fast, dtype: torch.dtype, shares: bool, coarse: bool) -> None:
    layout = layout_of(shares=shares)
    qkv_NE = random(len(layout), 48 * WIDTH, dtype=dtype)
    angle_TP = torch.rand(layout.longest_text, WIDTH // 2, device=DEVICE).repeat(1, 2) * 6
    cos_TP, sin_TP = angle_TP.cos().to(dtype), angle_TP.sin().to(dtype)
    expected = PlainKernels().attend(qkv_NE.float(), ATTENTION, cos_TP.float(), sin_TP.float(), layout)
    actual = fast.attend(qkv_NE.clone(), ATTENTION, cos_TP, sin_TP, layout, coarse=coarse)
    assert error(actual, expected) < TOLERANCE[dtype]
    assert torch.equal(fast.attend(qkv_NE.clone(), ATTENTION, cos_TP, sin_TP, layout, coarse=coarse), actual)


@sharing_or_not
def test_attend_gives_the_model_s_bits(fast, shares: bool) -> None:
    layout = layout_of(shares=shares)
    cos_TP, sin_TP = rotary_tables(layout)
    with torch.device(DEVICE):
        attention = LlamaAttention(llama(), 0).to(torch.bfloat16).requires_grad_(False)
    for name, first, heads in (("q_proj", 0, 32), ("k_proj", 32, 8), ("v_proj", 40, 8)):
        setattr(attention, name, Part(first * WIDTH, heads * WIDTH))
    attention.o_proj = nn.Identity()

    def run(qkv_BTE: Tensor) -> Tensor:
        tokens = qkv_BTE.shape[1]
        return attention(qkv_BTE, (cos_TP[None, :tokens], sin_TP[None, :tokens]), None)[0]

    qkv_NE = random(len(layout), 48 * WIDTH, dtype=torch.bfloat16)
    expected = by_the_model(layout, qkv_NE, run)
    assert otherwise(fast.attend(qkv_NE.clone(), ATTENTION, cos_TP, sin_TP, layout), expected) == 0


class Part(nn.Module):
    """Some columns of the input: what a projection would give."""

    def __init__(self, first: int, width: int) -> None:
        super().__init__()
        self.first, self.width = first, width

    def forward(self, x_BTE: Tensor) -> Tensor:
        return x_BTE[..., self.first : self.first + self.width].contiguous()


@dtypes
def test_pointwise(fast, dtype: torch.dtype) -> None:
    plain = PlainKernels()
    h_ND, delta_ND, weight_D = (random(*shape, dtype=dtype) for shape in ((3001, D), (3001, D), (D,)))
    assert error(fast.rms_norm(h_ND, weight_D, 1e-5), plain.rms_norm(h_ND, weight_D, 1e-5)) < TOLERANCE[dtype]
    sum_ND, normed_ND = fast.add_rms_norm(h_ND, delta_ND.clone(), weight_D, 1e-5)
    expected_sum, expected = plain.add_rms_norm(h_ND, delta_ND.clone(), weight_D, 1e-5)
    assert torch.equal(sum_ND, expected_sum)
    assert error(normed_ND, expected) < TOLERANCE[dtype]
    gate_up_NF = random(3001, 2 * F, dtype=dtype)
    expected = plain.swiglu(gate_up_NF.float())
    assert error(fast.swiglu(gate_up_NF), expected) < TOLERANCE[dtype]
    if torch.cuda.get_device_capability() >= (8, 9):
        in_8_bits = fast.swiglu(gate_up_NF, quantise=True)
        assert error(in_8_bits.values_NK.float() * in_8_bits.scale_N1, expected) < 0.04
        values_NK, scale_N1 = fast.quantise(h_ND)
        expected_NK, expected_N1 = plain.quantise(h_ND)
        assert error(values_NK, expected_NK) < 2e-3
        torch.testing.assert_close(scale_N1, expected_N1)


@dtypes
def test_swiglu_gives_the_model_s_bits(fast, dtype: torch.dtype) -> None:
    gate_NF, up_NF = 3 * random(3001, F, dtype=dtype), random(3001, F, dtype=dtype)
    assert torch.equal(fast.swiglu(torch.cat([gate_NF, up_NF], -1)), nn.functional.silu(gate_NF) * up_NF)


@pytest.mark.parametrize("llama", [False, True])
def test_norms_give_the_model_s_bits(fast, llama: bool) -> None:
    """Of padded batches, whatever is in the pack."""
    norm = (LlamaRMSNorm if llama else LlambaRMSNorm)(D, 1e-5).to(DEVICE, torch.bfloat16).requires_grad_(False)
    norm.weight.normal_()
    h_BTD = random(BATCH, 120, D, dtype=torch.bfloat16)
    expected_ND = norm(h_BTD).flatten(0, 1)
    h_ND = h_BTD.flatten(0, 1)
    assert torch.equal(fast.rms_norm(h_ND, norm.weight, 1e-5, llama=llama), expected_ND)
    assert torch.equal(fast.rms_norm(h_ND[7:300], norm.weight, 1e-5, llama=llama), expected_ND[7:300])


def test_the_fast_kernels_are_chosen() -> None:
    assert choose_kernels(DEVICE, torch.bfloat16, coarse=True).name == "Triton"
    assert choose_kernels(DEVICE, torch.bfloat16, LlambaConfig(), llama(), coarse=True).name == "Triton"
