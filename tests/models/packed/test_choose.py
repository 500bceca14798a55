"""The choice of kernels: the fast ones only where they agree with their twins, at the shapes of the model."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from models.configuration_llamba import LlambaConfig
from models.packed.choose import choose_kernels, disagreement
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

BASE = LlambaConfig(
    vocab_size=32,
    d_model=48,
    n_layer=1,
    mlp_cfg={"intermediate_size": 80},
    ssm_cfg={"n_v_heads": 4, "n_qk_heads": 2, "d_state": 8, "chunk_size": 32, "activation": "silu", "bias": True},
)
DONOR = LlamaConfig(hidden_size=48, num_attention_heads=3, num_key_value_heads=1, intermediate_size=96)


@starts_interpreter
def test_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="needs Triton (pip install triton), which PyTorch for CUDA brings along")
    run_in_the_interpreter(__file__)


@pytest.fixture(autouse=True)
def completed(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        complete(monkeypatch)


@runs_kernels
@pytest.mark.parametrize("donor", [DONOR, None], ids=["a pair", "a Llamba alone"])
def test_the_fast_kernels_agree_at_the_shapes_of_a_model(donor: LlamaConfig | None) -> None:
    from models.packed.triton_kernels import TritonKernels

    assert disagreement(TritonKernels(), DEVICE, torch.bfloat16, BASE, donor, coarse=not ON_GPU) is None


class Wrong(PlainKernels):
    """One of whose operations is wrong at one width."""

    def swiglu(self, gate_up_NF: Tensor, *, quantise: bool = False):
        made = super().swiglu(gate_up_NF, quantise=quantise)
        return 1.1 * made if gate_up_NF.shape[1] == 2 * DONOR.intermediate_size else made


def test_a_kernel_that_is_wrong_at_the_model_s_shapes_is_named() -> None:
    cpu = torch.device("cpu")
    told = disagreement(Wrong(), cpu, torch.bfloat16, BASE, DONOR)
    assert told is not None
    assert told.startswith("swiglu of 96 is 10.")
    assert disagreement(Wrong(), cpu, torch.bfloat16) is None
    assert disagreement(PlainKernels(), cpu, torch.bfloat16, BASE, DONOR, coarse=True) is None


@pytest.mark.skipif(ON_GPU, reason="needs a machine on which they cannot run")
def test_kernels_that_do_not_run_give_way_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_kernels(torch.device("cuda"), torch.bfloat16, BASE, DONOR).name == PlainKernels.name
    [record] = caplog.records
    assert "running on plain PyTorch" in record.getMessage()
