"""The Triton kernels against their PyTorch twins on hostile layouts and shapes.

On a GPU if there is one; else in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.packed.kernels import AttentionShape, MixerWeights, Quantised
from models.packed.layout import Layout, make_layout
from models.packed.plain import PlainKernels
from tests.models.packed.interpreter import (
    DEVICE,
    INTERPRETED,
    ON_GPU,
    complete,
    run_in_the_interpreter,
    runs_kernels,
    starts_interpreter,
)

pytest.importorskip("triton", reason="needs Triton (pip install triton), which PyTorch for CUDA brings along")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


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


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative, in the Frobenius norm; a nan is an error, too."""
    distance = (actual.double() - expected.double()).norm() / expected.double().norm()
    return float(distance.nan_to_num(float("inf")))


def layout_of(lengths: list[int], prefixes: list[int] | None = None, parents: list[int] | None = None) -> Layout:
    return make_layout(
        np.array(lengths),
        np.zeros(1, np.int64),
        device=DEVICE,
        prefix_lengths=None if prefixes is None else np.array(prefixes),
        prefix_of_row=None if parents is None else np.array(parents),
    )


LAYOUTS = {
    "one token": layout_of([1]),
    "shorter than the kernel": layout_of([1, 2, 3, 4, 5]),
    "at the edges of chunks": layout_of([15, 16, 17, 63, 64, 65, 129]),
    "prefixes": layout_of([5, 1, 2, 70, 3, 64, 1], [1, 2, 70, 3], [0, 1, -1, 2, 2, 3, 2]),
    "no row continues its prefix": layout_of([5, 66], [2], [-1, -1]),
    "one prefix for all": layout_of([1, 1, 1, 130], [129], [0, 0, 0, 0]),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
coarse_or_not = pytest.mark.parametrize("coarse", [False, True], ids=["exact", "coarse"])
# Not coarse and in bfloat16: test_exact.py.
ways = pytest.mark.parametrize(
    ("coarse", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)], ids=str
)


def mixer_of(
    dtype: torch.dtype, heads: int = 2, groups: int = 2, states: int = 8, width: int = 32, taps: int = 4
) -> MixerWeights:
    """As small as the bundled pair's."""
    inner, channels = heads * width, heads * width + 2 * groups * states
    return MixerWeights(
        conv_CW=0.5 * random(channels, taps, dtype=dtype),
        conv_bias_C=0.3 * random(channels, dtype=dtype),
        z_bias_I=random(inner, dtype=dtype),
        D_H=random(heads, dtype=dtype),
        heads=heads,
        groups=groups,
        states=states,
        silu_after_conv=False,
        chunk=32,
    )


def projected_of(mixer: MixerWeights, layout: Layout) -> Tensor:
    return random(len(layout), mixer.conv_CW.shape[0] + mixer.inner + mixer.heads, dtype=mixer.D_H.dtype)


def in_float32(mixer: MixerWeights) -> MixerWeights:
    fields = ("conv_CW", "conv_bias_C", "z_bias_I", "D_H")
    return replace(mixer, **{f: None if (t := getattr(mixer, f)) is None else t.float() for f in fields})


def mix_error(fast, mixer: MixerWeights, layout: Layout, coarse: bool, projected_NE: Tensor | None = None) -> float:
    projected_NE = projected_of(mixer, layout) if projected_NE is None else projected_NE
    expected = PlainKernels().mix(projected_NE.float(), in_float32(mixer), layout)
    actual = fast.mix(projected_NE.clone(), mixer, layout, coarse=coarse)
    assert actual.dtype == projected_NE.dtype
    return error(actual, expected)


@runs_kernels
@layouts
@ways
def test_mix(fast, layout: Layout, dtype: torch.dtype, coarse: bool) -> None:
    assert mix_error(fast, mixer_of(dtype), layout, coarse) < TOLERANCE[dtype]


