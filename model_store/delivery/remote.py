"""One published folder in an object store: `s3://`, `gs://`, `az://`, `https://`, `http://` or `file://`.

In: a URL. Credentials come from the environment as each cloud defines it, and `obstore` reads them. Out: the bytes of
objects. Each request is repeated a few times with growing, random pauses, each wait has a bound, and each failure is a
`DeliveryError`. Never trusts what it receives: callers compare digests.
"""

import contextlib
from collections.abc import AsyncGenerator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore import exceptions, store

from model_store.delivery.errors import (
    AccessRefused,
    BadAddress,
    BadManifest,
    DeliveryError,
    NotThere,
    RangeRefused,
    Unreachable,
    WrongDigest,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az", "https", "http", "file")

# A whole answer may take `timeout`; a download that needs longer is continued. `read_timeout` is for silence.
# Plain HTTP is used only where the operator writes it, in the URL or in the endpoint of a cloud.
_CLIENT: Any = {
    "connect_timeout": "10s",
    "read_timeout": "30s",
    "timeout": "10m",
    "allow_http": True,
    "user_agent": "mobilevision",
}
_RETRIES: Any = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}
_CHUNK_BYTES = 2**18
# Where `obstore` asks for the credentials of the machine, after it has found none in the environment.
_METADATA = ("//169.254.169.254/", "//metadata.google.internal", "//metadata/")
_LONGEST_REASON = 300  # characters of the store's own message


class Remote:
    """The objects below one address. `shown` is the address in messages."""

    def __init__(self, objects: "ObjectStore", shown: str) -> None:
        self._objects = objects
        self.shown = shown.rstrip("/")

    async def read(self, path: str, most_bytes: int) -> bytes:
        """Read a small object. Raises `BadManifest` where it is larger than `most_bytes`, and as `stream` does."""
        content = bytearray()
        async with contextlib.aclosing(self.stream(path)) as chunks:
            async for chunk in chunks:
                content += chunk
                if len(content) > most_bytes:
                    raise BadManifest(f"{self.shown}/{path}: over {most_bytes} bytes; publish the folder again")
        return bytes(content)

    async def stream(
        self, path: str, offset: int = 0, *, expected_bytes: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of an object from `offset` on, in chunks of about 256 KiB.

        Raises `NotThere`, `AccessRefused`, `Unreachable`, `WrongDigest` where the object has not `expected_bytes` in
        all, and `RangeRefused` where `offset` is not 0 and the store sends whole objects only.
        """
        with self._translated(path):
            options: Any = {"range": {"offset": offset}} if offset else None
            answer = await obstore.get_async(self._objects, path, options=options)
            size = answer.meta["size"]
            if expected_bytes is not None and size != expected_bytes:
                raise WrongDigest(
                    f"{self.shown}/{path}: {size} bytes, the manifest says {expected_bytes}; publish the folder again"
                )
            async for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    async def size_of(self, path: str) -> int | None:
        """Return the size of an object in bytes, None where there is none. Raises `AccessRefused`, `Unreachable`."""
        try:
            with self._translated(path):
                return int((await obstore.head_async(self._objects, path))["size"])
        except NotThere:
            return None

    async def put(self, path: str, content: bytes | IO[bytes], *, cached: bool = True) -> None:
        """Write an object whole or not at all. `cached` false: caches on the way must ask before they repeat it.

        Raises `AccessRefused`, `Unreachable`. Large content goes in parts; to a web server it goes in one request.
        """
        local = isinstance(self._objects, store.LocalStore)  # it has no attributes
        attributes: Any = None if cached or local else {"Cache-Control": "no-cache"}
        whole = False if isinstance(self._objects, store.HTTPStore) else None
        with self._translated(path):
            await obstore.put_async(self._objects, path, content, attributes=attributes, use_multipart=whole)

    async def delete(self, path: str) -> None:
        """Delete an object. Raises `AccessRefused`, `Unreachable`, `NotThere`."""
        with self._translated(path):
            await obstore.delete_async(self._objects, path)

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        where = f"{self.shown}/{path}"
        try:
            yield
        except DeliveryError:
            raise
        except FileNotFoundError as error:
            raise NotThere(f"{where} is not there; publish the folder first: mobilevision models publish") from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
            raise AccessRefused(
                f"{where}: the store refuses ({_reason(error)}); give credentials in the environment (docs/delivery.md)"
            ) from error
        except exceptions.NotSupportedError as error:
            raise RangeRefused(f"{where}: the store cannot do this ({_reason(error)})") from error
        except (exceptions.BaseError, OSError, NotImplementedError, ValueError) as error:
            if any(place in str(error) for place in _METADATA):
                raise AccessRefused(
                    f"{where}: no credentials in the environment, and this machine gives none ({_reason(error)}); "
                    "docs/delivery.md names the variables, also the one for public buckets"
                ) from error
            raise Unreachable(f"{where}: {_reason(error)}; run the same command again") from error


def at(url: str, *, make: bool = False) -> Remote:
    """Return the published folder at a URL. `make`: a `file://` folder is made if needed. Never asks the network.

    Raises `BadAddress`, and `NotThere` for a `file://` folder that does not exist.
    """
    _check(url)
    scheme = urlsplit(url).scheme
    options: dict[str, Any] = {}
    if scheme != "file":
        options = {"client_options": _CLIENT, "retry_config": _RETRIES}
    elif make:
        options = {"mkdir": True}
    elif not Path(urlsplit(url).path).is_dir():
        raise NotThere(f"{url} is not there; publish the folder first: mobilevision models publish")
    try:
        return Remote(store.from_url(url, **options), url)
    except (exceptions.BaseError, ValueError, OSError) as error:
        raise BadAddress(f"{url}: {_reason(error)}; docs/delivery.md names the variables of each store") from error


def _check(url: str) -> None:
    """Raise `BadAddress` where the URL is of another kind, or has parts that `obstore` would drop."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise BadAddress(f"{url[:200]!r} is no URL ({error})") from error
    if parts.scheme not in SCHEMES:
        raise BadAddress(f"{url[:200]!r} is no URL of a store; use {'://, '.join(SCHEMES)}://")
    if parts.username is not None or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
        raise BadAddress(f"{shown}: leave out user, ? and #; credentials belong into the environment")
    if (parts.scheme == "file") == bool(parts.netloc) or (parts.scheme == "file" and not parts.path.startswith("/")):
        raise BadAddress(f"{url}: write file:///FOLDER, or {parts.scheme}://BUCKET/FOLDER")


def _reason(error: Exception) -> str:
    """Return the store's own words: the first line, without its dump of internals."""
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST_REASON] if lines else type(error).__name__
