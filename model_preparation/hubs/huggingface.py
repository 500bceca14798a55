"""A model on Hugging Face, or on a mirror of it, by way of huggingface_hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from model_preparation.files import sha256
from model_preparation.hubs.base import UNFINISHED, Hub, HubError, HubFile, brief
from models.pairs import PAIRS, HubModel

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMEOUT_S = 30  # for the listing; the library's own default is to wait for ever


class HuggingFace(Hub):
    """A model on Hugging Face."""

    cache_variable, endpoint_variable, token_variable = "HF_HOME", "HF_ENDPOINT", "HF_TOKEN"
    own_hosts = ("huggingface.co",)

    def __init__(self, model: HubModel) -> None:
        super().__init__(model, Path(constants.HF_HUB_CACHE), constants.ENDPOINT)
        self._token = False if self.is_mirror else None  # None: the user's, where there is one
        self._commit = ""

    def folder(self) -> Path | None:
        """As `Hub.folder`."""
        path = self._cached("config.json", self.model.revision)
        return path.parent if path else None

    def files(self) -> list[HubFile]:
        """As `Hub.files`; all at one commit, whatever happens to the branch meanwhile."""
        api = HfApi(token=self._token)
        info = api.model_info(self.model.id, revision=self.model.revision, files_metadata=True, timeout=_TIMEOUT_S)
        self._commit = str(info.sha)
        found = []
        for one in info.siblings or ():
            digest = one.lfs.sha256 if one.lfs else ""
            # It becomes part of a path, so nothing else will do.
            found.append(HubFile(one.rfilename, one.size or 0, digest if _SHA256.fullmatch(digest) else None))
        return found

    def places(self, file: HubFile) -> list[Path]:
        """As `Hub.places`."""
        cached = self._cached(file.name, self._commit)
        blobs = self._blob(file.sha256) if file.sha256 else ()
        return [*((cached,) if cached else ()), *blobs]

    def fetch(self, small: Sequence[HubFile], weights: Sequence[HubFile]) -> Path:
        """As `Hub.fetch`."""
        for file in (*small, *weights):
            if not self._is_here(file) and file.sha256:
                self._fetch_large(file, file.sha256)
            path = hf_hub_download(self.model.id, file.name, revision=self._commit, token=self._token)
        return Path(path).parent

    def settle(self) -> None:
        """As `Hub.settle`: the library notes which commit the branch is at, which is where `folder` looks."""
        hf_hub_download(self.model.id, "config.json", revision=self.model.revision, token=self._token)

    def explain(self, error: BaseException) -> str | None:
        """As `Hub.explain`."""
        match error:
            case errors.HFValidationError():
                return f"{self.model.id} can be no model on {self.host}: {brief(error)}"
            case errors.GatedRepoError():
                return self._about_gate()
            case errors.RevisionNotFoundError():
                revision = f"{self.host} has no revision {self.model.revision!r} of {self.model.id}"
                return f"{revision}; name another, or none for the newest"
            case errors.RepositoryNotFoundError():
                return self.about_missing()
            case errors.HfHubHTTPError():
                return self.about_status(error.response.status_code, error)
            case errors.LocalEntryNotFoundError() if error.__cause__:
                return self.reason(error.__cause__)
            case errors.HTTPError() | ConnectionError():
                return self.about_network(error)
            case OSError() | ValueError():
                return f"{self.host} does not answer as a hub does for {self.model.id}: {brief(error)}"
        return None

    def _cached(self, name: str, revision: str | None) -> Path | None:
        found = try_to_load_from_cache(self.model.id, name, revision=revision)
        return Path(found) if isinstance(found, str) else None

    def _blob(self, digest: str) -> tuple[Path, Path]:
        """Where the cache keeps a large file, and where its beginning."""
        blobs = self.cache / repo_folder_name(repo_id=self.model.id, repo_type="model") / "blobs"
        return blobs / digest, blobs / f"{digest}{UNFINISHED}"

    def _is_here(self, file: HubFile) -> bool:
        """Whether the cache has a file whole; it is removed if it is damaged, as the library does not look that far."""
        found = [path for path in self.places(file) if path.suffix != UNFINISHED and path.is_file()]
        for path in found:
            if file.size and path.is_file() and path.stat().st_size != file.size:
                path.resolve().unlink()
        return any(path.is_file() for path in found)

    def _fetch_large(self, file: HubFile, digest: str) -> None:
        """Download a file to where the library looks for it, going on with what came before.

        The library (1.31 to 2.4) goes on within a call only; what it has of a file when it is stopped, which may be
        ten gigabytes, it throws away. Its cache keeps large files in `blobs` under their SHA-256, and until 1.10 the
        beginning of one beside it by the name used here, under the lock used here:
        https://huggingface.co/docs/huggingface_hub/guides/manage-cache
        """
        blob, part = self._blob(digest)
        lock = self.cache / ".locks" / blob.parent.parent.name / f"{digest}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if blob.is_file():  # by another process, while this one waited
                return
            with part.open("ab") as stream:
                here = stream.seek(0, os.SEEK_END)
                if here > file.size:
                    here = stream.truncate(0)
                try:
                    http_get(
                        hf_hub_url(self.model.id, file.name, revision=self._commit),
                        stream,
                        resume_size=here,
                        headers=build_hf_headers(token=self._token),
                        expected_size=file.size,
                        displayed_filename=file.name,
                    )
                except OSError as error:
                    answer = getattr(error, "response", None)
                    if error.errno is None and (answer is None or answer.status_code == 416):  # not of that length
                        part.unlink()
                        raise HubError(self.about_content(file.name)) from error
                    raise
            if sha256(part) != digest:
                part.unlink()
                raise HubError(self.about_content(file.name))
            os.replace(part, blob)

    def _about_gate(self) -> str:
        licence = f"accept its licence at https://huggingface.co/{self.model.id}"
        mirror = f", and {self.about_token()}" if self.is_mirror else ""
        token = f"set HF_TOKEN or run `hf auth login`{mirror}"
        sources = [source for pair in PAIRS.values() for source in (pair.base, pair.donor)]
        hubs = [source.hubs for source in sources if self.model.id in (hub.id for hub in source.hubs)]
        others = [hub.id for same in hubs for hub in same if hub.hub == "modelscope"]
        other = f"ms:{others[0]}, on ModelScope, needs neither" if others else "ModelScope may have it without (ms:ID)"
        return f"{self.model.id} is gated: {licence}, then {token}; {other}"
