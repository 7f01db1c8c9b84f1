"""What is refused before a picture is decoded: its bytes and its header in, an `InvalidImage` error or nothing out."""

import math
from dataclasses import dataclass
from io import BytesIO

from PIL import BmpImagePlugin, TiffImagePlugin

from service.core.errors import ImageCorrupt, ImageEmpty, ImageTooManyBytes, ImageTooManyPixels
from service.preprocess.formats import SUPPORTED_FORMATS, TIFF_OFFSETS
from service.preprocess.memory import TiffHeader, block_sides, sample_bytes

# What a scan, a block or a step of run lengths costs at least, in pixels that are decoded in the same time.
_SCAN_PX = 2**16
_BLOCK_PX = 2**12
_RUN_STEP_PX = 200  # decoded in Python

# Pillow reads the chunks of a PNG, the segments of a JPEG and the blocks of a GIF in Python, some microseconds each,
# and holds the GIL. A PNG of 20 MiB of empty chunks took 5 s, a JPEG of fill bytes 50 s. Encoders write a handful of
# segments, and chunks of some kilobytes, or one per row. BMPs and TIFFs have limits of their own.
_MOST_READS = {"PNG": 100_000, "GIF": 100_000, "JPEG": 20_000}
_BYTES_PER_READ = 512  # large pictures may have more

_BMP_RUN_LENGTHS = (1, 2)  # BITMAPINFOHEADER: BI_RLE8, BI_RLE4
_TIFF_JPEG = (6, 7)  # values of the tag Compression
_TIFF_BYTE_PX = 2 / 3  # what a byte of a strip or tile costs: deflate and LZMA give 0.5 GB/s at most
_TIFF_PLANES = 2  # value of the tag PlanarConfiguration: each colour has its own blocks
# Strips may share bytes, such as those of white rows. They must not all be the whole file.
_MAX_TIFF_REUSE = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest picture that is accepted. The default is that of the setting.

    `max_bytes`: encoded bytes. `max_pixels`: width * height as the header states them. `max_side_px`: the longer of
    the two. `max_decode_bytes`: memory of all decodes at once. `max_decode_pixels`: pixels that
    the decoder goes through, counted once per scan. `formats`: names of the accepted formats.
    """

    max_bytes: int
    max_pixels: int
    max_side_px: int = 16_384
    max_decode_bytes: int = 384 * 2**20
    max_decode_pixels: int = 1_000_000_000
    formats: tuple[str, ...] = SUPPORTED_FORMATS


class EncodedStream(BytesIO):
    """The bytes of a picture of format `name`. Raises `ImageCorrupt` if they are read in too many small pieces."""

    def __init__(self, encoded: bytes, name: str) -> None:
        super().__init__(encoded)
        self._name = name
        most = _MOST_READS.get(name)
        self._reads_left = math.inf if most is None else most + len(encoded) // _BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes. Raises `ImageCorrupt`."""
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ImageCorrupt(f"the {self._name} has far too many small parts; encode the picture again")
        return super().read(size)


