import os

import numpy as np
import pytest

from handlers import exchange, frame, vision
from handlers.runtime import DeviceLost


class LostRunner:
    dtype_name, device = "float16", "cuda:0"

    def run(self, rows):
        raise DeviceLost("cuda:0 does not answer this process any more: CUDA error")


class Ended(BaseException):
    pass


def test_a_worker_that_lost_its_gpu_ends_so_that_another_starts(monkeypatch, caplog):
    def end(status):
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(vision.logging, "shutdown", lambda: None)
    monkeypatch.setattr(vision, "_runner", LostRunner())
    request = frame.pack({exchange.PIXELS: np.zeros((1, 4, 4, 3), np.uint8)})
    with pytest.raises(Ended, match=str(vision.DEVICE_LOST_STATUS)):
        vision.handle([{"frame": request}], None)
    assert "cuda:0 does not answer" in caplog.text
