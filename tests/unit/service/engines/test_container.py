"""What TorchServe's container is started with, and what its probe says."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import archive_files
import pytest
from archive_files import card_of
from fakes import local_settings

from service.core.allocation import Machine
from service.core.catalog import Catalog
from service.core.settings import SettingsError
from service.core.trusted_archive import ArchiveUntrusted
from service.engines.torchserve import container_probe
from service.engines.torchserve.config import TorchServeConfig, TorchServeFailed
from service.engines.torchserve.container import become_torchserve

ADDRESSES = {"torchserve_inference": "127.0.0.1:7070", "torchserve_management": "127.0.0.1:7071"}


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    archive_files.write(folder)
    return folder


@pytest.fixture(autouse=True)
def same_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())  # put back at the end


def test_it_becomes_java_on_loopback_with_keys_in_the_shared_folder(archives: Path, tmp_path: Path) -> None:
    started: list[tuple[str, list[str], Mapping[str, str]]] = []
    keys = tmp_path / "keys" / "key_file.json"
    keys.parent.mkdir()
    keys.write_text("the JVM's before")
    stale = tmp_path / "torchserve" / "store"
    stale.mkdir(parents=True)
    settings = local_settings(
        archives=archives,
        run_dir=tmp_path,
        torchserve_key_file=keys,
        worker_threads=3,
        shm_megabytes=64,
        shm_dir=tmp_path,
        **ADDRESSES,
    )
    become_torchserve(settings, Catalog([card_of()]), execute=lambda *call: started.append(call))
    ((program, command, environment),) = started
    assert program == command[0]
    assert Path(program).name == "java"
    assert environment["MOBILEVISION_WORKER_THREADS"] == "3"
    assert environment["MOBILEVISION_SHM_DIR"] == str(tmp_path)
    assert Path.cwd() == keys.parent
    assert not keys.exists()
    run = tmp_path / "torchserve"
    properties = dict(line.split("=", 1) for line in (run / "config.properties").read_text().splitlines())
    assert properties["grpc_inference_address"] == properties["grpc_management_address"] == "127.0.0.1"
    assert (properties["grpc_inference_port"], properties["grpc_management_port"]) == ("7070", "7071")
    assert all(properties[f"{api}_address"].startswith("unix:") for api in ("inference", "management", "metrics"))
    assert (properties["model_store"], properties["load_models"]) == (str(archives.resolve()), "toy_classify.mar")
    assert not (run / "store").exists()  # the gateway could not bring new versions there
    assert "SYSTEM_OUT" in (run / "log4j2.xml").read_text()


def test_an_archive_that_was_changed_is_refused_before_java_starts(archives: Path, tmp_path: Path) -> None:
    path = archives / "toy_classify.mar"
    path.write_bytes(path.read_bytes().replace(b"def handle", b"def hindle"))
    settings = local_settings(archives=archives, run_dir=tmp_path, workers_per_model=1, **ADDRESSES)
    with pytest.raises(ArchiveUntrusted, match=r"toy_classify\.mar: .*CRC"):
        become_torchserve(settings, Catalog([card_of()]), execute=lambda *_: pytest.fail("started"))


def test_threads_follow_the_container_and_workers_are_as_many_as_the_gateway_counts(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "here", lambda environment: Machine(cores=6, memory_bytes=2**34, gpus=0))
    started: list[Mapping[str, str]] = []
    settings = local_settings(archives=archives, run_dir=tmp_path, shm_megabytes=0, **ADDRESSES)
    become_torchserve(settings, Catalog([card_of()]), execute=lambda *call: started.append(call[2]))
    (environment,) = started
    assert environment["MOBILEVISION_WORKER_THREADS"] == "6"
    assert environment["MOBILEVISION_SHM_DIR"] == ""
    properties = (tmp_path / "torchserve" / "config.properties").read_text()
    assert '"minWorkers": 1, "maxWorkers": 1' in properties


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"torchserve_inference": None}, "torchserve_inference"),
        ({"torchserve_management": "0.0.0.0:7071"}, "torchserve_management.*loopback"),
        ({"torchserve_management": "127.0.0.1"}, "torchserve_management"),
        ({"torchserve_key_file": Path("/run/keys/tokens.json")}, "key_file.json"),
    ],
)
def test_a_setting_that_cannot_work_is_told(
    changes: dict[str, Any], named: str, archives: Path, tmp_path: Path
) -> None:
    settings = local_settings(**{"archives": archives, "run_dir": tmp_path, **ADDRESSES, **changes})
    with pytest.raises(SettingsError, match=named):
        become_torchserve(settings, Catalog([card_of()]), execute=lambda *_: pytest.fail("started"))


class Management(http.server.BaseHTTPRequestHandler):
    """TorchServe's HTTP APIs, as much as the probe asks: /ping, and models whose workers are as the test says."""

    workers: Mapping[str, list[str]] = {}

    def do_GET(self) -> None:
        name = self.path.removeprefix("/models/")
        known = self.path == "/ping" or self.headers["Authorization"] == "Bearer secret"
        body = [{"workers": [{"status": status} for status in self.workers.get(name, [])]}]
        self.send_response(200 if known else 400)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


