"""A gateway that may open few files answers its probes, however many clients connect."""

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from service.frontends.http.probe_server import ProbeServer
from service.frontends.http.probes import Answer

OPEN_FILES = 256
CLIENTS = 400

GATEWAY = """
import asyncio, json, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from fakes import local_settings, running_gateway
from service.app import startup_checks

async def main():
    settings = startup_checks.check(local_settings(), None)
    async with running_gateway(max_connections=settings.max_connections) as running:
        print(json.dumps({"http": running.http, "grpc": running.grpc}), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def get(address: str, path: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


@pytest.fixture
def gateway() -> Iterator[dict[str, str]]:
    """The addresses of a gateway in a process of its own."""
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    process = subprocess.Popen(
        [sys.executable, "-c", GATEWAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_probes_are_answered_while_more_clients_connect_than_files_can_be_open(gateway: dict[str, str]) -> None:
    host, _, port = gateway["grpc"].rpartition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
        assert get(gateway["http"], "/livez") == 200
        assert get(gateway["http"], "/readyz") == 200


class Well:
    """`Probes` that are always well."""

    def livez(self) -> Answer:
        return Answer.text(True, "ok")

    def readyz(self) -> Answer:
        return Answer.text(True, "ok")

    def metrics(self, accept: str) -> Answer:
        return Answer(HTTPStatus.OK, "text/plain", b"")


def test_the_http_port_keeps_a_descriptor_for_itself() -> None:
    server = ProbeServer(host="127.0.0.1", port=0, probes=Well())
    address = f"127.0.0.1:{server.port}"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert get(address, "/livez") == 200
        client = socket.socket()
        client.settimeout(30)
        with contextlib.closing(client), contextlib.ExitStack() as stack:
            highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, highest + 8), hard))
            with contextlib.suppress(OSError):
                while True:
                    stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert b" 200 " in client.recv(1000).partition(b"\r\n")[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        server.close()
