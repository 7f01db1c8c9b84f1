"""Addresses, and what stores answer: over HTTP, in a folder, or not at all."""

import threading
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from delivered import DELIVERED, delivered
from file_site import Site
from obstore import exceptions

from model_store.delivery import errors, remote
from model_store.delivery.folder import Folder
from model_store.delivery.publish import publish
from model_store.delivery.sync import sync


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No repeated requests, which are the library's, and small chunks."""
    monkeypatch.setitem(remote._RETRIES, "max_retries", 0)
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 1)


async def none(_: float) -> None:
    """Do not wait."""


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("etag", [None, '"v1"'])
async def test_a_web_server(has_ranges: bool, etag: str | None, site: Site, source: Path, target: Folder) -> None:
    site.has_ranges, site.etag = has_ranges, etag
    there = remote.at(site.url("models"))
    await publish(source, there)
    assert len(site.files) == len(DELIVERED) + 1
    site.drop_after = [10**6, 10, 20]  # the manifest is whole, the first file breaks off
    done = await sync(there, target, pause=none)
    assert done is not None
    assert set(delivered(target)) == DELIVERED
    ranges = [wanted for wanted in site.ranges if wanted]
    assert len(ranges) >= 1


async def test_a_server_that_speaks_s3(
    site: Site, source: Path, target: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole test, with a real server of S3, is tests/integration/test_s3_server.py."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url("").rstrip("/"))
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    there = remote.at("s3://bucket/some/models")
    await publish(source, there)
    assert "bucket/some/models/manifest.json" in site.files
    assert all(key is not None and "Credential=some-key/" in key for key in site.keys)
    assert (await publish(source, there)).sent == ()
    site.drop_after = [10**6, 10, 20]
    await sync(there, target, pause=none)
    assert set(delivered(target)) == DELIVERED


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (404, errors.NotThere, "is not there; publish"),
        (403, errors.AccessRefused, "credentials"),
        (401, errors.AccessRefused, "credentials"),
        (500, errors.Unreachable, "run the same command again"),
        (429, errors.Unreachable, "run the same command again"),
    ],
)
async def test_a_refusal_is_told_in_one_line(
    status: int, error: type[Exception], message: str, site: Site, target: Folder
) -> None:
    site.statuses = [status]
    with pytest.raises(error, match=message) as raised:
        await sync(remote.at(site.url("models")), target)
    text = str(raised.value)
    assert text.startswith(site.url("models/manifest.json"))
    assert "\n" not in text
    assert len(text) < 600


async def test_missing_credentials_are_told(monkeypatch: pytest.MonkeyPatch, target: Folder) -> None:
    async def get(*_: object, **__: object) -> None:
        raise exceptions.GenericError("Error performing PUT http://169.254.169.254/latest/api/token\n\nDebug source:")

    monkeypatch.setattr(obstore, "get_async", get)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    with pytest.raises(errors.AccessRefused, match=r"no credentials in the environment.*names the variables"):
        await sync(remote.at("s3://bucket/models"), target)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(errors.BadAddress, match=r"Account must be specified; docs/delivery\.md"):
        remote.at("az://container/models")


async def test_nobody_listens(target: Folder) -> None:
    with pytest.raises(errors.Unreachable, match="run the same command again"):
        await sync(remote.at("http://127.0.0.1:1/models"), target)


async def test_a_folder_on_this_machine(source: Path, target: Folder, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/published/models/"
    with pytest.raises(errors.NotThere, match="publish the folder first"):
        remote.at(url)
    await publish(source, remote.at(url, make=True))
    done = await sync(remote.at(url), target)
    assert done is not None
    assert set(delivered(target)) == DELIVERED
    (tmp_path / "published/models/manifest.json").unlink()
    with pytest.raises(errors.NotThere):
        await sync(remote.at(url), target)


@pytest.mark.parametrize(
    "url",
    [
        "models",
        "",
        "/models",
        "ftp://host/models",
        "memory:///models",
        "s3://",
        "s3:///models",
        "file://models",
        "file:models",
        "https://user:secret@host/models",
        "https://host/models?sig=secret",
        "https://host/models#secret",
        "http://[::1/models",
        "s3://bucket\x00/models",
    ],
)
def test_another_address_is_refused(url: str) -> None:
    with pytest.raises(errors.BadAddress) as raised:
        remote.at(url)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("url", ["s3://bucket/models", "gs://bucket/models", "az://container/models"])
def test_clouds_are_known(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert remote.at(url).shown == url
