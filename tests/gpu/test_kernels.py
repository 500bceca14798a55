"""The Triton kernels at the sizes of the 8B pair; tests/models/packed/test_triton.py has the hostile ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

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

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


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


@pytest.mark.parametrize("shares", [False, True], ids=["apart", "sharing"])
@dtypes
def test_mix(fast, dtype: torch.dtype, shares: bool) -> None:
    layout = layout_of(shares=shares)
    parts = (0.5 * random(CHANNELS, 4, dtype=dtype), 0.1 * random(CHANNELS, dtype=dtype))
    parts += (random(D, dtype=dtype), random(HEADS, dtype=dtype))
    sizes = {"heads": HEADS, "groups": HEADS, "states": STATES, "silu_after_conv": False}
    projected_NE = random(len(layout), CHANNELS + D + HEADS, dtype=dtype)
    expected = PlainKernels().mix(
        projected_NE.float(), MixerWeights(*(part.float() for part in parts), **sizes), layout
    )
    mixer = MixerWeights(*parts, **sizes)
    actual = fast.mix(projected_NE, mixer, layout)
    assert error(actual, expected) < TOLERANCE[dtype]
    assert torch.equal(fast.mix(projected_NE, mixer, layout), actual)


@pytest.mark.parametrize("shares", [False, True], ids=["apart", "sharing"])
@dtypes
def test_attend(fast, dtype: torch.dtype, shares: bool) -> None:
    layout = layout_of(shares=shares)
    qkv_NE = random(len(layout), 48 * WIDTH, dtype=dtype)
    angle_TP = torch.rand(layout.longest_text, WIDTH // 2, device=DEVICE).repeat(1, 2) * 6
    cos_TP, sin_TP = angle_TP.cos().to(dtype), angle_TP.sin().to(dtype)
    expected = PlainKernels().attend(qkv_NE.float(), ATTENTION, cos_TP.float(), sin_TP.float(), layout)
    actual = fast.attend(qkv_NE.clone(), ATTENTION, cos_TP, sin_TP, layout)
    assert error(actual, expected) < TOLERANCE[dtype]
    assert torch.equal(fast.attend(qkv_NE.clone(), ATTENTION, cos_TP, sin_TP, layout), actual)


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


def test_the_fast_kernels_are_chosen() -> None:
    assert choose_kernels(DEVICE, torch.bfloat16).name == "Triton"
