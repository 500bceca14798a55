from __future__ import annotations

import pytest
import torch

from models.packed import exact


@pytest.mark.parametrize("llama", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_leaves_its_input_alone(dtype: torch.dtype, llama: bool) -> None:
    h_ND = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = h_ND.clone()
    exact.rms_norm(h_ND, torch.ones(16, dtype=dtype), 1e-5, llama=llama)
    assert torch.equal(h_ND, before)
