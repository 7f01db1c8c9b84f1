"""Hostile clients against a gateway in a process of its own: each line of standard error is one JSON object."""

import json
import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from service.core import logs

TESTS = Path(__file__).parents[1]

GATEWAY = """
import asyncio, ctypes, os, socket, struct, sys, threading, warnings
sys.path.insert(0, sys.argv[1])
from fakes import running_gateway
from service.core import foreign_output, logs

FORGED = b'x\\n{"level": "info", "message": "forged"}\\n'

def goaway(host, port):
    with socket.create_connection((host, port)) as client:
        content = struct.pack(">II", 0, 11) + FORGED
        frame = len(content).to_bytes(3, "big") + b"\\x07\\0\\0\\0\\0\\0" + content
        client.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\\0\\0\\0\\x04\\0\\0\\0\\0\\0" + frame)
        while client.recv(4096):
            pass

def reset(host, port, sent):
    client = socket.create_connection((host, port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sendall(sent)
    client.close()

async def main():
    logs.configure(level="info", log_format="json")
    with foreign_output.logged():
        async with running_gateway() as running:
            host, _, port = running.grpc.rpartition(":")
            try:
                await asyncio.wait_for(asyncio.to_thread(goaway, host, int(port)), 5)
            except TimeoutError:
                pass
            host, _, port = running.http.rpartition(":")
            for _ in range(20):
                await asyncio.to_thread(reset, host, int(port), b"GET /metrics HTTP/1.1")
                await asyncio.to_thread(reset, host, int(port), b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
            threading.Thread(target=lambda: 1 / 0).start()
            warnings.warn("line\\nfeed")
            os.write(2, b"\\xff" * 20000 + b"\\nno line feed at the end")
            await asyncio.sleep(0.3)
    print("restored", file=sys.stderr)

asyncio.run(main())
"""


def test_each_line_of_the_log_is_one_json_object_whatever_clients_send() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GATEWAY), str(TESTS)], capture_output=True, timeout=60, check=True
    )
    *lines, last = ran.stderr.decode().splitlines()
    assert last == "restored"
    records = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    messages = [record["message"] for record in records]
    assert any("Got goaway" in message for message in messages)
    assert "no line feed at the end" in messages
    assert any("ZeroDivisionError" in record.get("traceback", "") for record in records)
    assert not [record for record in records if "Connection reset" in record.get("traceback", record["message"])]


def test_a_text_line_has_no_control_characters_and_a_traceback_is_indented() -> None:
    error = ValueError("x\n12:00:00 info    forged\x1b[2J")
    record = logging.makeLogRecord(
        {"levelname": "INFO", "msg": "a\nb", "error": "c\nd", "reason": "R", "exc_info": (ValueError, error, None)}
    )
    first, *others = logs.TextFormatter().format(record).splitlines()
    assert first.endswith(r"a\nb (R: c\nd)")
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_pillow_logs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="debug", log_format="json")
    logging.getLogger("PIL.TiffImagePlugin").error("More samples per pixel than can be decoded: %s", 99)
    assert capsys.readouterr().err == ""
