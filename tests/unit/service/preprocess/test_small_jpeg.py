"""Which JPEGs are small, by their headers."""

import picture_files
import pytest

from service.preprocess.small_jpeg import is_small_jpeg

IMAGE = picture_files.PICTURES["jpeg"]
SCAN = IMAGE.index(b"\xff\xda")
BIG_FRAME = bytes.fromhex("ffc0 0011 08 1f40 1f40 03 012200 021101 031101")  # 8000 x 8000 pixels


@pytest.mark.parametrize(
    "inserted",
    [b"", b"\xff\xfe\x00\x04ab", b"\xff\xe1\x00\x02" * 50],
    ids=["as it is", "a comment", "segments of a camera"],
)
def test_usual_headers(inserted: bytes) -> None:
    assert is_small_jpeg(IMAGE[:2] + inserted + IMAGE[2:])


@pytest.mark.parametrize(
    ("at", "inserted"),
    [
        (2, b"\xff"),
        (2, b"\xff\xd0"),
        (2, b"\xff\x01\x00\x02"),
        (2, b"\xff\xe5\x00\x02" * 10_000),
        (2, b"\xff\xe1\x28\x00" + bytes(0x2800 - 2)),
        (SCAN, BIG_FRAME),
        (SCAN, b"\xff\xe5\x00\x02" * 10_000),
    ],
    ids=[
        "fill byte",
        "restart",
        "reserved",
        "many segments",
        "10 KiB of EXIF",
        "second frame",
        "many segments after the frame",
    ],
)
def test_headers_that_pillow_reads_in_another_way_or_for_long(at: int, inserted: bytes) -> None:
    assert not is_small_jpeg(IMAGE[:at] + inserted + IMAGE[at:])