def check_bytes(image: bytes, limits: Limits) -> None:
    """Raise `ImageEmpty` or `ImageTooManyBytes`."""
    if not image:
        raise ImageEmpty("the request has no image bytes; put the content of the picture file into `image`")
    if len(image) > limits.max_bytes:
        raise ImageTooManyBytes(
            f"the picture has {len(image)} bytes, this server accepts {limits.max_bytes}; "
            "scale it down or raise the JPEG compression",
            metadata={"limit_bytes": str(limits.max_bytes), "actual_bytes": str(len(image))},
        )


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Raise `ImageTooManyPixels`, or `ImageCorrupt` if a side is not positive. Sides in pixels."""
    if width <= 0 or height <= 0:
        raise ImageCorrupt(f"the header states a picture of {width} x {height} pixels")
    if max(width, height) > limits.max_side_px:
        raise ImageTooManyPixels(
            f"the picture has {width} x {height} pixels, this server accepts {limits.max_side_px} on a side; "
            "scale it down",
            metadata={"limit_side_px": str(limits.max_side_px), "width": str(width), "height": str(height)},
        )
    if width * height > limits.max_pixels:
        raise ImageTooManyPixels(
            f"the picture has {width} x {height} pixels, this server accepts {limits.max_pixels} in all; scale it down",
            metadata={"limit_pixels": str(limits.max_pixels), "width": str(width), "height": str(height)},
        )


def check_memory(needed: int, width: int, height: int, limits: Limits) -> None:
    """Raise `ImageTooManyPixels` if decoding needs more bytes than all decodes may take. Sides in pixels."""
    if needed > limits.max_decode_bytes:
        raise ImageTooManyPixels(
            f"the picture of {width} x {height} pixels needs {needed} bytes of memory to decode, this server has "
            f"{limits.max_decode_bytes}; scale it down or send a baseline JPEG",
            metadata={"limit_decode_bytes": str(limits.max_decode_bytes), "width": str(width), "height": str(height)},
        )


def check_scans(encoded: bytes, width: int, height: int, limits: Limits) -> int:
    """Return how many scans a JPEG has at most. Raise `ImageCorrupt` if they would take many seconds. Sides in pixels.

    In coded data a zero follows each 0xFF. So this counts scan headers, and a few chance hits in metadata.
    """
    scans = encoded.count(b"\xff\xda")
    if scans > 1:
        check_work(scans * max(width * height, _SCAN_PX), f"the JPEG has {scans} scans", limits)
    return scans


def check_run_lengths(picture: BmpImagePlugin.BmpImageFile, encoded: bytes, limits: Limits) -> None:
    """Raise `ImageCorrupt` if a BMP of run lengths would take seconds. Pillow decodes them in Python."""
    if picture.info.get("compression") in _BMP_RUN_LENGTHS:
        steps = len(encoded) + picture.width * picture.height
        check_work(steps * _RUN_STEP_PX, "the BMP has run lengths", limits)


def check_blocks(picture: TiffHeader, encoded: bytes, limits: Limits) -> None:
    """Raise `ImageCorrupt` if the strips or tiles of a TIFF are too many, too large, or read the same bytes again."""
    tags = picture.tag_v2
    across_px, down_px = block_sides(picture)
    count = math.ceil(picture.width / across_px) * math.ceil(picture.height / down_px)
    work = math.ceil(count * across_px * down_px * max(1, sample_bytes(picture) * _TIFF_BYTE_PX))
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _TIFF_PLANES:
        count *= int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL) or 1)
    what = f"the TIFF has {count} blocks of {across_px} x {down_px} pixels"
    check_work(max(work, count * _BLOCK_PX), what, limits)
    starts, lengths = next(
        ((tags[offsets], tags[counts]) for offsets, counts in TIFF_OFFSETS if offsets in tags and counts in tags),
        ((), ()),
    )
    # What lies behind the end of the file cannot be read.
    blocks = zip(starts[:count], lengths[:count], strict=False)
    read = sum(max(min(int(length), len(encoded) - int(start)), 0) for start, length in blocks)
    is_jpeg = tags.get(TiffImagePlugin.COMPRESSION) in _TIFF_JPEG
    if read > len(encoded) * (1 if is_jpeg else _MAX_TIFF_REUSE):
        raise ImageCorrupt(f"{what}, which hold {read} bytes; the file has {len(encoded)}")
    if is_jpeg:
        check_scans(encoded, across_px, down_px, limits)


def check_work(pixels: int, what: str, limits: Limits) -> None:
    """Raise `ImageCorrupt` if decoding goes through more `pixels` than allowed. `what` says why they are so many."""
    if pixels > limits.max_decode_pixels:
        raise ImageCorrupt(
            f"{what}: decoding would take as long as {pixels} pixels, this server accepts {limits.max_decode_pixels}; "
            "encode the picture again with usual options"
        )
