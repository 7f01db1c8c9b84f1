"""Whose process listens at a port: made-up tables, and sockets of this process and of another user."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.engines.torchserve.listener import listening_users

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"


def row(port: int, user: int, *, state: str = "0A", host: str = "0100007F") -> str:
    return f"   0: {host}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {user:5}        0 1 1"


def tables(folder: Path, four: list[str], six: list[str]) -> tuple[Path, ...]:
    paths = folder / "tcp", folder / "tcp6"
    for path, rows in zip(paths, (four, six), strict=True):
        path.write_text("\n".join([HEAD, *rows]) + "\n")
    return paths


def test_every_listener_at_the_port_counts_and_nothing_else(tmp_path: Path) -> None:
    mapped = "0000000000000000FFFF00000100007F"  # how a JVM listens at 127.0.0.1
    four = [row(7070, 1000), row(7071, 5), row(7070, 6, state="01")]
    read = tables(tmp_path, four, [row(7070, 1001, host=mapped)])
    assert listening_users(7070, read) == {1000, 1001}
    assert listening_users(7071, read) == {5}
    assert listening_users(7072, read) == frozenset()


def test_a_system_without_tables_does_not_tell(tmp_path: Path) -> None:
    assert listening_users(7070, (tmp_path / "tcp", tmp_path / "tcp6")) is None


def test_a_table_with_other_lines_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    assert listening_users(7070, tables(tmp_path, ["", "short line"], [])) == frozenset()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has the tables")
def test_a_socket_of_this_process_is_ours() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        assert listening_users(port) == frozenset()  # bound only
        listening.listen()
        assert listening_users(port) == {os.getuid()}


_LISTENER = """
import os, socket, sys
os.setuid(65534)
listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen()
print(listening.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="only root can become another user")
def test_a_socket_of_another_user_is_told_apart() -> None:
    with subprocess.Popen([sys.executable, "-c", _LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert listening_users(int(child.stdout.readline())) == {65534}
        child.stdin.close()  # ends it
