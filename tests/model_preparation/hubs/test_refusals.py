"""What is said when a hub does not give a model, and to whom a token is shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from huggingface_hub import constants

from model_preparation import hubs
from model_preparation.hubs.huggingface import HuggingFace
from model_preparation.hubs.modelscope import ModelScope
from models.errors import ModelError
from models.pairs import HubModel
from tests.model_preparation.hub_server import HubServer
from tests.model_preparation.hubs.conftest import FILES, WEIGHTS, contents, reach, refused


def test_errors_of_hubs_are_of_the_kind_that_tools_print() -> None:
    assert issubclass(hubs.HubError, ModelError)


@pytest.mark.parametrize(
    ("status", "said"),
    [(503, "is out of order (HTTP 503)"), (500, "(HTTP 500)"), (429, "gets too many requests"), (403, "(HTTP 403")],
)
def test_a_hub_that_refuses_is_quoted(
    hub: HubServer, model: HubModel, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status = status
    line = refused(model)
    assert said in line
    assert "org/model" in line
    assert f"127.0.0.1:{hub.port}" in line
    assert capsys.readouterr().err == ""


def test_no_network_is_said(
    hub: HubServer, model: HubModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with HubServer().running() as gone:
        pass
    reach(gone.url, monkeypatch)
    line = refused(model)
    assert f"127.0.0.1:{gone.port} cannot be reached for org/model ([Errno 111] Connection refused)" in line
    assert {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}[model.hub] in line
    assert capsys.readouterr().err == ""


def test_no_network_after_the_listing_is_said(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    files = HuggingFace(HubModel(hub="huggingface", id="org/model"))
    listed = files.files()
    with HubServer().running() as gone:
        pass
    reach(gone.url, monkeypatch)
    with pytest.raises(hubs.HubError, match=r"cannot be reached for org/model \(\[Errno 111\]"), files.explained():
        files.fetch(listed[:1], ())


def test_what_is_raised_is_not_logged_as_well(
    hub: HubServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("modelscope_hub")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    level = logger.level
    hub.cut_after = 200_000
    refused(HubModel(hub="modelscope", id="org/model"))
    assert caplog.records == []
    assert logger.level == level


def test_an_unknown_model_or_revision_is_said(hub: HubServer, model: HubModel) -> None:
    unknown = HubModel(hub=model.hub, id="org/modle")
    assert f"127.0.0.1:{hub.port} shows no model org/modle; check the id" in refused(unknown)
    line = refused(HubModel(hub=model.hub, id="org/model", revision="v9"))
    assert "revision 'v9'" in line
    assert "org/model" in line


def test_what_cannot_be_an_id_is_said(hub: HubServer) -> None:
    with pytest.raises(hubs.HubError, match="org--x/model can be no model on 127"):
        hubs.cached(HubModel(hub="huggingface", id="org--x/model"))


def test_a_gated_model_is_explained_with_the_way_out(hub: HubServer) -> None:
    hub.models["meta-llama/Llama-3.1-8B-Instruct"] = FILES
    hub.gated |= {"meta-llama/Llama-3.1-8B-Instruct", "org/model"}
    line = refused(HubModel(hub="huggingface", id="meta-llama/Llama-3.1-8B-Instruct"))
    assert "accept its licence at https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct" in line
    assert "set HF_TOKEN or run `hf auth login`, and unset HF_ENDPOINT, because mirrors get no token" in line
    assert "ms:LLM-Research/Meta-Llama-3.1-8B-Instruct" in line
    assert "(ms:ID)" in refused(HubModel(hub="huggingface", id="org/model"))


def test_a_disk_with_too_little_room_is_refused_before_anything_comes(
    hub: HubServer, model: HubModel, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.listed["model.safetensors"] = 10**15
    line = refused(model)
    assert line.startswith(f"no room for org/model: {cache.parent}")
    assert "GB free and this needs 1000000.1 GB" in line
    assert {"huggingface": "HF_HOME", "modelscope": "MODELSCOPE_CACHE"}[model.hub] in line
    assert hub.sent == 0
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_is_said(hub: HubServer, model: HubModel, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(hubs.HubError, match="org/model cannot be written to"):
        hubs.download(model)


@pytest.mark.parametrize(
    "sent", [WEIGHTS[:-1] + b"x", WEIGHTS[:-500], WEIGHTS + b"more"], ids=["changed", "short", "long"]
)
def test_another_file_than_is_listed_is_refused_by_name(hub: HubServer, model: HubModel, sent: bytes) -> None:
    hub.wrong["model.safetensors"] = sent
    line = refused(model)
    assert f"127.0.0.1:{hub.port} sends another model.safetensors of org/model than it lists; run again" in line
    hub.wrong.clear()
    assert contents(hubs.download(model)) == FILES


def test_a_file_that_is_shorter_now_than_what_has_come_is_refused_by_name(
    hub: HubServer, model: HubModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut_after = 200_000
    refused(model)
    hub.cut_after, hub.status = None, None
    hub.wrong["model.safetensors"] = WEIGHTS[:100_000]
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 1)  # the second time without a range
    assert "sends another model.safetensors of org/model than it lists" in refused(model)
    hub.wrong.clear()
    assert contents(hubs.download(model)) == FILES


def test_a_small_file_that_is_not_as_listed_is_refused_by_name(hub: HubServer, model: HubModel) -> None:
    hub.listed["tokenizer.model"] = 5
    assert "tokenizer.model" in refused(model)


@pytest.mark.parametrize(
    ("files", "lacking"),
    [({"README.md": b"hello"}, "no config.json and no model*.safetensors"), (FILES, "no config.json;")],
)
def test_what_is_no_model_is_not_downloaded(
    hub: HubServer, model: HubModel, files: dict[str, bytes], lacking: str
) -> None:
    hub.models["org/model"] = {name: content for name, content in files.items() if name != "config.json"}
    assert f"org/model has {lacking}" in refused(model)
    assert hub.sent == 0


def test_a_checksum_that_is_none_names_no_file(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.model_preparation.hub_server._sha256", lambda _: "../../../escaped")
    files = HuggingFace(HubModel(hub="huggingface", id="org/model")).files()
    assert {file.sha256 for file in files} == {None}


def test_no_token_goes_to_a_mirror(hub: HubServer, model: HubModel) -> None:
    hubs.download(model)
    assert [one for one in hub.asked if one.secrets] == []


@pytest.mark.parametrize(
    ("endpoint", "is_mirror"),
    [
        ("https://huggingface.co", False),
        ("http://huggingface.co", True),
        ("https://huggingface.co.example.org", True),
        ("https://example.org/huggingface.co", True),
        ("https://huggingface.co@example.org", True),
        ("hf-mirror.com", True),
    ],
)
def test_only_the_hub_itself_is_no_mirror(monkeypatch: pytest.MonkeyPatch, endpoint: str, is_mirror: bool) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert HuggingFace(HubModel(hub="huggingface", id="org/model")).is_mirror is is_mirror


def test_the_token_goes_to_the_hub_and_not_to_where_it_stores_files(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (HuggingFace, ModelScope):
        monkeypatch.setattr(kind, "is_mirror", property(lambda _: False, lambda *_: None), raising=False)
    hubs.download(HubModel(hub="huggingface", id="org/model"))
    assert any(one.secrets == ("Bearer hf_secret",) for one in hub.asked if "/resolve/" in one.path)
    assert not any(one.secrets for one in hub.asked if "/storage/" in one.path)
    hub.asked.clear()
    hubs.download(HubModel(hub="modelscope", id="org/model"))
    assert any("Bearer ms_secret" in one.secrets for one in hub.asked)
