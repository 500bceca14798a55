"""What is downloaded from a hub, what is not, and how a download goes on that was cut off."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import hf_hub_download
from safetensors.numpy import save

from model_preparation import hubs
from models.pairs import HubModel, Source
from tests.model_preparation.conftest import files_of_at_most
from tests.model_preparation.hub_server import COMMIT, HubServer
from tests.model_preparation.hubs.conftest import FILES, WEIGHTS, contents, in_process, refused, wait_for


def first_range(hub: HubServer) -> int:
    """Where the first request that names a range wants a file to begin."""
    ranges = [one.range for one in hub.asked if one.range]
    return int(ranges[0].removeprefix("bytes=").removesuffix("-"))


def unfinished(cache: Path, size: int = 0) -> list[Path]:
    """Files there that came in part, at least `size` bytes."""
    found = []
    for path in cache.rglob("*.incomplete"):
        with suppress(FileNotFoundError):  # whole by now
            if path.stat().st_size >= size:
                found.append(path)
    return found


def test_only_what_is_read_is_downloaded_and_its_size_is_said_before(
    hub: HubServer, model: HubModel, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hubs.cached(model) is None
    assert hub.asked == []
    folder = hubs.download(model)
    assert contents(folder) == FILES
    sent = [one.file for one in hub.asked if one.sent]
    assert sorted(sent) == sorted(FILES)
    assert sent[-1] == "model.safetensors"  # so that with weights everything is there
    told = capsys.readouterr().err.splitlines()[0]
    assert told == f"downloading org/model (0.3 MB in {len(FILES)} files) from 127.0.0.1:{hub.port} to {cache}"
    assert not (cache.parent / "escaped.json").exists()


def test_what_is_here_is_neither_asked_for_nor_sent_again(
    hub: HubServer, model: HubModel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hubs.download(model)
    hub.asked.clear()
    assert hubs.cached(model) == folder
    assert hub.asked == []
    capsys.readouterr()
    assert hubs.download(model) == folder
    assert hub.sent == 0
    assert "downloading org/model" not in capsys.readouterr().err


def test_what_the_library_fetched_is_found(hub: HubServer) -> None:
    model = HubModel(hub="huggingface", id="org/model")
    for name in FILES:
        path = hf_hub_download("org/model", name)
    assert hubs.cached(model) == Path(path).parent


def test_a_download_that_was_cut_off_goes_on_where_it_was(
    hub: HubServer, model: HubModel, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.cut_after = 200_000
    told = refused(model)  # the double then refuses all that is asked
    assert told.endswith(("run again later", "check the network and MODELSCOPE_ENDPOINT, and run again to go on"))
    first = hub.sent
    hub.cut_after, hub.status = None, None
    hub.asked.clear()
    capsys.readouterr()
    folder = hubs.download(model)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    begin = first_range(hub)
    assert 180_000 < begin <= 200_000
    assert hub.sent == len(WEIGHTS) - begin
    assert first + hub.sent < sum(map(len, FILES.values())) + 20_000
    assert ", 0.1 MB of them still to get) from" in capsys.readouterr().err


def test_a_download_that_was_killed_goes_on_where_it_was(hub: HubServer, model: HubModel, cache: Path) -> None:
    hub.stall_after = 200_000
    process = in_process(model)
    wait_for(lambda: unfinished(cache, 180_000))
    process.kill()
    process.join()
    assert hubs.cached(model) is None
    hub.stall_after = None
    hub.stalled.set()
    hub.asked.clear()
    here = unfinished(cache)[0].stat().st_size
    folder = hubs.download(model)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert first_range(hub) == here
    assert hub.sent == len(WEIGHTS) - here
    assert not unfinished(cache)


def test_a_disk_that_fills_up_is_said_and_the_download_goes_on_later(hub: HubServer, model: HubModel) -> None:
    with files_of_at_most(200_000):
        assert "org/model cannot be written to" in refused(model)
    hub.asked.clear()
    assert contents(hubs.download(model)) == FILES
    assert hub.sent <= len(WEIGHTS) - 180_000


def test_a_hub_that_knows_no_ranges_sends_all_again(hub: HubServer, model: HubModel) -> None:
    hub.cut_after = 200_000
    refused(model)
    hub.cut_after, hub.status, hub.ranges = None, None, False
    assert contents(hubs.download(model)) == FILES


def test_a_beginning_longer_than_the_file_is_thrown_away(hub: HubServer, model: HubModel, cache: Path) -> None:
    hub.cut_after = 200_000
    refused(model)
    hub.cut_after, hub.status = None, None
    os.truncate(unfinished(cache)[0], len(WEIGHTS) + 1000)
    assert contents(hubs.download(model)) == FILES


def test_a_file_that_only_lacked_its_name_is_not_sent_again(hub: HubServer, model: HubModel) -> None:
    folder = hubs.download(model)
    weights = (folder / "model.safetensors").resolve()
    weights.rename(weights.with_name(f"{weights.name}.incomplete"))
    assert hubs.cached(model) is None
    hub.asked.clear()
    assert contents(hubs.download(model)) == FILES
    assert hub.sent == 0


def test_two_processes_that_want_the_same_download_it_once(
    hub: HubServer, model: HubModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 1)
    hub.stall_after = 100_000
    first = in_process(model)
    wait_for(lambda: unfinished(cache, 80_000))
    before = len(hub.asked)
    second = in_process(model)
    wait_for(lambda: len(hub.asked) > before)
    second.join(0.3)  # long enough to ask for the weights as well, were that not forbidden
    hub.stall_after = None
    hub.stalled.set()
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 0
    sent = sum(one.sent for one in hub.asked if one.file == "model.safetensors")
    assert len(WEIGHTS) <= sent < len(WEIGHTS) + 20_000
    folder = hubs.cached(model)
    assert folder is not None
    assert contents(folder) == FILES


def test_what_has_come_in_part_is_no_model(hub: HubServer, model: HubModel) -> None:
    folder = hubs.download(model)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    first, second = folder / names[0], folder / names[1]
    first.write_bytes(save({"a": np.zeros(4, dtype=np.uint8)}))
    assert hubs.cached(model) is None
    second.write_bytes(save({"b": np.zeros(4, dtype=np.uint8)}))
    assert hubs.cached(model) == folder
    os.truncate(second, second.stat().st_size - 1)
    assert hubs.cached(model) is None
    second.write_bytes(save({"b": np.zeros(4, dtype=np.uint8)}))
    (folder / "config.json").unlink()
    assert hubs.cached(model) is None


def test_a_file_cut_short_in_the_cache_is_fetched_again(
    hub: HubServer, model: HubModel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hubs.download(model)
    os.truncate(folder / "model.safetensors", len(WEIGHTS) - 7)
    assert hubs.cached(model) is None
    capsys.readouterr()
    assert hubs.download(model) == folder
    assert "0.3 MB of them still to get" in capsys.readouterr().err
    assert contents(folder) == FILES


def test_weights_are_pickled_ones_where_there_are_no_others(hub: HubServer, model: HubModel, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights")
    pickled = (tmp_path / "weights").read_bytes()
    hub.models["org/model"] = {"config.json": b"{}", "pytorch_model.bin": pickled, "training.bin": b"state"}
    folder = hubs.download(model)
    assert contents(folder) == {"config.json": b"{}", "pytorch_model.bin": pickled}
    assert hubs.cached(model) == folder


def test_a_pinned_revision_is_that_one_and_no_other(hub: HubServer, model: HubModel) -> None:
    pinned = HubModel(hub=model.hub, id=model.id, revision=COMMIT)
    folder = hubs.download(pinned)
    assert hubs.revision_of(folder) == COMMIT
    (known,) = Source.parse(hubs.origin(folder) or "").hubs
    assert known == pinned
    assert hubs.cached(pinned) == folder
    assert hubs.cached(HubModel(hub=model.hub, id=model.id, revision="1" * 40)) is None


def test_all_files_are_of_the_commit_that_was_listed(hub: HubServer) -> None:
    hubs.download(HubModel(hub="huggingface", id="org/model"))
    asked = [one.path for one in hub.asked if "/resolve/" in one.path]
    assert [path for path in asked if COMMIT not in path] == ["/org/model/resolve/main/config.json"]
    assert asked[-1] == "/org/model/resolve/main/config.json"  # whereby the cache learns that it has the branch


def test_the_commit_of_a_folder_is_told_where_its_place_tells_it(hub: HubServer, tmp_path: Path) -> None:
    assert hubs.revision_of(hubs.download(HubModel(hub="huggingface", id="org/model"))) == COMMIT
    for folder in (tmp_path / COMMIT, hubs.download(HubModel(hub="modelscope", id="org/model"))):
        assert hubs.revision_of(folder) is None
        assert hubs.origin(folder) is None


def test_an_old_cache_of_modelscope_is_used_unless_a_revision_is_asked_for(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "ms" / "org" / "model"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    assert hubs.cached(HubModel(hub="modelscope", id="org/model")) == folder
    assert hubs.cached(HubModel(hub="modelscope", id="org/model", revision=COMMIT)) is None
    assert hub.asked == []
