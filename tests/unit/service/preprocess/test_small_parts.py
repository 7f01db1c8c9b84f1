"""Pictures of very many small parts are refused after a bounded number of reads; real pictures need far fewer."""

import io
import struct
import zlib
from collections.abc import Iterator

import picture_files
import pytest
from PIL import Image

from benchmarks.hold.fuzz import hostile_pictures
from handlers.contract.card import InputSize, Preprocess
from service.core.errors import ImageCorrupt
from service.preprocess.image import decode
from service.preprocess.limits import EncodedStream, Limits
from service.preprocess.small_jpeg import is_small_jpeg

SIZE, SQUASH = InputSize(height=32, width=32), Preprocess(mode="squash")
LIMITS = Limits(max_bytes=20 * 2**20, max_pixels=64_000_000)


def reads_of(monkeypatch: pytest.MonkeyPatch, content: bytes) -> int:
    """How often Pillow reads from the stream of a picture."""
    reads = 0

    def counted(self: EncodedStream, size: int | None = -1, /) -> bytes:
        nonlocal reads
        reads += 1
        return io.BytesIO.read(self, size)

    monkeypatch.setattr(EncodedStream, "read", counted)
    decode(content, size=SIZE, preprocess=SQUASH, limits=LIMITS)
    monkeypatch.undo()
    return reads


@pytest.mark.parametrize("content", list(hostile_pictures.small_parts()), ids=lambda _: "")
def test_a_picture_of_very_many_small_parts_is_refused(content: bytes) -> None:
    with pytest.raises(ImageCorrupt, match="too many small parts"):
        decode(content, size=SIZE, preprocess=SQUASH, limits=LIMITS)


def real() -> Iterator[tuple[str, bytes]]:
    noise = picture_files.noise(1500, 1000)
    for form, options in (
        ("JPEG", {"quality": 95}), ("JPEG", {"progressive": True, "icc_profile": bytes(300_000)}),
        ("PNG", {}), ("GIF", {}),
    ):  # fmt: skip
        yield form, picture_files.encoded(noise, form, **options)


@pytest.mark.parametrize(("form", "content"), list(real()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_real_picture_needs_a_tenth_of_the_reads(monkeypatch: pytest.MonkeyPatch, form: str, content: bytes) -> None:
    assert reads_of(monkeypatch, content) < {"JPEG": 2000}.get(form, 10_000)


def test_a_png_with_a_chunk_for_each_byte_is_read() -> None:
    png = hostile_pictures.valid()["png"]
    packed = zlib.compress(bytes(16 * (24 * 3 + 1)))
    chunks = b"".join(
        struct.pack(">I", 1)
        + b"IDAT"
        + packed[at : at + 1]
        + struct.pack(">I", zlib.crc32(b"IDAT" + packed[at : at + 1]))
        for at in range(len(packed))
    )
    assert decode(png[:33] + chunks + png[-12:], size=SIZE, preprocess=SQUASH, limits=LIMITS).format == "PNG"


def test_a_small_jpeg_of_many_segments_is_not_decoded_on_the_event_loop() -> None:
    jpeg = picture_files.encoded(Image.new("RGB", (64, 64)), "JPEG")
    assert is_small_jpeg(jpeg)
    assert is_small_jpeg(jpeg[:2] + b"\xff\xfe\0\2" * 20 + jpeg[2:])
    assert not is_small_jpeg(jpeg[:2] + b"\xff\xfe\0\2" * 10_000 + jpeg[2:])
