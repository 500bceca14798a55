"""A small random pair on disk, for the tools: four layers, width 32, a word-level tokenizer."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from models.configuration_llamba import LlambaConfig
from models.modeling_llamba import LlambaForCausalLM

WORDS = ("<pad>", "<eos>", "<unk>", "Hello", "world", *(f"word{i}" for i in range(51)))
DEPTH, WIDTH = 4, 32


def llamba_config(**changed: object) -> LlambaConfig:
    """Shape of the base."""
    fields: dict[str, object] = {
        "vocab_size": len(WORDS),
        "d_model": WIDTH,
        "n_layer": DEPTH,
        "mlp_cfg": {"intermediate_size": 48, "bias": False, "act_fn": "silu"},
        "ssm_cfg": {"d_state": 4, "n_v_heads": 2, "n_qk_heads": 2, "chunk_size": 8},
        "eos_token_id": 1,
        "pad_token_id": 0,
        "max_position_embeddings": 512,
    }
    return LlambaConfig(**(fields | changed))


def write_tokenizer(folder: Path) -> None:
    """Save a tokenizer of WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_donor(folder: Path, *, width: int = WIDTH, depth: int = DEPTH, seed: int = 1) -> Path:
    """Save a random Llama model, sharded, with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=512,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    write_tokenizer(folder)
    return folder


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: it fails in the midst of a write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the making of a checkpoint is refused."""
    from evaluation.entry import run_tool
    from model_preparation.create_replaced_model_checkpoint import main

    assert run_tool("create", main, command) == 2
    error = capsys.readouterr().err.splitlines()
    beside = ("pair ", "1 files are whole and kept in ")  # a file may be whole before what does not fit is seen
    lines = [line for line in error if not line.startswith(beside)]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a base and of a donor; the names are as awkward as users' are."""
    root = tmp_path_factory.mktemp("it's a pair")
    torch.manual_seed(0)
    LlambaForCausalLM(llamba_config()).to(torch.bfloat16).save_pretrained(root / "base")
    return root / "base", write_donor(root / "donor")


@pytest.fixture(scope="session")
def pair_name(folders: tuple[Path, Path]) -> str:
    """What --pair takes for them."""
    return os.pathsep.join(map(str, folders))


@pytest.fixture(scope="session")
def layers_dir(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The donor's layers, extracted; shared, so not to be changed."""
    from model_preparation.extract_layers import extract

    folder = tmp_path_factory.mktemp("layers") / "extracted"
    extract(folders[1], folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(pair_name: str, layers_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with layers 1 and 3 of the donor; shared, so not to be changed."""
    from model_preparation.create_replaced_model_checkpoint import main

    folder = tmp_path_factory.mktemp("made here") / "a checkpoint"
    command = ["--pair", pair_name, "--llama_layers_dir", str(layers_dir), "--output_dir", str(folder)]
    assert main([*command, "--layers", "3", "1", "--description", "for tests", "--score", "0.57"]) == 0
    return folder


@pytest.fixture(autouse=True)
def no_pair_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell of the person who runs the tests says must not matter."""
    for name in ("PAIR", "BASE", "DONOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def model_pt_opens() -> None:
    """As where the project is installed; tests also run from a clone that is not."""
    from model_preparation.saved_model import allow_in_weights_only_load

    allow_in_weights_only_load()