@runs_kernels
@pytest.mark.parametrize(
    "sizes",
    [
        {"heads": 4, "groups": 2},
        {"heads": 4, "groups": 1, "states": 16},
        {"width": 24, "states": 5},
        {"width": 160, "states": 20, "heads": 1, "groups": 1},
        {"taps": 1},
        {"taps": 2},
        {"taps": 6},
    ],
    ids=str,
)
@ways
def test_mix_in_other_sizes(fast, dtype: torch.dtype, sizes: dict[str, int], coarse: bool) -> None:
    layout = layout_of([1, 70, 3], [2, 5], [0, 1, -1])
    assert mix_error(fast, mixer_of(dtype, **sizes), layout, coarse) < TOLERANCE[dtype]


@runs_kernels
@pytest.mark.parametrize("changes", [{"silu_after_conv": True}, {"conv_bias_C": None}, {"z_bias_I": None}], ids=str)
@ways
def test_mix_with_other_parts(fast, dtype: torch.dtype, changes: dict[str, object], coarse: bool) -> None:
    mixer = replace(mixer_of(dtype), **changes)
    assert mix_error(fast, mixer, LAYOUTS["one prefix for all"], coarse) < TOLERANCE[dtype]


@runs_kernels
@pytest.mark.parametrize("decay", [-50.0, 50.0, None], ids=["keeps all", "forgets all", "either"])
@coarse_or_not
def test_mix_with_extreme_decays(fast, decay: float | None, coarse: bool) -> None:
    mixer, layout = mixer_of(torch.float32), layout_of([200, 3], [70], [0, 0])
    projected_NE = projected_of(mixer, layout)
    a_NH = projected_NE[:, -mixer.heads :]
    a_NH.copy_(50 * a_NH.sign() if decay is None else torch.full_like(a_NH, decay))
    # Long sums of large decays blur what is left of small ones.
    assert mix_error(fast, mixer, layout, coarse, projected_NE) < 1e-3


@runs_kernels
@coarse_or_not
def test_a_nan_stays_in_its_text(fast, coarse: bool) -> None:
    mixer, layout = mixer_of(torch.float32), layout_of([5, 66, 5])
    projected_NE = projected_of(mixer, layout)
    expected = fast.mix(projected_NE.clone(), mixer, layout, coarse=coarse)
    projected_NE[5:71] = float("nan")
    actual = fast.mix(projected_NE, mixer, layout, coarse=coarse)
    assert torch.equal(actual[:5], expected[:5])
    assert torch.equal(actual[71:], expected[71:])
    assert actual[5:71].isnan().all()


@runs_kernels
@ways
def test_a_text_does_not_depend_on_its_company(fast, dtype: torch.dtype, coarse: bool) -> None:
    mixer, shape = mixer_of(dtype), AttentionShape(query_heads=2, key_heads=1, width=32)
    alone, together = layout_of([70, 66], [5], [0, -1]), layout_of([1, 66, 70, 9], [3, 5], [0, -1, 1, 1])
    where = torch.cat([torch.arange(3, 8), torch.arange(75, 145), torch.arange(9, 75)])
    together_NE = projected_of(mixer, together)
    expected = fast.mix(together_NE.clone(), mixer, together, coarse=coarse)[where]
    assert torch.equal(fast.mix(together_NE[where].clone(), mixer, alone, coarse=coarse), expected)
    cos_TP, sin_TP = tables(80, 32, dtype)
    qkv_NE = random(len(together), 128, dtype=dtype)
    expected = fast.attend(qkv_NE.clone(), shape, cos_TP, sin_TP, together, coarse=coarse)[where]
    assert torch.equal(fast.attend(qkv_NE[where].clone(), shape, cos_TP, sin_TP, alone, coarse=coarse), expected)


