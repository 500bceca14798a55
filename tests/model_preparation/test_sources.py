"""Which pair is used and why; models from the caches first, then from hubs, honestly reported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evaluation.entry import run_tool
from model_preparation import get_model_modelscope, sources
from model_preparation.modelscope_utils import main
from model_preparation.sources import choose_pair, locate, source_name
from models.errors import ModelError
from models.pairs import get_pair


class Hub:
    """Stands in for a hub library: what it has, here or there, and what was asked of it."""

    def __init__(self, *, here: Path | None = None, there: Path | None = None) -> None:
        self.here, self.there, self.asked = here, there, []  # type: ignore[var-annotated]

    def snapshot_download(self, model_id: str, *, local_files_only: bool, **_: object) -> str:
        self.asked.append("here" if local_files_only else "there")
        found = self.here if local_files_only else self.there
        if found is None:
            raise OSError("not in the cache" if local_files_only else "401 gated, ask for access\nsecond line")
        return str(found)


def put_up(monkeypatch: pytest.MonkeyPatch, *, modelscope: Hub, huggingface: Hub) -> None:
    """Replace both libraries."""
    for name, hub in (("modelscope", modelscope), ("huggingface_hub", huggingface)):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(snapshot_download=hub.snapshot_download))


@pytest.fixture(autouse=True)
def no_extracted_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the user's own extracted layers out of it."""
    monkeypatch.setattr(sources, "default_layers_dir", lambda: tmp_path / "none")


def test_the_pair_is_the_first_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choose_pair(None).pair.name == "tiny"
    about = {"pair": "llamba-8b", "source": "x", "num_layers": 1, "files": {}}
    (tmp_path / "metadata.json").write_text(json.dumps(about))
    by_layers = choose_pair(None, tmp_path)
    assert (by_layers.pair.name, by_layers.reason) == ("llamba-8b", f"the layers in {tmp_path}")
    monkeypatch.setenv("PAIR", "tiny")
    assert choose_pair(None, tmp_path).reason == "PAIR in the environment"
    assert choose_pair("llamba-8b", tmp_path).reason == "--pair"


def test_an_unknown_pair_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("modelscope_utils.py", main, ["--pair", "tinny"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean 'tiny'" in error


def test_what_was_downloaded_before_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path]
) -> None:
    modelscope, huggingface = Hub(), Hub(here=folders[1])
    put_up(monkeypatch, modelscope=modelscope, huggingface=huggingface)
    assert locate(get_pair("llamba-8b"), "donor") == folders[1]
    assert modelscope.asked == huggingface.asked == ["here"]


def test_a_download_that_was_cut_off_is_carried_on(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for path in folders[1].iterdir():
        if not path.name.startswith("model-00002"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    modelscope = Hub(here=tmp_path, there=folders[1])
    put_up(monkeypatch, modelscope=modelscope, huggingface=Hub())
    assert locate(get_pair("llamba-8b"), "donor") == folders[1]
    assert modelscope.asked == ["here", "there"]


def test_the_second_source_is_tried_and_the_order_is_the_pairs(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    modelscope, huggingface = Hub(), Hub(there=folders[1])
    put_up(monkeypatch, modelscope=modelscope, huggingface=huggingface)
    assert locate(get_pair("llamba-8b"), "donor") == folders[1]
    assert modelscope.asked == huggingface.asked == ["here", "there"]
    told = capsys.readouterr().err.splitlines()
    assert ["modelscope" in line for line in told] == [True, False]


def test_where_nothing_helps_each_source_is_quoted_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_up(monkeypatch, modelscope=Hub(), huggingface=Hub())
    assert run_tool("modelscope_utils.py", main, ["--pair", "llamba-8b"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "huggingface (goombalab/Llamba-8B-untied-unaligned): 401 gated" in line
    assert "HF_ENDPOINT" in line
    assert run_tool("modelscope_utils.py", main, ["--pair", "llamba-8b", "--offline"]) == 2
    assert "download it with" in capsys.readouterr().err


def test_the_four_values_of_the_guide(pair_name: str, folders: tuple[Path, Path]) -> None:
    model, tokenizer, config, folder = get_model_modelscope("unaligned_llamba", pair=pair_name)
    assert (model.config.n_layer, config, folder) == (4, model.config, str(folders[0]))
    assert tokenizer("Hello")["input_ids"] == [3]  # the base has no tokenizer; it is the donor's
    llama, *_ = get_model_modelscope("llama", pair=pair_name)
    assert llama.config.model_type == "llama"
    assert next(model.parameters()).dtype == next(llama.parameters()).dtype == torch.bfloat16
    hybrid, *_ = get_model_modelscope("unaligned_llamba", layers=[2], pair=pair_name, dtype=torch.float32)
    assert hybrid.config.attention_layers == (2,)


@pytest.mark.parametrize("name", ["unaligned_lamba", "/nowhere"])
def test_an_unknown_model_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no model is called"):
        get_model_modelscope(name)


def test_layers_belong_in_a_base(pair_name: str, folders: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match="not into a donor"):
        get_model_modelscope("llama", layers=[1], pair=pair_name)
    with pytest.raises(ModelError, match="layers need a donor"):
        get_model_modelscope(str(folders[0]), layers=[1])


def test_names_for_what_is_written_into_checkpoints(pair_name: str, folders: tuple[Path, Path]) -> None:
    assert source_name(get_pair("tiny"), "base") == "tiny/base"
    assert source_name(get_pair("llamba-8b"), "base") == "goombalab/Llamba-8B-untied-unaligned"
    assert source_name(get_pair(pair_name), "donor") == str(folders[1])
