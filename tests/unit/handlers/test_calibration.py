"""What a worker measured is there for the worker that replaces it."""

from pathlib import Path

import pytest

from handlers.calibration import KeptCalibration


def kept(directory: Path | None, **changes: object) -> KeptCalibration:
    about: dict[str, object] = {"module_sha256": "a" * 64, "pair": "torchscript/float32", "threads": 2}
    return KeptCalibration(directory, **about | changes)  # type: ignore[arg-type]


def test_a_number_is_kept_for_the_same_module_engine_and_threads(tmp_path: Path) -> None:
    kept(tmp_path).write(4)
    assert kept(tmp_path).read(8) == 4
    assert len(list(tmp_path.iterdir())) == 1
    for changes in ({"module_sha256": "b" * 64}, {"pair": "openvino/float32"}, {"threads": 1}):
        assert kept(tmp_path, **changes).read(8) is None


@pytest.mark.parametrize("content", [b"", b"four", b"0", b"-1", b"9", b"4" * 100, b"\xff\x00"])
def test_a_number_that_cannot_be_right_is_measured_again(tmp_path: Path, content: bytes) -> None:
    kept(tmp_path).write(4)
    [path] = tmp_path.iterdir()
    path.write_bytes(content)
    assert kept(tmp_path).read(8) is None


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    for directory in (None, tmp_path / "absent"):
        kept(directory).write(4)
        assert kept(directory).read(8) is None
