"""The TorchServe engine: a TorchServe of our own, or one that was started elsewhere.

In: settings and the models, or a server. Out: an `Engine`. A TorchServe that was started elsewhere is only called:
this module never starts, watches or stops it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from service.core import trusted_archive
from service.core.catalog import Catalog, CatalogError, archive_of
from service.core.settings import Settings
from service.engines.torchserve.client import TorchServeClient, TorchServeEndpoint
from service.engines.torchserve.config import MAX_MESSAGE_BYTES, TorchServeConfig, config_for
from service.engines.torchserve.model_store import STORE_FOLDER, ModelStore
from service.engines.torchserve.process import Progress, TorchServeProcess

_log = logging.getLogger(__name__)


class TorchServeEngine:
    """An `Engine` over one TorchServe. `server` is a process to start, or where a TorchServe listens already.

    `admit` checks the archives of a TorchServe that listens already. It is called once, at the start.
    """

    def __init__(
        self, server: TorchServeProcess | TorchServeEndpoint, *, admit: Callable[[], None] = lambda: None
    ) -> None:
        self._admit = admit
        self._process = server if isinstance(server, TorchServeProcess) else None
        self._endpoint = server if isinstance(server, TorchServeEndpoint) else None
        self._client: TorchServeClient | None = None

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        catalog: Catalog,
        *,
        on_progress: Progress,
        on_restart: Callable[[], None],
        catalog_at_restart: Callable[[], Catalog],
        on_quarantine: Callable[[str, bool], None] = lambda model, held: None,
        on_replaced: Callable[[str], None] = lambda model: None,
    ) -> "TorchServeEngine":
        """The engine that the settings ask for.

        `on_progress` is called with the workers of every model while they start, `on_restart` when TorchServe is
        started again. `catalog_at_restart` gives the versions to run then: a roll-out may have changed them.
        `on_quarantine` is called when a model that cannot be loaded comes into quarantine or leaves it, `on_replaced`
        for each worker process that took the place of another.
        """
        if settings.torchserve_inference is not None and settings.torchserve_management is not None:
            endpoint = TorchServeEndpoint(
                inference_address=settings.torchserve_inference,
                management_address=settings.torchserve_management,
                key_file=settings.torchserve_key_file,
                max_message_bytes=MAX_MESSAGE_BYTES,
                store=ModelStore(_store_beside(settings.torchserve_key_file), settings.require_signature),
            )
            return cls(endpoint, admit=partial(_admit_in_place, settings, catalog))

        def renewed(before: TorchServeConfig) -> TorchServeConfig:
            try:
                return config_for(settings, catalog_at_restart())
            except CatalogError as error:
                _log.warning("roll-out: %s; TorchServe starts again as before", error)
                return before

        return cls(
            TorchServeProcess(
                config_for(settings, catalog),
                on_progress=on_progress,
                on_restart=on_restart,
                renewed=renewed,
                on_quarantine=on_quarantine,
                on_replaced=on_replaced,
            )
        )

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return "torchserve"

    @property
    def runner(self) -> TorchServeClient:
        """See `Engine.runner`."""
        if self._client is None:
            raise RuntimeError("this is a bug: an engine is used between start() and stop() only")
        return self._client

    @property
    def versions(self) -> TorchServeClient:
        """See `Engine.versions`."""
        return self.runner

    @property
    def replica_settings(self) -> Mapping[str, Any]:
        """See `Engine.replica_settings`."""
        if self._endpoint is None:
            raise RuntimeError("this is a bug: an engine is used between start() and stop() only")
        return {
            "torchserve_inference": self._endpoint.inference_address,
            "torchserve_management": self._endpoint.management_address,
            "torchserve_key_file": self._endpoint.key_file,
        }

    async def start(self) -> None:
        """See `Engine.start`. Raises `TorchServeFailed`, `ArchiveUntrusted`.

        Does not wait for a TorchServe that was started elsewhere.
        """
        await asyncio.to_thread(self._admit)
        if self._process is not None:
            self._endpoint = await self._process.start()
        if self._endpoint is not None:
            self._client = TorchServeClient(self._endpoint)

    async def supervise(self) -> None:
        """See `Engine.supervise`."""
        if self._process is not None:
            await self._process.supervise()

    async def stop(self) -> None:
        """See `Engine.stop`."""
        if self._client is not None:
            await self._client.close()
            self._client = None
        if self._process is not None:
            await self._process.stop()


def _store_beside(key_file: Path | None) -> Path | None:
    """The folder of copies that the process which started TorchServe made beside its tokens, if it made one."""
    folder = None if key_file is None else key_file.parent / STORE_FOLDER
    return folder if folder is not None and folder.is_dir() else None


def _admit_in_place(settings: Settings, catalog: Catalog) -> None:
    """Check the archives that a TorchServe loads from the folder itself. Raises `ArchiveUntrusted`.

    Where there are copies, the process that made them has checked them.
    """
    if _store_beside(settings.torchserve_key_file) is None:
        for card in catalog.cards:
            trusted_archive.check(archive_of(settings.archives, card), card, settings.require_signature)
