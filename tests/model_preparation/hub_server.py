"""A hub on this machine, for tests: as much of the protocols of Hugging Face and of ModelScope as downloading takes.

What the libraries ask for was found by running huggingface_hub 2.4 and modelscope 1.40 against it. Like the real
hubs it lists sizes and checksums, honours ranges, and sends large files of Hugging Face from another host.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".pth")
"""Kept in git's large file storage, with a SHA-256 for its name; anything else by its hash in git."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and what it was answered."""

    path: str
    file: str
    """Name in the model; empty where no content was asked for."""
    range: str | None
    secrets: tuple[str, ...]
    """Values of headers that say who asks."""
    sent: int
    """Bytes of content."""


@dataclass(slots=True)
class HubServer:
    """Models by id, and switches for what goes wrong."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", "master", COMMIT)
    gated: set[str] = field(default_factory=set)
    """Ids of models whose files are shown to nobody."""
    listed: dict[str, int] = field(default_factory=dict)
    """Sizes that listings tell for files by name, where they are not the true ones."""
    wrong: dict[str, bytes] = field(default_factory=dict)
    """Contents that are sent for files by name, unlike what the listing tells."""
    cut_after: int | None = None
    """Bytes of a large file after which the connection is cut; then the hub is down."""
    stall_after: int | None = None
    """Bytes of a large file after which nothing more comes until `stalled` is cleared."""
    stalled: threading.Event = field(default_factory=threading.Event)
    status: int | None = None
    """What every request is answered, where that is not None."""
    ranges: bool = True
    """Whether ranges are honoured."""
    port: int = 0
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of both hubs."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def sent(self) -> int:
        """Bytes of content so far."""
        return sum(one.sent for one in self.asked)

    def files_sent(self) -> set[str]:
        """Names of files of which content was sent."""
        return {one.file for one in self.asked if one.sent}

    def add(self, model_id: str, folder: Path) -> None:
        """Offer a folder as a model."""
        self.models[model_id] = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        """Serve on a free port while the body runs."""
        handler = type("Handler", (_Handler,), {"hub": self})
        with _Server(("127.0.0.1", self.port), handler) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self.stalled.set()
                server.shutdown()
                thread.join()


class _Server(ThreadingHTTPServer):
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Clients may go in the midst of an answer: that is what is tested."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the other side

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        where = unquote(parts.path).strip("/").split("/")
        match where:
            case _ if self.hub.status is not None:
                self.refuse(self.hub.status)
            case ["api", "models", owner, name]:
                self.model_info(f"{owner}/{name}", "main")
            case ["api", "models", owner, name, "revision", revision]:
                self.model_info(f"{owner}/{name}", revision)
            case [owner, name, "resolve", revision, *path]:
                self.resolve(f"{owner}/{name}", revision, "/".join(path))
            case ["storage", owner, name, *path]:
                self.content(self.hub.models[f"{owner}/{name}"], "/".join(path))
            case ["api", "v1", "models", owner, name, "repo", "files"]:
                self.list_files(f"{owner}/{name}", query["Revision"])
            case ["api", "v1", "models", owner, name, "repo"]:
                if self.known(f"{owner}/{name}", query["Revision"]):
                    self.content(self.hub.models[f"{owner}/{name}"], query["FilePath"])
            case _:
                self.refuse(404)

    # Hugging Face

    def known(self, model_id: str, revision: str) -> bool:
        """Whether there is such a model; else it has been refused."""
        if model_id not in self.hub.models:
            self.refuse(404, code="RepoNotFound")
        elif revision not in self.hub.revisions:
            self.refuse(404, code="RevisionNotFound")
        else:
            return True
        return False

    def size(self, name: str, content: bytes) -> int:
        return self.hub.listed.get(name, len(content))

    def model_info(self, model_id: str, revision: str) -> None:
        if not self.known(model_id, revision):
            return
        siblings = []
        for name, content in self.hub.models[model_id].items():
            one: dict[str, Any] = {"rfilename": name, "size": self.size(name, content), "blobId": _git_hash(content)}
            if name.endswith(LARGE):
                sha256 = _sha256(content)
                one["lfs"] = {"sha256": sha256, "size": self.size(name, content), "pointerSize": 134}
            siblings.append(one)
        gated = "manual" if model_id in self.hub.gated else False
        self.answer({"id": model_id, "sha": COMMIT, "siblings": siblings, "gated": gated, "private": False})

    def resolve(self, model_id: str, revision: str, name: str) -> None:
        if not self.known(model_id, revision):
            return
        if model_id in self.hub.gated:
            self.refuse(401, code="GatedRepo")
            return
        content = self.hub.models[model_id].get(name)
        if content is None:
            self.refuse(404, code="EntryNotFound")
            return
        headers = {"X-Repo-Commit": COMMIT}
        if not name.endswith(LARGE):
            self.content(self.hub.models[model_id], name, headers | {"ETag": f'"{_git_hash(content)}"'})
            return
        headers |= {
            "X-Linked-ETag": f'"{_sha256(content)}"',
            "X-Linked-Size": str(self.size(name, content)),
            "Location": f"http://localhost:{self.hub.port}/storage/{model_id}/{name}",
        }
        self.answer(None, 302, headers)

    # ModelScope

    def list_files(self, model_id: str, revision: str) -> None:
        if not self.known(model_id, revision):
            return
        if model_id in self.hub.gated:
            self.refuse(403)
            return
        folders = {name.partition("/")[0] for name in self.hub.models[model_id] if "/" in name}
        files = [{"Path": name, "Name": name, "Type": "tree", "Size": 0} for name in sorted(folders)]
        for name, content in self.hub.models[model_id].items():
            sha256 = _sha256(content)
            base = name.rpartition("/")[2]
            files.append(
                {"Path": name, "Name": base, "Type": "blob", "Size": self.size(name, content), "Sha256": sha256}
            )
        self.answer({"Code": 200, "Data": {"Files": files}, "Message": "", "Success": True})

    # both

    def content(self, files: dict[str, bytes], name: str, headers: dict[str, str] | None = None) -> None:
        """Send a file, or the part of it that is asked for."""
        whole = self.hub.wrong.get(name, files[name])
        begin, status, headers = 0, 200, dict(headers or {})
        asked = self.headers.get("Range")
        if asked and self.hub.ranges:
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {begin}-{len(whole) - 1}/{len(whole)}"
            if begin >= len(whole):
                self.refuse(416)
                return
        body = whole[begin:]
        ends = len(body)
        cut, stall = (self.hub.cut_after, self.hub.stall_after) if name.endswith(LARGE) else (None, None)
        if self.command == "HEAD":
            ends = 0
        elif cut is not None:
            ends, self.hub.status = min(ends, cut), 503
        elif stall is not None:
            ends = min(ends, stall)
        self.note(name, ends)  # before the client can go on
        self.send_response(status)
        for header, value in ({"Content-Length": str(len(body)), "Accept-Ranges": "bytes"} | headers).items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body[:ends])
        if self.command != "HEAD" and ends < len(body):
            if stall is not None:
                self.hub.stalled.wait()
            self.close_connection = True

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        self.note("", 0)
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, *, code: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": "refused by the test"} if code else {}
        self.answer({"Code": status, "Message": "refused by the test", "error": "refused"}, status, headers)

    def note(self, file: str, sent: int) -> None:
        secrets = tuple(self.headers[name] for name in ("Authorization", "Cookie") if name in self.headers)
        self.hub.asked.append(Asked(self.path, file, self.headers.get("Range"), secrets, sent))


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