def tables(tokens: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle_TP = (torch.arange(tokens)[:, None] * torch.rand(width // 2)).repeat(1, 2)
    return angle_TP.cos().to(DEVICE, dtype), angle_TP.sin().to(DEVICE, dtype)


def attend_error(fast, shape: AttentionShape, layout: Layout, dtype: torch.dtype, coarse: bool) -> float:
    qkv_NE = random(len(layout), (shape.query_heads + 2 * shape.key_heads) * shape.width, dtype=dtype)
    cos_TP, sin_TP = tables(layout.longest_text, shape.width, dtype)
    expected = PlainKernels().attend(qkv_NE.float(), shape, cos_TP.float(), sin_TP.float(), layout)
    actual = fast.attend(qkv_NE.clone(), shape, cos_TP, sin_TP, layout, coarse=coarse)
    assert actual.dtype == dtype
    return error(actual, expected)


@runs_kernels
@layouts
@ways
def test_attend(fast, layout: Layout, dtype: torch.dtype, coarse: bool) -> None:
    assert attend_error(fast, AttentionShape(4, 2, 32), layout, dtype, coarse) < TOLERANCE[dtype]


@runs_kernels
@pytest.mark.parametrize(
    "shape", [AttentionShape(3, 3, 8), AttentionShape(12, 1, 16), AttentionShape(2, 1, 24)], ids=str
)
@dtypes
def test_attend_in_other_sizes(fast, shape: AttentionShape, dtype: torch.dtype) -> None:
    assert attend_error(fast, shape, layout_of([1, 70], [66], [-1, 0]), dtype, True) < TOLERANCE[dtype]


@runs_kernels
@pytest.mark.parametrize("width", [1, 48, 128, 200])
@dtypes
def test_norms(fast, dtype: torch.dtype, width: int) -> None:
    h_ND, delta_ND, weight_D = random(9, width, dtype=dtype), random(9, width, dtype=dtype), random(width, dtype=dtype)
    kept = h_ND.clone()
    plain = PlainKernels()
    assert error(fast.rms_norm(h_ND, weight_D, 1e-5), plain.rms_norm(h_ND, weight_D, 1e-5)) < TOLERANCE[dtype]
    sum_ND, normed_ND = fast.add_rms_norm(h_ND, delta_ND.clone(), weight_D, 1e-5)
    expected_sum, expected = plain.add_rms_norm(h_ND, delta_ND.clone(), weight_D, 1e-5)
    assert torch.equal(sum_ND, expected_sum)
    assert error(normed_ND, expected) < TOLERANCE[dtype]
    assert torch.equal(h_ND, kept)


@runs_kernels
@pytest.mark.parametrize("width", [1, 48, 3000])
@dtypes
def test_swiglu(fast, dtype: torch.dtype, width: int) -> None:
    gate_up_NF = random(5, 2 * width, dtype=dtype)
    gate_up_NF[0, 0], gate_up_NF[1, 0] = -200, 200
    assert error(fast.swiglu(gate_up_NF.clone()), PlainKernels().swiglu(gate_up_NF.float())) < TOLERANCE[dtype]


def is_rounding_of(actual: Quantised, values: Tensor) -> bool:
    """Whether it says `values` in 8 bits: 3 bits of mantissa, and a scale that uses the whole range."""
    scale_N1 = values.float().abs().amax(-1, keepdim=True) / 448
    scale_N1 = torch.where(scale_N1 > 0, scale_N1, 1.0)
    meant = actual.values_NK.float() * actual.scale_N1
    step = (values.float().abs() / 16).maximum(scale_N1 * 2**-10)  # half a step, normal or subnormal
    near = ((meant - values.float()).abs() <= 1.01 * step).all()
    return bool(near) and torch.allclose(actual.scale_N1, scale_N1, rtol=1e-6, atol=0)


@runs_kernels
@pytest.mark.parametrize("width", [16, 200])
@dtypes
def test_8_bits(fast, dtype: torch.dtype, width: int) -> None:
    if ON_GPU and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with 8-bit floats")
    x_NK, weight_K = random(7, width, dtype=dtype), random(width, dtype=dtype)
    x_NK[0] = 0
    x_NK[1] *= 30
    actual = fast.quantise(x_NK)
    assert actual.values_NK.dtype == torch.float8_e4m3fn
    assert is_rounding_of(actual, x_NK)
    assert is_rounding_of(fast.rms_norm(x_NK, weight_K, 1e-5, quantise=True), fast.rms_norm(x_NK, weight_K, 1e-5))
    _, normed = fast.add_rms_norm(x_NK, x_NK.clone(), weight_K, 1e-5, quantise=True)
    assert is_rounding_of(normed, fast.add_rms_norm(x_NK, x_NK.clone(), weight_K, 1e-5)[1])
    assert is_rounding_of(fast.swiglu(x_NK, quantise=True), fast.swiglu(x_NK))
