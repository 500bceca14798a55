"""A server that both libraries take for their hub, and one model on it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import modelscope_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from model_preparation import hubs
from models.pairs import HubModel
from tests.model_preparation.hub_server import HubServer

WEIGHTS = save({"weight": np.arange(300_000, dtype=np.uint8)})
FILES = {
    "config.json": b'{"model_type": "test"}',
    "tokenizer.json": b"{}",
    "tokenizer.model": b"pieces",
    "LICENSE": b"take it",
    "USE_POLICY.md": b"be nice",
    "model.safetensors": WEIGHTS,
}
UNWANTED = {
    "README.md": b"# A model",
    "pytorch_model.bin": b"the same again",
    "consolidated.safetensors": b"and again",
    "original/consolidated.00.pth": b"and again",
    "onnx/config.json": b"{}",
    "modeling_test.py": b"raise SystemExit",
    "../escaped.json": b"{}",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """Has the model org/model; both caches are in tmp_path."""
    server = HubServer()
    server.models["org/model"] = FILES | UNWANTED
    with server.running():
        # The library reads its environment once, when it is imported; test_pair_from_hubs.py does it that way.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_secret")
        monkeypatch.setenv("NO_PROXY", "*")
        reach(server.url, monkeypatch)
        # Content is written in pieces small beside the small files of a test; and nobody has patience.
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
        monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _: None))
        monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_CHUNK_SIZE", 1 << 14)
        monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 0)
        monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
        monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
        yield server
    modelscope_hub.set_default_config(None)


def reach(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make that the address of both hubs."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
    modelscope_hub.set_default_config(None)


@pytest.fixture(params=["huggingface", "modelscope"])
def model(request: pytest.FixtureRequest) -> HubModel:
    """The same model on each hub."""
    return HubModel(hub=request.param, id="org/model")


@pytest.fixture
def cache(model: HubModel, tmp_path: Path) -> Path:
    """Of the model's hub."""
    return tmp_path / {"huggingface": "hf", "modelscope": "ms"}[model.hub]


def refused(model: HubModel) -> str:
    """The one line that a download ends with."""
    with pytest.raises(hubs.HubError) as raised:
        hubs.download(model)
    assert hubs.cached(model) is None
    line = str(raised.value)
    assert "\n" not in line
    assert line.isascii()
    return line


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files there, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_process(model: HubModel) -> multiprocessing.process.BaseProcess:
    """A process that downloads the model."""
    process = multiprocessing.get_context("fork").Process(target=hubs.download, args=(model,))
    process.start()
    return process


def wait_for(condition: Callable[[], object]) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
