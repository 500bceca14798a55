"""Which pair is used and why; models from the caches first, then from hubs, honestly reported."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evaluation.entry import run_tool
from evaluation.surroundings import interpreter
from model_preparation import get_model_modelscope, hubs, pair_facts, sources
from model_preparation.modelscope_utils import main
from model_preparation.sources import (
    add_pair_options,
    asked_pair,
    choose_pair,
    chosen_pair,
    donor_source,
    locate,
    locate_source,
    source_name,
    suitable_pair,
)
from models.errors import ModelError
from models.pairs import HubModel, Source, get_pair, make_pair


class Hubs:
    """Stands in for both hubs: what they have, here or there by id, and what was asked of them."""

    def __init__(self) -> None:
        self.here: dict[str, Path] = {}
        self.there: dict[str, Path] = {}
        self.asked: list[str] = []

    def cached(self, model: HubModel) -> Path | None:
        self.asked.append(f"here {model.hub}")
        return self.here.get(model.id)

    def download(self, model: HubModel) -> Path:
        self.asked.append(f"there {model.hub}")
        if model.id not in self.there:
            raise hubs.HubError(f"{model.hub} refuses {model.id}")
        return self.there[model.id]


LLAMA = {"modelscope": "LLM-Research/Meta-Llama-3.1-8B-Instruct", "huggingface": "meta-llama/Llama-3.1-8B-Instruct"}
BOTH_CACHES = ["here modelscope", "here huggingface"]


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hubs:
    """No test reaches a real hub, nor the user's own extracted layers."""
    fake = Hubs()
    monkeypatch.setattr(hubs, "cached", fake.cached)
    monkeypatch.setattr(hubs, "download", fake.download)
    monkeypatch.setattr(sources, "default_layers_dir", lambda: tmp_path / "none")
    return fake


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_pair_options(parser)
    return parser.parse_args(given)


def with_gpus(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(sizes))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=sizes[i]))


def test_the_pair_is_the_first_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_gpus(monkeypatch)
    assert choose_pair(None).pair.name == "tiny"
    about = {"pair": "llamba-8b", "source": "x", "num_layers": 1, "files": {}}
    (tmp_path / "metadata.json").write_text(json.dumps(about))
    by_layers = choose_pair(None, tmp_path)
    assert (by_layers.pair.name, by_layers.reason) == ("llamba-8b", f"the layers in {tmp_path}")
    monkeypatch.setenv("PAIR", "tiny")
    assert choose_pair(None, tmp_path).reason == "PAIR in the environment"
    assert choose_pair("llamba-8b", tmp_path).reason == "--pair"


