"""Publish to and sync from a server that speaks S3, with credentials of the environment."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import archive_files
import pytest
from delivered import DELIVERED, delivered

from model_store.delivery import errors, remote
from model_store.delivery.folder import Folder
from model_store.delivery.publish import publish
from model_store.delivery.sync import sync

# The packages of the server, not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server with the bucket `models`."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - takes seconds

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    address = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/models", method="PUT"), timeout=60).close()
    yield address
    moto.stop()


@pytest.fixture(autouse=True)
def environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setitem(remote._RETRIES, "max_retries", 0)


async def test_a_folder_travels_by_s3(source: Path, target: Folder) -> None:
    there = remote.at("s3://models/some/folder")
    await publish(source, there)
    assert (await publish(source, there)).sent == ()
    done = await sync(there, target)
    assert done is not None
    assert delivered(target) == {name: (source / name).read_bytes() for name in DELIVERED}
    archive_files.write(source, archive_files.card_of("cups", "2.0"))
    (source / "rollout.json").unlink()
    await publish(source, there)
    done = await sync(there, target)
    assert done is not None
    assert {file.name for file in done.fetched} == {"cups.mar", "cups.card.json"}
    assert done.removed == ("rollout.json",)


async def test_a_part_is_continued(source: Path, target: Folder) -> None:
    there = remote.at("s3://models/continued")
    done = await publish(source, there)
    [file] = [file for file in done.manifest.files if file.name == "cups.mar"]
    target.path.mkdir()
    target.part_of(file).write_bytes((source / "cups.mar").read_bytes()[:100])
    await sync(there, target)
    assert (target.path / "cups.mar").read_bytes() == (source / "cups.mar").read_bytes()


async def test_large_content_goes_in_parts(target: Folder, tmp_path: Path) -> None:
    there = remote.at("s3://models/large")
    content = bytes(range(256)) * 2**15  # 8 MiB, more than one part
    (tmp_path / "large").write_bytes(content)
    with (tmp_path / "large").open("rb") as file:
        await there.put("files/large", file)
    assert await there.read("files/large", len(content)) == content
    assert await there.size_of("files/large") == len(content)


async def test_what_is_not_there_or_not_allowed_is_told(target: Folder) -> None:
    with pytest.raises(errors.NotThere, match="publish the folder first"):
        await sync(remote.at("s3://models/nothing"), target)
    with pytest.raises(errors.NotThere):
        await sync(remote.at("s3://no-such-bucket/models"), target)
