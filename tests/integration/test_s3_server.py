"""Publish to and sync from moto, a server that speaks S3, with credentials of the environment."""

import hashlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import archive_files
import pytest
from delivered import DELIVERED, archives_to_deliver, delivered

from model_store.delivery import errors, remote
from model_store.delivery.folder import Folder
from model_store.delivery.publish import publish
from model_store.delivery.sync import sync

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "tests" / "s3_server.txt"
START_SECONDS = 120.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of the server, which has the bucket `models`."""
    program = installed() / "bin" / "moto_server"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([str(program), "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        make_bucket(address)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def installed() -> Path:
    """The environment with moto, made once for each list of versions."""
    folder = ROOT / "build" / f"s3_server-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]}"
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)]
        subprocess.run(pip, check=True)
        (folder / "installed").touch()
    return folder


def make_bucket(address: str) -> None:
    """Make the bucket as soon as the server answers."""
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{address}/models", method="PUT"), timeout=60).close()
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.fixture(autouse=True)
def environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setitem(remote._RETRIES, "max_retries", 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return archives_to_deliver(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "target")


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
