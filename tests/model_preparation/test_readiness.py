"""What of a pair is here is told, and the hubs are asked side by side and not for long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from evaluation.surroundings import Finding, interpreter
from model_preparation import readiness
from model_preparation.hubs import reach
from models.pairs import PAIRS


class Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_hubs_are_asked_side_by_side_and_whatever_they_say_they_answer(answering: str) -> None:
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))
        places = {"a": answering, "d": "no address"}
        places |= {name: f"http://127.0.0.1:{silent.getsockname()[1]}" for name in ("b", "c")}
        places["e"] = f"http://127.0.0.1:{closed.getsockname()[1]}"
        began = time.monotonic()
        found = reach.ask(places, timeout_s=1.0)
        assert time.monotonic() - began < 3
    assert found["a"] is None
    assert "timed out" in (found["b"] or "")
    assert "timed out" in (found["c"] or "")
    assert "unknown url type" in (found["d"] or "")
    assert "refused" in (found["e"] or "")


def look(pair: str, **why: str | None) -> dict[str, Finding]:
    return {one.name: one for one in readiness.look(PAIRS[pair], Path("/"))}


@pytest.fixture
def hubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str | None]:
    """Why each hub does not answer; and caches that are empty."""
    why: dict[str, str | None] = {"Hugging Face": None, "ModelScope": "no route"}
    monkeypatch.setattr(reach, "ask", lambda places: why)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("model_preparation.hubs.cached", lambda model: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return why


def test_the_bundled_pair_lacks_nothing_even_where_no_hub_answers(hubs: dict[str, str | None]) -> None:
    hubs["Hugging Face"] = "no route"
    found = look("tiny")
    assert not [one for one in found.values() if one.problem]
    assert (found["base"].found or "").startswith("tiny/base in ")
    assert found["ModelScope"].command == (
        "www.modelscope.cn cannot be reached (no route); check the network, or name a mirror with MODELSCOPE_ENDPOINT"
    )


def test_what_is_not_here_of_a_pair_has_the_command_that_brings_it(
    hubs: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    found = look("llamba-8b")
    assert found["donor"].command == (
        f"a search fetches it; or download it with: {interpreter()} -m model_preparation.modelscope_utils "
        "--pair llamba-8b"
    )
    assert found["donor"].problem is None
    assert found["Hugging Face"].found == "mirror.example answers"
    assert found["questions"].problem is None  # a search fetches them
    hubs["Hugging Face"] = "no route"
    assert "give a copy of cais/mmlu with --mmlu-dir DIR" in (look("llamba-8b")["questions"].problem or "")
    assert f"; download it with: {interpreter()} -m" in (look("llamba-8b")["donor"].problem or "")
    hubs["ModelScope"] = None
    assert look("llamba-8b")["donor"].problem is None
    assert look("llamba-8b")["base"].problem is not None  # which ModelScope does not have
    (tmp_path / "datasets" / "cais___mmlu").mkdir(parents=True)
    assert look("llamba-8b")["questions"].found == f"MMLU in {tmp_path}/datasets/cais___mmlu"


def test_too_small_a_disk_for_the_download_is_a_problem(
    hubs: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "disks", lambda root: [Finding("disk of Hugging Face cache", "20.0 GB free at /x")])
    assert look("llamba-8b")["room"].problem == (
        "room missing (34.2 GB for the download of llamba-8b); free some space, or name other folders with "
        "HF_HOME and MODELSCOPE_CACHE"
    )
    assert "room" not in look("tiny")
    assert "room" not in look("llamba-1b")


def test_hubs_are_not_asked_where_the_user_is_offline(
    hubs: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    monkeypatch.setattr(reach, "ask", lambda places: pytest.fail("asked"))
    assert look("tiny")["ModelScope"].command == "not asked: unset HF_HUB_OFFLINE to ask it"
