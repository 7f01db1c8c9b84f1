import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from handlers import vision
from handlers.contract import frame, worker_protocol
from handlers.runtime import DeviceLost, RuntimeOptions


class LostRunner:
    engine, refused = "torchscript", ()
    dtype_name, device, micro_batch = "float16", "cuda:0", 1

    def run(self, rows):
        raise DeviceLost("cuda:0 does not answer this process any more: CUDA error")


class Ended(BaseException):
    pass


def test_a_worker_that_lost_its_gpu_ends_so_that_another_starts(monkeypatch, caplog):
    def end(status):
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(vision.logging, "shutdown", lambda: None)
    monkeypatch.setattr(vision, "_worker", vision.Worker(LostRunner(), RuntimeOptions()))
    request = frame.pack({worker_protocol.PIXELS: np.zeros((1, 4, 4, 3), np.uint8)})
    with pytest.raises(Ended, match=str(vision.DEVICE_LOST_STATUS)):
        vision.handle([{"frame": request}], None)
    assert "cuda:0 does not answer" in caplog.text


HANGING = """
    import socket, sys
    from pathlib import Path
    import numpy as np
    from handlers.contract import worker_protocol, frame
    from handlers import vision
    from handlers.contract.worker_protocol import REQUEST
    from handlers.runtime import RuntimeOptions

    class Hanging:
        engine, refused = "openvino", ()
        dtype_name, device, micro_batch = "float32", "cpu", 1
        def run(self, rows):
            exec("while True: pass") if rows[0].any() else None
            return {"ok": np.zeros(1, np.float32)}

    base = Path(sys.argv[1])
    folder = base / "mobilevision-shm-test"
    folder.mkdir(mode=0o700)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "m.calls"))
    server.listen()
    probe = folder / "probe"
    probe.write_text("token")
    import fcntl
    held = probe.open("r+")
    fcntl.flock(held, fcntl.LOCK_EX)
    vision._worker = vision.Worker(Hanging(), RuntimeOptions(shm_dir=base, batch_timeout_seconds=1.0))
    hello = frame.pack({}, {"hello": "mobilevision-shm-test/probe", "call": "mobilevision-shm-test/m.calls"})
    told = frame.unpack(vision.handle([{"frame": hello}], None)[0])[1]
    print(told["token"], told["engine"], told["dtype"], told["device"], flush=True)
    connection, _ = server.accept()
    for shade in (0, 1):
        request = frame.pack({worker_protocol.PIXELS: np.full((1, 4, 4, 3), shade, np.uint8)})
        connection.sendall(REQUEST.pack(len(request)) + request)
        print(len(connection.recv(4096)) > 0, flush=True)
"""


def test_a_batch_from_a_gateway_connection_that_hangs_ends_the_worker(tmp_path):
    began = time.monotonic()
    command = [sys.executable, "-c", textwrap.dedent(HANGING), str(tmp_path)]
    worker = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert worker.returncode == -signal.SIGALRM
    assert worker.stdout.splitlines() == ["token openvino float32 cpu", "True"]  # and no answer to the second batch
    assert " in run\n" in worker.stderr  # where it hung
    assert time.monotonic() - began >= 1.0
