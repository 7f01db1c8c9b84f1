"""A web site that gives out files, well or badly, and takes them."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Site(ThreadingHTTPServer):
    """Files by path, and the failures of the next replies."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.statuses: list[int] = []  # answered to the next requests, one each, before any file
        self.drop_after: list[int] = []  # bytes after which the next replies break off, one each
        self.etag: str | None = '"v1"'
        self.content_type = "application/octet-stream"
        self.has_ranges = True
        self.keys: set[str | None] = set()  # what came as Authorization with the files that were put here
        self.ranges: list[str | None] = []  # what was asked for
        self.reached = threading.Event()  # a reply was sent as far as it goes
        self.hold: threading.Event | None = None  # a reply that breaks off waits for it first

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
        if wanted and site.has_ranges and self.headers["If-Range"] in {None, site.etag}:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])  # to the end: all that is asked for here
            if start >= len(body):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self._send_validators()
        self.send_header("Content-Type", site.content_type)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + site.drop_after.pop(0) if site.drop_after else len(body)
        self.wfile.write(body[start:end])
        if end < len(body):
            self.wfile.flush()
            site.reached.set()
            if site.hold is not None:
                site.hold.wait(60)

    def do_HEAD(self) -> None:
        body = self.server.files.get(self.path.lstrip("/"))
        self.send_response(200 if body is not None else 404)
        self._send_validators()
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()

    def do_PUT(self) -> None:
        self.server.files[self.path.lstrip("/")] = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.add(self.headers["Authorization"])
        self.send_response(200)
        self._send_validators()
        self.end_headers()

    def _send_validators(self) -> None:
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
            self.send_header("Last-Modified", "Sat, 28 Nov 2026 12:00:00 GMT")

    def log_message(self, *_: Any) -> None:
        pass
