"""Whether a picture is a JPEG that is decoded within milliseconds: encoded bytes in, yes or no out.

The headers alone decide. They are read as Pillow reads them: what Pillow would read in another way is not small. Never
decodes anything.
"""

import struct

_MOST_BYTES = 64 * 1024
_MOST_PIXELS = 512 * 512  # decoded in one or two milliseconds
_MOST_SEGMENTS = 64  # before the coded data. Pillow reads them in Python; cameras write some twenty.
_MOST_METADATA_BYTES = 8 * 1024  # of applications and comments; Pillow takes 4 ms for so many EXIF tags
_MOST_SCANS = 4  # one for each of three colours, and one of a thumbnail. Each scan is a pass over the picture.

_START = b"\xff\xd8\xff"
_SCAN = b"\xff\xda"  # a scan header
_BASELINE, _EXTENDED, _CODED_DATA = 0xC0, 0xC1, 0xDA  # markers
_TABLES = frozenset({0xC4, 0xDB, 0xDD})  # Huffman tables, quantisation tables, restart interval
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})  # applications, comment
_SEGMENT = struct.Struct(">BBH")  # 0xFF, the marker, the length of what follows the marker
_SIDES = struct.Struct(">xHH")  # bits per sample; height, width


def is_small_jpeg(image: bytes) -> bool:
    """Whether these bytes are a small JPEG of few scans."""
    if len(image) > _MOST_BYTES or not image.startswith(_START) or image.count(_SCAN) > _MOST_SCANS:
        return False
    at, pixels, metadata_bytes = 2, 0, 0
    for _ in range(_MOST_SEGMENTS):
        if at + _SEGMENT.size + _SIDES.size > len(image):
            return False
        mark, marker, length = _SEGMENT.unpack_from(image, at)
        if mark != 0xFF or length < 2:
            return False
        if marker == _CODED_DATA:
            return 0 < pixels <= _MOST_PIXELS and metadata_bytes <= _MOST_METADATA_BYTES
        if marker in (_BASELINE, _EXTENDED):
            height, width = _SIDES.unpack_from(image, at + _SEGMENT.size)
            pixels = max(pixels, height * width)
        elif marker in _METADATA:
            metadata_bytes += length
        elif marker not in _TABLES:
            return False
        at += 2 + length
    return False
