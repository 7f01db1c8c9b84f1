"""PNG without what is not needed to read its pixels: bytes in, bytes out. Never decodes a picture."""

import struct
import zlib

from service.core.errors import ImageCorrupt

_SIGNATURE_BYTES = 8
_CHUNK = struct.Struct(">I4s")  # length of the body, kind; a checksum of four bytes follows the body
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Texts that may hold the orientation. They are kept where they are small.
_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
# Both for the loop below and for Pillow, which reads three times for each chunk.
_MOST_CHUNKS, _BYTES_PER_CHUNK = 30_000, 2048
_MAX_TEXT_BYTES = 2**19  # unpacked; Pillow refuses a picture whose text or profile has twice as many


def without_extras(encoded: bytes) -> bytes:
    """The PNG without colour profile and texts. The first text of each kind that may hold the orientation stays.

    Damage is left for the decoder to find. Raises `ImageCorrupt` for far more chunks than a picture has.
    """
    chunks_left = _MOST_CHUNKS + len(encoded) // _BYTES_PER_CHUNK
    kept: list[bytes] = []
    seen: set[bytes] = set()
    at = start = _SIGNATURE_BYTES
    head = encoded[:start]
    while at + _CHUNK.size <= len(encoded):
        chunks_left -= 1
        if chunks_left < 0:
            raise ImageCorrupt("the PNG has far too many small parts; encode the picture again")
        length, kind = _CHUNK.unpack_from(encoded, at)
        after = at + _CHUNK.size + length + 4
        if after > len(encoded):
            break
        if kind == b"iCCP" or (kind in _TEXTS and not _is_needed(kind, encoded[at + _CHUNK.size : after - 4], seen)):
            kept.append(encoded[start:at])
            start = after
        at = after
    if start == _SIGNATURE_BYTES:
        return encoded
    return b"".join((head, *kept, encoded[start:]))


def _is_needed(kind: bytes, body: bytes, seen: set[bytes]) -> bool:
    keyword = next((word for word in _ORIENTATION if body.startswith(word)), None)
    if keyword is None or keyword in seen or len(body) > _MAX_TEXT_BYTES:
        return False
    seen.add(keyword)
    if kind == b"tEXt":
        return True
    packed = body[len(keyword) :]
    if kind == b"iTXt":
        if packed[:1] != b"\x01":  # not compressed
            return True
        packed = packed[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind language and translated keyword
    else:
        packed = packed[1:]
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, _MAX_TEXT_BYTES)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail
