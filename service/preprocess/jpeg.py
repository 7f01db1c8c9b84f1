"""What a JPEG says of itself: bytes in, its kind and its end out. Never decodes a picture."""

import struct
from dataclasses import dataclass

from service.preprocess.formats import unsupported

BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2  # what cameras and programs write
HUFFMAN_CODED = (BASELINE, EXTENDED, PROGRESSIVE)
_ARITHMETIC = (0xC9, 0xCA)  # the same, arithmetic coded
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the others are tables
_CODED_DATA = 0xDA  # the marker before a scan
_SEGMENT = struct.Struct(">BBH")  # 0xFF, the marker, the length of what follows the marker
_FRAME = struct.Struct(">BHH")  # bits per sample, height, width

_TABLES_AND_COMMENTS = frozenset({0xC4, 0xDB, 0xDD, 0xFE})  # Huffman, quantisation, restart interval; comment
_JFIF, _JFIF_BYTES = 0xE0, 16  # the marker, and the length of a segment without a thumbnail
_MOST_SEGMENTS = 32  # in a plain header
_MOST_FACTOR = 4  # samples of a colour in a block, in each direction

SCAN = b"\xff\xda"
END = b"\xff\xd9"
_RESTART_INTERVAL = b"\xff\xdd"
# More coded data. Where bits are missing the decoder takes zeros, and these begin with a one: so a picture whose data
# ends early becomes another picture.
_FILLER = b"\xaa" * 256


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame header: its marker, bits per sample, sides in pixels."""

    marker: int
    bits: int
    width_px: int
    height_px: int

    @property
    def is_arithmetic(self) -> bool:
        """Whether the data is arithmetic coded."""
        return self.marker in _ARITHMETIC


@dataclass(frozen=True, slots=True)
class Plain:
    """What a plain header says: sides in pixels, and the sampling factors (across, down) of one or three colours."""

    width_px: int
    height_px: int
    factors: tuple[tuple[int, int], ...]


def plain(encoded: bytes) -> Plain | None:
    """The header of a JPEG of 8 bits that has only what is needed to decode it, as most programs write it.

    None: it has more, such as EXIF, or it is odd. Then Pillow reads it.
    """
    at, found = 2, None
    for _ in range(_MOST_SEGMENTS):
        if at + _SEGMENT.size + _FRAME.size > len(encoded):
            break
        mark, marker, length = _SEGMENT.unpack_from(encoded, at)
        if mark != 0xFF or length < 2:
            break
        if marker == _CODED_DATA:
            return found
        content = at + _SEGMENT.size
        at += 2 + length
        if marker in HUFFMAN_CODED and found is None:
            found = _plain_frame(encoded[content:at])
            if found is not None:
                continue
        is_jfif = marker == _JFIF and length == _JFIF_BYTES and encoded.startswith(b"JFIF\0", content)
        if not is_jfif and marker not in _TABLES_AND_COMMENTS:
            break
    return None


def _plain_frame(content: bytes) -> Plain | None:
    if len(content) not in (9, 15):  # one colour, three colours
        return None
    bits, height, width = _FRAME.unpack_from(content)
    factors = tuple((value >> 4, value & 15) for value in content[7::3])
    if bits != 8 or content[5] != len(factors) or not all(1 <= n <= _MOST_FACTOR for pair in factors for n in pair):
        return None
    return Plain(width, height, factors)


def frame(encoded: bytes) -> Frame | None:
    """The frame header of a JPEG, None if there is none before the coded data."""
    at = 2
    while at + _SEGMENT.size + _FRAME.size <= len(encoded):
        if encoded[at] == encoded[at + 1] == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        mark, marker, length = _SEGMENT.unpack_from(encoded, at)
        if mark != 0xFF or marker == _CODED_DATA or length < 2:
            return None
        if marker in _FRAMES:
            bits, height, width = _FRAME.unpack_from(encoded, at + _SEGMENT.size)
            return Frame(marker, bits, width, height)
        at += 2 + length
    return None


def check_kind(found: Frame | None) -> None:
    """Raise `ImageFormatUnsupported` for a kind of JPEG that the decoder does not read."""
    if found is None or found.marker in (*HUFFMAN_CODED, *_ARITHMETIC):
        if found is not None and found.bits in (12, 16):
            raise unsupported(f"the picture is a JPEG of {found.bits} bits per sample, and only 8 bits are read")
        return
    kind = "lossless" if found.marker in _LOSSLESS else "hierarchical"
    raise unsupported(f"the picture is a {kind} JPEG, which is not read")


def lacks_end(encoded: bytes, found: Frame | None) -> bool:
    """Whether a JPEG of one scan has no end marker behind its scan. All of its pixels may be there.

    A JPEG with restart markers does not count: `ended` cannot tell whether the last of its parts are there.
    """
    if encoded.endswith(END) or found is None or found.marker not in (BASELINE, EXTENDED) or encoded.count(SCAN) != 1:
        return False
    scan = encoded.find(SCAN)
    return encoded.find(END, scan) < 0 and encoded.find(_RESTART_INTERVAL, 0, scan) < 0


def ended(encoded: bytes) -> tuple[bytes, bytes]:
    """A JPEG that lacks its end, with an end; and the same with more coded data before the end.

    If both have the same pixels, no pixel was missing.
    """
    coded = encoded.rstrip(b"\xff")
    return coded + END, coded + _FILLER + END
