"""Mutation without coverage: bytes in, other bytes out. The same seed gives the same bytes."""

import random
import struct
import zlib

_NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_WIDTHS = ("B", "<H", ">H", "<I", ">I")
_TEXTS = (
    b"[" * 2000,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"{}",
    b"[]",
    b'""',
    b"9" * 300,
    b"true",
    b"\xff\xda",
    b"\0" * 64,
)
_PNG = b"\x89PNG\r\n\x1a\n"


def mutated(content: bytes, other: bytes, draw: random.Random, longest_bytes: int) -> bytes:
    """Return `content` after one to four changes. `other` gives pieces to copy. At most `longest_bytes` long."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        draw.choice(_CHANGES)(changed, other, draw)
    if changed.startswith(_PNG) and draw.random() < 0.7:
        return _with_checksums(bytes(changed))[:longest_bytes]
    return bytes(changed[:longest_bytes])


def _place(changed: bytearray, draw: random.Random) -> int:
    # Headers are at the start: half of the changes are there.
    limit = min(len(changed), 128) if draw.random() < 0.5 else len(changed)
    return draw.randrange(limit) if limit else 0


def _flip(changed: bytearray, other: bytes, draw: random.Random) -> None:
    if changed:
        changed[_place(changed, draw)] ^= 1 << draw.randrange(8)


def _byte(changed: bytearray, other: bytes, draw: random.Random) -> None:
    if changed:
        changed[_place(changed, draw)] = draw.randrange(256)


def _number(changed: bytearray, other: bytes, draw: random.Random) -> None:
    width = draw.choice(_WIDTHS)
    size = struct.calcsize(width)
    at = _place(changed, draw)
    changed[at : at + size] = struct.pack(width, draw.choice(_NUMBERS) % 256**size)


def _cut(changed: bytearray, other: bytes, draw: random.Random) -> None:
    at = _place(changed, draw)
    del changed[at : at + draw.choice((1, 2, 4, 16, 256, len(changed)))]


def _repeat(changed: bytearray, other: bytes, draw: random.Random) -> None:
    at = _place(changed, draw)
    piece = bytes(changed[at : at + draw.choice((1, 4, 12, 64, 512))])
    changed[at:at] = piece * draw.choice((1, 2, 16, 200))


def _copy(changed: bytearray, other: bytes, draw: random.Random) -> None:
    if other:
        start = draw.randrange(len(other))
        at = _place(changed, draw)
        piece = other[start : start + draw.choice((2, 8, 64, 1024))]
        changed[at : at + draw.choice((0, len(piece)))] = piece


def _text(changed: bytearray, other: bytes, draw: random.Random) -> None:
    at = _place(changed, draw)
    changed[at : at + draw.choice((0, 1, 4))] = draw.choice(_TEXTS)


_CHANGES = (_flip, _byte, _number, _number, _cut, _repeat, _copy, _text)


def _with_checksums(png: bytes) -> bytes:
    """Return a PNG whose chunks have the right checksums, so that a decoder reads on."""
    parts, at = [png[:8]], 8
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(png):
            break
        body = png[at + 4 : end]
        parts += [png[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at = end + 4
    return b"".join(parts) + png[at:]
