"""A web site that gives out checkpoints, well or badly, and pulls from it into a store."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from model_store import zoo
from model_store.pull import fetch
from model_store.pull.sources import Source
from model_store.pull.store import Store

ENTRY = zoo.get("mobilevit_xxs_classify")


class Site(ThreadingHTTPServer):
    """Files by path, and the failures of the next replies."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.statuses: list[int] = []  # answered to the next requests, one each, before any file
        self.drop_after: list[int] = []  # bytes after which the next replies break off, one each
        self.etag: str | None = '"v1"'
        self.content_type = "application/octet-stream"
        self.ranges: list[str | None] = []  # what was asked for

    def handle_error(self, *_: Any) -> None:
        """A client may close the connection early: no error here."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site = self.server
        wanted = self.headers["Range"]
        site.ranges.append(wanted)
        body = site.files.get(self.path.lstrip("/"))
        status = site.statuses.pop(0) if site.statuses else 200 if body is not None else 404
        if status != 200 or body is None:
            self.send_error(status)
            return
        start = 0
        if wanted and self.headers["If-Range"] == site.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if site.etag:
            self.send_header("ETag", site.etag)
        self.send_header("Content-Type", site.content_type)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + site.drop_after.pop(0) if site.drop_after else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *_: Any) -> None:
        pass


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
