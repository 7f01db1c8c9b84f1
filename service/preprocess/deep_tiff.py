"""TIFFs that Pillow does not read: bytes in, their kind out, and the pixels of some kinds by OpenCV.

OpenCV reads colours of 32 bits and of floats, and grey of 16 bits with alpha. Alpha is dropped.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from handlers.contract.frame import Array
from service.preprocess.colours import rows_per_block, scaled

# OpenCV's libtiff writes a line into the log for every odd tag.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # values of the tag SampleFormat
_KINDS = frozenset(  # photometric, samples, bits, sample format
    {(2, samples, bits, form) for samples in (3, 4) for bits, form in ((32, _UNSIGNED), (32, _FLOAT), (64, _FLOAT))}
    | {(1, 1, 64, _FLOAT), (1, 2, 16, _UNSIGNED)}
)
_FORMATS = {_UNSIGNED: "unsigned integers", _SIGNED: "signed integers", _FLOAT: "floats"}
_ORIENTATION = 274


def accept_grey_named_colours() -> None:
    """Let Pillow read colours whose header calls them "grey, black is 0", as satellite pictures do. Call it once."""
    table = TiffImagePlugin.OPEN_INFO
    for (order, photometric, form, fill, bits, extra), modes in list(table.items()):
        if photometric == 2 and len(bits) >= 3:
            table.setdefault((order, 1, form, fill, bits, extra), modes)


@dataclass(frozen=True, slots=True)
class Header:
    """The directory of the first page. Sides in pixels. `tag_v2` maps tags to values, as Pillow's images do."""

    tag_v2: TiffImagePlugin.ImageFileDirectory_v2
    width: int
    height: int
    bits: int
    samples: int
    sample_format: int
    photometric: int

    @property
    def is_read(self) -> bool:
        """Whether `pixels` reads this kind."""
        return (self.photometric, self.samples, self.bits, self.sample_format) in _KINDS

    @property
    def kind(self) -> str:
        """The kind in words."""
        form = _FORMATS.get(self.sample_format, f"of sample format {self.sample_format}")
        return (
            f"TIFF of {self.samples} x {self.bits} bits per pixel ({form}, photometric interpretation "
            f"{self.photometric}, compression {int(self.tag_v2.get(TiffImagePlugin.COMPRESSION, 1))})"
        )

    @property
    def is_swapped(self) -> bool:
        """Whether the upright picture is as wide as the stored one is high."""
        return self.tag_v2.get(_ORIENTATION, 1) in range(5, 9)

    @property
    def decode_bytes(self) -> int:
        """Memory of the decoded pixels and of their copies, in bytes."""
        return self.width * self.height * (3 * self.samples * self.bits // 8 + 8)


def header(encoded: bytes) -> Header | None:
    """The header of a TIFF, None if it is damaged or says something twice."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(encoded[:16] if b"+" in encoded[2:4] else encoded[:8])
        stream = BytesIO(encoded)
        if not _is_plain(encoded, tags.next):
            return None
        stream.seek(tags.next)
        tags.load(stream)
        bits = tuple(int(value) for value in tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        forms = tuple(int(value) for value in tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)))
        if len({*bits}) != 1 or len({*forms}) != 1:
            return None
        return Header(
            tag_v2=tags,
            width=int(tags[TiffImagePlugin.IMAGEWIDTH]),
            height=int(tags[TiffImagePlugin.IMAGELENGTH]),
            bits=bits[0],
            samples=int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)),
            sample_format=forms[0],
            photometric=int(tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION]),
        )
    except Exception:  # noqa: BLE001 - hostile bytes raise nearly any exception
        return None


def _is_plain(encoded: bytes, at: int) -> bool:
    """Whether no tag comes twice, and the sides are one whole number each.

    Otherwise OpenCV could read another size than the one that was checked.
    """
    order = "<" if encoded[:2] == b"II" else ">"
    is_big = b"+" in encoded[2:4]  # BigTIFF
    count, entry = (order + "Q", order + "HHQ8x") if is_big else (order + "H", order + "HHI4x")
    (number,) = struct.unpack_from(count, encoded, at)
    at += struct.calcsize(count)
    entries = [struct.unpack_from(entry, encoded, at + place * struct.calcsize(entry)) for place in range(number)]
    sides = [values for tag, *values in entries if tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH)]
    return len({tag for tag, *_ in entries}) == number and all(value in ([3, 1], [4, 1]) for value in sides)


def pixels(encoded: bytes, found: Header) -> Image.Image:
    """Decode a kind that `is_read`: mode RGB or L, upright. Raises `OSError` or `cv2.error` if it is damaged."""
    samples = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)  # turned as the tag says
    sides = (found.width, found.height) if found.is_swapped else (found.height, found.width)
    if samples is None or samples.shape[:2] != sides:
        raise OSError("its strips or tiles cannot be decoded")
    if samples.dtype == np.uint8:  # grey with alpha: scaled already
        return Image.fromarray(samples if samples.ndim == 2 else samples[..., 0])
    if samples.ndim == 3:
        samples = samples[..., 2::-1]  # OpenCV's order is BGR
    height, width = samples.shape[:2]
    rows = rows_per_block(width)

    def blocks() -> Iterator[tuple[int, Array]]:
        for top in range(0, height, rows):
            yield top, samples[top : top + rows]

    return Image.fromarray(scaled(samples.shape, blocks, floats=found.sample_format == _FLOAT))
