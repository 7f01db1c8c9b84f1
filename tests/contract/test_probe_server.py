"""The HTTP port beside clients that are slow or silent."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from service.frontends.http import probe_server
from service.frontends.http.probe_server import ProbeServer
from service.frontends.http.probes import Answer


class Well:
    def livez(self) -> Answer:
        return Answer.text(True, "ok")

    def readyz(self) -> Answer:
        return Answer.text(True, "ok")

    def metrics(self, accept: str) -> Answer:
        return Answer(HTTPStatus.OK, "text/plain", b"")


@contextlib.contextmanager
def served(max_connections: int = 8) -> Iterator[int]:
    server = ProbeServer(host="127.0.0.1", port=0, probes=Well(), max_connections=max_connections)
    try:
        yield server.port
    finally:
        server.close()


def livez(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with contextlib.closing(connection):
        connection.request("GET", "/livez")
        return connection.getresponse().status


def test_silent_connections_hold_a_bounded_number_of_threads_and_probes_are_answered() -> None:
    before = threading.active_count()
    with served() as port, contextlib.ExitStack() as stack:
        for number in range(200):
            silent = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            silent.sendall(b"GET /livez HTTP/1.0\r\nX-Slow: ")
            if number % 20 == 0:
                assert livez(port) == 200
        assert livez(port) == 200
        time.sleep(0.3)
        assert threading.active_count() - before <= 1 + 2 * 8


def test_slow_headers_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_server, "CONNECTION_SECONDS", 0.5)
    with served() as port, socket.create_connection(("127.0.0.1", port)) as slow:
        opened_at = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - opened_at < 5:
                slow.sendall(b"X")
                slow.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if not slow.recv(1):
                        break
        assert time.monotonic() - opened_at < 2


def test_a_client_that_leaves_early_prints_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with served() as port:
        for _ in range(20):
            leaving = socket.create_connection(("127.0.0.1", port))
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            leaving.sendall(b"GET /livez HTTP/1.0\r\n")
            leaving.close()
        assert livez(port) == 200
        time.sleep(0.2)
    assert "Traceback" not in capfd.readouterr().err


def test_only_the_first_kilobytes_of_headers_are_read() -> None:
    with served() as port, socket.create_connection(("127.0.0.1", port), timeout=5) as wordy:
        wordy.sendall(b"GET /livez HTTP/1.0\r\n" + b"X-Long: " + b"x" * 20_000)  # the headers never end
        with contextlib.suppress(ConnectionResetError):
            assert b"200 OK" in wordy.recv(1000)
        assert livez(port) == 200