def test_layers_of_models_that_are_gone_say_so(tmp_path: Path) -> None:
    about = {"pair": f"{tmp_path}/gone:tiny/donor", "source": "x", "num_layers": 1, "files": {}}
    (tmp_path / "metadata.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"the layers in .* are of a pair that is not here: the base '.*gone' is"):
        choose_pair(None, tmp_path)
    assert choose_pair("tiny", tmp_path).pair.name == "tiny"


@pytest.mark.parametrize(
    ("gpus", "name"), [([], "tiny"), ([17_000_000_000], "tiny"), ([8_000_000_000, 25_000_000_000], "llamba-8b")]
)
def test_where_none_is_named_the_largest_gpu_decides(
    gpus: list[int], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_gpus(monkeypatch, *gpus)
    assert suitable_pair().pair.name == choose_pair().pair.name == name
    assert pair_facts.main(["name"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{name}\n"
    assert told.err.startswith(f"pair {name} (")


def test_models_replace_those_of_a_pair_or_make_one(folders: tuple[Path, Path]) -> None:
    base, donor = map(str, folders)
    both = chosen_pair(options("--base", base, "--donor", donor))
    assert both == make_pair(base, donor)
    mixed = choose_pair("tiny", base=base)
    assert (mixed.pair.base.folder, mixed.pair.donor) == (base, get_pair("tiny").donor)
    assert mixed.reason == "--pair and --base"
    with pytest.raises(ModelError, match=r"the base .* has no donor"):
        chosen_pair(options("--base", base))


def test_options_and_environment_are_not_mixed(monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path]) -> None:
    monkeypatch.setenv("PAIR", "tiny")
    monkeypatch.setenv("BASE", str(folders[0]))
    asked = asked_pair()
    assert asked is not None
    assert asked.pair == make_pair(str(folders[0]), "tiny/donor")
    assert asked.reason == "PAIR and BASE in the environment"
    assert choose_pair("tiny").pair == get_pair("tiny")
    with pytest.raises(ModelError, match="the donor org/x has no base"):
        choose_pair(donor="org/x")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["--pair", "tinny"], "did you mean 'tiny'"),
        (["--pair", "tiny", "--base", "nowhere"], "the base 'nowhere' is neither a folder here nor a hub id"),
        (["--pair", "tiny", "--base", ".", "--donor", "."], "leave one of the three out"),
        (["--donor", "hf:nowhere"], "'hf:nowhere' is neither a folder here nor a hub id"),
        (["--pair", "models:nowhere"], "'nowhere' is neither"),
    ],
)
def test_what_is_no_pair_is_one_clear_line(
    command: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sources.ROOT)
    assert run_tool("modelscope_utils.py", main, command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert told in error


def test_what_was_downloaded_before_needs_no_network(hub: Hubs, folders: tuple[Path, Path]) -> None:
    hub.here[LLAMA["huggingface"]] = folders[1]
    assert locate(get_pair("llamba-8b"), "donor") == folders[1]
    assert hub.asked == BOTH_CACHES


def test_the_second_hub_is_tried_and_the_order_is_the_source_s(hub: Hubs, folders: tuple[Path, Path]) -> None:
    hub.there[LLAMA["huggingface"]] = folders[1]
    assert locate(get_pair("llamba-8b"), "donor") == folders[1]
    assert hub.asked == [*BOTH_CACHES, "there modelscope", "there huggingface"]
    hub.asked.clear()
    hub.there["org/name"] = folders[0]
    assert locate_source(Source.parse("org/name"), "the base") == folders[0]
    assert hub.asked == ["here huggingface", "here modelscope", "there huggingface"]


def test_where_nothing_helps_each_hub_is_quoted_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("modelscope_utils.py", main, ["--pair", "llamba-8b", "--base", "org/mine"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the base of the pair org/mine:llamba-8b/donor cannot be had: there is no folder org/mine, " in line
    assert line.endswith("say: huggingface refuses org/mine; modelscope refuses org/mine")
    assert run_tool("modelscope_utils.py", main, ["--pair", "llamba-8b", "--offline"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(f"download it with: {interpreter()} -m model_preparation.modelscope_utils --pair llamba-8b")


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"the base is not in .*gone; restore that folder"):
        locate_source(Source(spelling=gone, folder=gone), "the base")


def test_one_model_alone_is_enough_to_download(
    hub: Hubs, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.there["org/llama"] = folders[1]
    assert main(["--donor", "ms:org/llama"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pair": None, "donor": str(folders[1])}
    monkeypatch.setenv("BASE", str(folders[0]))
    assert main([]) == 0
    assert json.loads(capsys.readouterr().out) == {"pair": None, "base": str(folders[0])}
    assert main(["--base", "tiny/base", "--donor", "tiny/donor"]) == 0
    assert json.loads(capsys.readouterr().out)["pair"] == "tiny"


def test_the_zoo_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "base", "donor", "licence", "size"]
    assert rows[2].split() == [
        "llamba-8b-aligned",
        "cartesia-ai/Llamba-8B-untied",
        LLAMA["modelscope"],
        "llama3.1",
        "33.7",
        "GB",
    ]
    assert json.loads(last) == {"pairs": [row.split()[0] for row in rows]}


@pytest.mark.parametrize(
    ("model_name", "given", "expected"),
    [
        ("llama", ["--pair", "llamba-8b"], ("llamba-8b", "llamba-8b/donor")),
        ("llama", ["--donor", "hf:org/llama@v1"], (None, "hf:org/llama@v1")),
        ("llama", ["--pair", "tiny", "--donor", "org/llama"], ("tiny/base:org/llama", "org/llama")),
        ("llamba-1b", [], ("llamba-1b", "llamba-1b/donor")),
        ("org/llama", [], (None, "org/llama")),
        ("tiny/donor", [], (None, "tiny/donor")),
    ],
)
def test_whose_layers_are_extracted(
    model_name: str, given: list[str], expected: tuple[str | None, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIR", "no such pair")  # an option puts it out of force
    if not given:
        monkeypatch.delenv("PAIR")
    pair, source = donor_source(model_name, options(*given))
    assert (pair and pair.name, source.spelling) == expected


def test_the_layers_of_a_folder_are_extracted_by_its_name(folders: tuple[Path, Path]) -> None:
    assert donor_source(str(folders[1]), options()) == (None, Source.parse(str(folders[1])))


@pytest.mark.parametrize(
    ("model_name", "given", "told"),
    [
        ("nowhere", [], "--model_name 'nowhere' is neither a folder here nor a hub id"),
        ("llamba-8b", ["--pair", "tiny"], "names a donor already; leave out either it or --pair"),
        ("llama", ["--base", "org/x"], "the base org/x has no donor"),
    ],
)
def test_a_donor_that_cannot_be_is_refused(model_name: str, given: list[str], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        donor_source(model_name, options(*given))


def facts(capsys: pytest.CaptureFixture[str], *given: str) -> dict[str, str]:
    found: dict[str, Any] = {}
    for fact in ("name", "donor", "one_layer", "unseen_questions"):
        assert pair_facts.main([fact, *given]) == 0
        found[fact] = capsys.readouterr().out.removesuffix("\n")
    return found


def test_what_the_scripts_ask(capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]) -> None:
    expected = {"name": "tiny", "donor": "tiny/donor", "one_layer": "0", "unseen_questions": "--tasks tiny_heldout"}
    assert facts(capsys, "--pair", "tiny") == expected
    large = facts(capsys, "--pair", "llamba-8b")
    assert (large["one_layer"], large["unseen_questions"]) == ("17", "--limit 50")
    own = facts(capsys, "--base", str(folders[0]), "--donor", str(folders[1]))
    assert own["name"] == ":".join(map(str, folders))
    assert (own["donor"], own["one_layer"]) == (str(folders[1]), "0")


def test_the_four_values_of_the_guide(pair_name: str, folders: tuple[Path, Path]) -> None:
    model, tokenizer, config, folder = get_model_modelscope("unaligned_llamba", pair=pair_name)
    assert (model.config.n_layer, config, folder) == (4, model.config, str(folders[0]))
    assert tokenizer("Hello")["input_ids"] == [3]  # the base has no tokenizer; it is the donor's
    llama, *_ = get_model_modelscope("llama", pair=pair_name)
    assert llama.config.model_type == "llama"
    assert next(model.parameters()).dtype == next(llama.parameters()).dtype == torch.bfloat16
    hybrid, *_ = get_model_modelscope("unaligned_llamba", layers=[2], pair=pair_name, dtype=torch.float32)
    assert hybrid.config.attention_layers == (2,)


def test_a_model_of_a_hub_or_a_folder_is_had_by_its_id_or_path(hub: Hubs, folders: tuple[Path, Path]) -> None:
    hub.here["org/llama"] = folders[1]
    for name in ("hf:org/llama", os.path.relpath(folders[1])):
        model, _, _, folder = get_model_modelscope(name)
        assert (model.config.model_type, folder) == ("llama", str(folders[1]))


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
