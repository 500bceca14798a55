"""Small random models: 4 layers of width 32, built in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.configuration_llamba import LlambaConfig
from models.modeling_llamba import LlambaForCausalLM

VOCABULARY = 61  # no multiple of 8, so the embedding has rows that are no tokens
DEPTH = 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def llama_config() -> Callable[..., LlamaConfig]:
    """Makes a donor's configuration; keyword arguments replace fields."""

    def make(**fields: object) -> LlamaConfig:
        return LlamaConfig(
            **{
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "num_hidden_layers": DEPTH,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 48,
                "rms_norm_eps": 1e-6,
                "initializer_range": 0.3,
                **fields,
            }
        )

    return make


@pytest.fixture
def llamba_config(llama_config) -> Callable[..., LlambaConfig]:
    """Makes a base's or, given `layers`, a hybrid's configuration; keyword arguments replace fields."""

    def make(layers: tuple[int, ...] = (), ssm: dict[str, object] | None = None, **fields: object) -> LlambaConfig:
        ssm_cfg = {"d_state": 8, "n_v_heads": 4, "n_qk_heads": 2, "chunk_size": 4, "activation": "silu"}
        config = LlambaConfig(
            **{
                "vocab_size": VOCABULARY,
                "d_model": 32,
                "n_layer": DEPTH,
                "mlp_cfg": {"intermediate_size": 48},
                "ssm_cfg": ssm_cfg | (ssm or {}),
                "initializer_range": 0.3,
                **fields,
            }
        )
        return config.with_attention(layers, llama_config()) if layers else config

    return make


@pytest.fixture
def random_model(llamba_config) -> Callable[..., LlambaForCausalLM]:
    """Makes a model in which every parameter is random, also those that start at 0 or 1."""

    def make(*args: object, **kwargs: object) -> LlambaForCausalLM:
        model = LlambaForCausalLM(llamba_config(*args, **kwargs)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def pair_folders(tmp_path, random_model, llama_config) -> tuple[Path, Path]:
    """Folders of a base and its donor, as save_pretrained writes them."""
    random_model().save_pretrained(tmp_path / "base")
    LlamaForCausalLM(llama_config()).save_pretrained(tmp_path / "donor")
    return tmp_path / "base", tmp_path / "donor"