class UnixServer(http.server.ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "torchserve"
    folder.mkdir()
    (folder / "config.properties").write_text("a=b\nload_models=one.mar,two.mar\n")
    (folder / "key_file.json").write_text(json.dumps({"management": {"key": "secret"}}))
    servers = [UnixServer(str(folder / api), Management) for api in ("management", "inference")]  # type: ignore[arg-type]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield folder
    for server in servers:
        server.shutdown()
        server.server_close()


def probe(question: str, run: Path) -> str | None:
    """Why the answer is no; None for yes."""
    try:
        container_probe.QUESTIONS[question](str(run), str(run / "key_file.json"))
    except container_probe.Unwell as why:
        return str(why)
    return None


def test_ready_means_a_ready_worker_for_every_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Management, "workers", {"one": ["UNLOADING", "READY"], "two": ["UNLOADING"]})
    assert probe("torchserve-ready", run) == "model two: no worker is ready"
    monkeypatch.setattr(Management, "workers", {"one": ["READY"], "two": ["READY"]})
    assert probe("torchserve-ready", run) is None
    (run / "key_file.json").write_text(json.dumps({"management": {"key": "old"}}))
    assert probe("torchserve-ready", run) == "model one: TorchServe answers 400"
    (run / "key_file.json").unlink()
    assert "starting" in str(probe("torchserve-ready", run))


def test_when_torchserve_starts_again_in_a_pod_one_model_is_enough(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a new pod a broken archive stops the rollout. Later it must not end the models that work."""
    broken = {"one": ["UNLOADING"], "two": ["READY"]}
    monkeypatch.setattr(Management, "workers", broken)
    assert probe("torchserve-ready", run) == "model one: no worker is ready"
    monkeypatch.setattr(Management, "workers", {"one": ["READY"], "two": ["READY"]})
    assert probe("torchserve-ready", run) is None
    monkeypatch.setattr(Management, "workers", broken)
    assert probe("torchserve-ready", run) is None
    monkeypatch.setattr(Management, "workers", {})
    assert probe("torchserve-ready", run) == "model one: no worker is ready"


def test_a_pod_that_must_use_a_gpu_does_not_start_without_one(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = local_settings(archives=archives, run_dir=tmp_path, require_gpu=True, **ADDRESSES)
    with pytest.raises(TorchServeFailed, match="require_gpu is set, but"):
        become_torchserve(settings, Catalog([card_of()]), execute=lambda *_: pytest.fail("started"))


def test_live_forgives_a_model_without_workers_until_torchserve_has_given_up(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe("torchserve-live", run) is None  # none was ready yet: loading
    monkeypatch.setattr(Management, "workers", {"one": ["READY"], "two": ["READY"]})
    assert probe("torchserve-live", run) is None
    monkeypatch.setattr(Management, "workers", {})
    assert probe("torchserve-live", run) is None
    with monkeypatch.context() as stepped:
        stepped.setattr(time, "time", lambda: 4e9)  # a wall clock that is stepped ends no container
        assert probe("torchserve-live", run) is None
    os.utime(run / "last_ready", (4e9, 4e9))  # as it was before the machine started again
    assert probe("torchserve-live", run) is None
    long_ago = (run / "last_ready").stat().st_mtime - container_probe.GIVEN_UP_SECONDS - 1
    os.utime(run / "last_ready", (long_ago, long_ago))
    assert "model one: no worker is ready; model two: no worker is ready" in str(probe("torchserve-live", run))
    monkeypatch.setattr(Management, "workers", {"one": ["READY"], "two": ["READY"]})
    assert probe("torchserve-live", run) is None


def test_one_broken_model_does_not_end_the_others(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Management, "workers", {"two": ["READY"]})
    assert "model one: no worker is ready" in str(probe("torchserve-ready", run))
    assert probe("torchserve-live", run) is None
    long_ago = (run / "last_ready").stat().st_mtime - container_probe.GIVEN_UP_SECONDS - 1
    os.utime(run / "last_ready", (long_ago, long_ago))
    assert probe("torchserve-live", run) is None


def test_live_means_that_torchserve_answers(run: Path) -> None:
    (run / "inference").unlink()
    assert "no answer on /ping" in str(probe("torchserve-live", run))


def test_the_probe_runs_by_the_standard_library_alone(run: Path) -> None:
    command = [
        sys.executable,
        "-I",
        "-S",
        container_probe.__file__,
        "torchserve-ready",
        str(run),
        str(run / "key_file.json"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "model one: no worker is ready\n", "")


def test_the_probe_gives_up_on_a_model_when_the_supervisor_does() -> None:
    config = TorchServeConfig(models=(), environment={})
    assert config.unready_seconds == container_probe.GIVEN_UP_SECONDS
