"""Checkpoints on a web site, and pulls from it into a store."""

from pathlib import Path
from typing import Any

import torch
from file_site import Site

from model_store import zoo
from model_store.pull import fetch
from model_store.pull.sources import Source
from model_store.pull.store import Store

ENTRY = zoo.get("mobilevit_xxs_classify")


def saved(content: Any, folder: Path, name: str = "content.pt", **options: Any) -> bytes:
    torch.save(content, folder / name, **options)
    return (folder / name).read_bytes()


def quiet(_done: int, _total: int | None) -> None:
    pass


def pull(site: Site, store: Store, name: str = "weights.pt", **options: Any) -> fetch.Pulled:
    source = Source(url=site.url(name), layout="native", git_blob=options.pop("git_blob", ""))
    return fetch.from_address(ENTRY, store, source, on_progress=options.pop("on_progress", quiet), **options)


def left(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if path.name != ".lock")
