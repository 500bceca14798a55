"""A model on ModelScope, by way of modelscope."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modelscope import HubApi, snapshot_download
from modelscope.hub import errors
from modelscope_hub import FileDownloadError, get_default_config
from requests import HTTPError

from model_preparation.hubs.base import UNFINISHED, Hub, HubFile, brief
from models.pairs import HubModel


class ModelScope(Hub):
    """A model on ModelScope."""

    cache_variable, endpoint_variable = "MODELSCOPE_CACHE", "MODELSCOPE_ENDPOINT"
    token_variable = "MODELSCOPE_API_TOKEN"
    own_hosts = ("modelscope.cn", "www.modelscope.cn", "modelscope.ai", "www.modelscope.ai")

    def __init__(self, model: HubModel) -> None:
        config = get_default_config()
        super().__init__(model, Path(config.cache_dir), str(config.endpoint))

    def folder(self) -> Path | None:
        """As `Hub.folder`."""
        try:
            with _quiet():
                found = snapshot_download(self.model.id, revision=self.model.revision, local_files_only=True)
        except errors.CacheNotFound:
            return None
        # Caches of modelscope before 1.38 have one folder for all revisions, which could be any of them.
        return Path(found) if self.model.revision in (None, Path(found).name) else None

    def files(self) -> list[HubFile]:
        """As `Hub.files`."""
        with _quiet():
            self.use(HubApi(token=self._token).resolve_endpoint_for_read(self.model.id))
            api = HubApi(endpoint=self.endpoint, token=self._token)
            listed = api.get_model_files(self.model.id, revision=self.model.revision)
        return [HubFile(one["Path"], one["Size"]) for one in listed]

    def places(self, file: HubFile) -> list[Path]:
        """As `Hub.places`."""
        folder = self.folder()
        return [folder / file.name, folder / f"{file.name}{UNFINISHED}"] if folder else []

    def fetch(self, small: Sequence[HubFile], weights: Sequence[HubFile]) -> Path:
        """As `Hub.fetch`; the library goes on with files that are there in part, and compares checksums."""
        with _quiet():
            for files in (small, weights):
                folder = snapshot_download(
                    self.model.id,
                    revision=self.model.revision,
                    allow_patterns=[file.name for file in files],
                    token=self._token,
                    endpoint=self.endpoint,
                )
        return Path(folder)

    def settle(self) -> None:
        """As `Hub.settle`: nothing to do."""

    def explain(self, error: BaseException) -> str | None:
        """As `Hub.explain`."""
        match error:
            case FileDownloadError() if error.failed_files:
                name, cause = next(iter(error.failed_files.items()))
                is_other = isinstance(cause, errors.FileIntegrityError)
                return self.about_content(name) if is_other else self.reason(cause) or self.about_network(cause)
            case HTTPError() if error.__cause__:
                return self.reason(error.__cause__)
            case errors.NotExistError():
                return self.about_missing()
            case errors.NetworkError() | errors.RequestTimeoutError():
                return self.about_network(error)
            case errors.APIError():
                return self.about_status(error.status_code or 0, error)
            case errors.HubError() | OSError() | ValueError():
                return f"{self.host} does not answer as a hub does for {self.model.id}: {brief(error)}"
        return None

    @property
    def _token(self) -> str | None:
        return "" if self.is_mirror else None  # None: the user's, where there is one


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries from logging what they raise as well."""
    loggers = [logging.getLogger(name) for name in ("modelscope", "modelscope_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
