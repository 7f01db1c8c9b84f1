"""What a worker measured is there for the worker that replaces it."""

from pathlib import Path

import pytest

from handlers.calibration import MOST_BYTES, Kept, one_of


def test_a_result_is_kept_for_the_same_key(tmp_path: Path) -> None:
    Kept(tmp_path, "micro-batch", "a" * 64, "torchscript/float32", "2").write("4")
    assert Kept(tmp_path, "micro-batch", "a" * 64, "torchscript/float32", "2").read() == "4"
    assert len(list(tmp_path.iterdir())) == 1
    for other in (("b" * 64, "torchscript/float32", "2"), ("a" * 64, "openvino/float32", "2")):
        assert Kept(tmp_path, "micro-batch", *other).read() is None
    assert Kept(tmp_path, "engine", "a" * 64, "torchscript/float32", "2").read() is None


@pytest.mark.parametrize("content", [b"", b"four", b"0", b"-1", b"9", b"4" * 100, b"\xff\x00"])
def test_a_result_that_cannot_be_right_is_measured_again(tmp_path: Path, content: bytes) -> None:
    kept = Kept(tmp_path, "micro-batch")
    kept.write("4")
    allowed = [str(number) for number in range(1, 9)]
    assert one_of(kept, allowed) == "4"
    [path] = tmp_path.iterdir()
    path.write_bytes(content)
    assert one_of(kept, allowed) is None
    assert len(kept.read() or "") <= MOST_BYTES


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    for directory in (None, tmp_path / "absent"):
        Kept(directory, "engine").write("4")
        assert Kept(directory, "engine").read() is None
