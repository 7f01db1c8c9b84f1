"""Download one file from an http(s) address into a `.part` file, resuming an earlier attempt.

In: an address and a path. Out: the path holds exactly the bytes of the server, or a `PullError`. Beside an unfinished
`.part` lies a `.part.json` with the address and the server's validator (ETag or date), so that two versions of a file
are never joined. Without a validator the file is downloaded from its beginning. Knows nothing of checkpoints.
"""

import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model_store.pull.errors import BadAddress, ConnectionLost, HttpRefused, NotACheckpoint, StoreError

# (bytes received, bytes of the whole file or None where the server does not send its length)
Progress = Callable[[int, int | None], None]

ATTEMPTS = 4
TIMEOUT_SECONDS = 30.0  # without a byte
_CHUNK_BYTES = 1 << 18
_PAGES = (b"<!doctype html", b"<html", b"<?xml")
_LFS_POINTER = b"version https://git-lfs"
_AGENT = "mobilevision (models pull)"


class _Broken(Exception):
    """This attempt failed; another attempt may succeed."""


def download(
    url: str,
    part: Path,
    *,
    on_progress: Progress,
    attempts: int = ATTEMPTS,
    timeout_seconds: float = TIMEOUT_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch `url` into `part`. Raises `DownloadError` (`BadAddress` before any request) or `StoreError`.

    After `ConnectionLost` the part stays, and the next call resumes it. After every other error it is removed.
    """
    scheme = urlsplit(url).scheme
    if scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise BadAddress(f"{url}: not an http or https address; a file on this machine is taken with --from FILE")
    for attempt in range(attempts):
        try:
            _attempt(url, part, on_progress, timeout_seconds)
        except _Broken as broken:
            if attempt + 1 < attempts:
                sleep(2.0**attempt)  # seconds: 1, 2, 4
                continue
            kept = f"{_size(part) / 1e6:.1f} MB are kept; run the same command to go on" if _size(part) else "run again"
            raise ConnectionLost(f"{url}: {broken} ({attempts} attempts); {kept}") from broken
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                remove(part)
            raise
        else:
            _state_path(part).unlink(missing_ok=True)
            return


def remove(part: Path) -> None:
    """Remove a part and its `.part.json`."""
    part.unlink(missing_ok=True)
    _state_path(part).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _State:
    """The content of `.part.json`."""

    url: str
    validator: str


def _attempt(url: str, part: Path, on_progress: Progress, timeout_seconds: float) -> None:
    state = _read_state(part)
    offset = _size(part) if state is not None and state.url == url else 0
    headers = {"User-Agent": _AGENT}
    if offset and state is not None:
        headers |= {"Range": f"bytes={offset}-", "If-Range": state.validator}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http and https only, see above
    try:
        reply = urllib.request.urlopen(request, timeout=timeout_seconds)  # noqa: S310
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # our part is longer than the file on the server
                remove(part)
                raise _Broken("the server has no such range") from error
            if error.code == 429 or error.code >= 500:
                raise _Broken(f"the server answers {error.code} {error.reason}") from error
            hint = "the file is not, or no longer, there" if error.code in {404, 410} else "the server refuses"
            raise HttpRefused(
                f"{url}: {error.code} {error.reason}: {hint}; download it by hand and use --from FILE",
                status=error.code,
            ) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise _Broken(f"no answer ({getattr(error, 'reason', None) or error})") from error
    with reply:
        _receive(url, reply, part, offset, on_progress)


def _receive(url: str, reply: Any, part: Path, offset: int, on_progress: Progress) -> None:
    """Append the body to the part, or replace the part where the server sends the whole file."""
    if reply.headers.get_content_type() == "text/html":
        raise NotACheckpoint(f"{url}: a page, not a file; open it in a browser, download, and use --from FILE")
    if reply.status != 206 or not _starts_at(reply.headers.get("Content-Range", ""), offset):
        if reply.status == 206:
            remove(part)
            raise _Broken("the server sent another range than asked for")
        offset = 0
    length = reply.headers.get("Content-Length", "")
    total = offset + int(length) if length.isdecimal() else None
    _check_room(part, total, offset)
    try:
        file = part.open("ab" if offset else "wb")
        if not offset:
            _write_state(part, url, reply)
    except OSError as error:
        raise _cannot_write(part, error) from error
    received = offset
    try:
        with file:
            on_progress(received, total)
            while chunk := _read(reply):
                if not received:
                    _check_beginning(url, chunk)
                file.write(chunk)
                received += len(chunk)
                on_progress(received, total)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _cannot_write(part, error) from error
    if total is not None and received != total:
        raise _Broken(f"the connection broke off after {received} of {total} bytes")


def _read(reply: Any) -> bytes:
    try:
        chunk: bytes = reply.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke off ({type(error).__name__})") from error
    return chunk


def _check_beginning(url: str, chunk: bytes) -> None:
    if chunk.lstrip()[:64].lower().startswith(_PAGES):
        raise NotACheckpoint(f"{url}: a page, not a file; open it in a browser, download, and use --from FILE")
    if chunk.startswith(_LFS_POINTER):
        raise NotACheckpoint(f"{url}: a Git LFS pointer, not the file; use the address that ends in the file itself")


def _check_room(part: Path, total: int | None, offset: int) -> None:
    """Raise `StoreError` where the disk has no room for the file."""
    if total is None:
        return
    free = shutil.disk_usage(part.parent).free
    if total - offset > free:
        raise StoreError(
            f"no room for {total / 1e6:.1f} MB in {part.parent}: {free / 1e6:.1f} MB are free; name another --store"
        )


def _cannot_write(part: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write to {part.parent}: {error.strerror or error}; make room or name another --store")


def _starts_at(content_range: str, offset: int) -> bool:
    found = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", content_range.strip())
    return found is not None and int(found[1]) == offset


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path) -> _State | None:
    try:
        return _State(**json.loads(_state_path(part).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write_state(part: Path, url: str, reply: Any) -> None:
    etag = reply.headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else reply.headers.get("Last-Modified", "")
    if validator:
        _state_path(part).write_text(json.dumps({"url": url, "validator": validator}))
    else:
        _state_path(part).unlink(missing_ok=True)
