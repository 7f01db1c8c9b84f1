"""Formats of encoded pictures: bytes in, the name of the format or a fitting error out. Never decodes a picture.

Formats are recognised by their first bytes.
"""

import re
import struct
from io import BytesIO

from PIL import TiffImagePlugin, UnidentifiedImageError

from service.core.errors import ImageCorrupt, ImageFormatUnsupported, ImageTruncated, InvalidImage

SUPPORTED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

_SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("TIFF", re.compile(rb"II[*+]\x00|MM\x00[*+]")),  # + is BigTIFF
    ("BMP", re.compile(rb"BM.{12}[\x0c-\x80]\x00\x00\x00", re.DOTALL)),  # many texts begin with "BM"
)
# Formats that callers send by mistake. The error names them.
_FOREIGN = (
    ("AVIF", re.compile(rb"....ftyp(avi[fs]|(mif1|msf1)....(....){0,30}?avi[fs])", re.DOTALL)),
    ("HEIC", re.compile(rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)),
    ("JPEG XL", re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL ")),
    ("JPEG 2000", re.compile(rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51")),
    ("MP4 video", re.compile(rb"....ftyp", re.DOTALL)),
    ("PDF", re.compile(rb"%PDF")),
    ("SVG", re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.DOTALL)),
    ("HTML", re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)),
    ("base64 text: send the decoded bytes", re.compile(rb"(data:image|/9j/|iVBORw0KGgo|UklGR)")),
    ("PSD", re.compile(rb"8BPS")),
    ("ICO", re.compile(rb"\x00\x00\x01\x00")),
)

TIFF_OFFSETS = ((273, 279), (324, 325))  # tags: StripOffsets and StripByteCounts, TileOffsets and TileByteCounts


def format_of(image: bytes, accepted: tuple[str, ...] = SUPPORTED_FORMATS) -> str:
    """The name of the format, one of `accepted`. Raises `ImageFormatUnsupported`."""
    for name, signature in _SIGNATURES:
        if signature.match(image):
            if name not in accepted:
                raise unsupported(f"this server does not accept {name}", accepted)
            return name
    # Only the first bytes are looked at: some of these patterns would read through megabytes of text.
    head = image[:512]
    guess = next((f" ({name})" for name, signature in _FOREIGN if signature.match(head)), "")
    raise unsupported(f"the bytes are no picture this server reads{guess}", accepted)


def unsupported(what: str, accepted: tuple[str, ...] = SUPPORTED_FORMATS) -> ImageFormatUnsupported:
    """The error for a picture of another format. `what` says what is wrong."""
    return ImageFormatUnsupported(
        f"{what}; it reads {', '.join(accepted)}", metadata={"supported_formats": ",".join(accepted)}
    )


def damage(error: Exception, name: str, encoded: bytes, *, header_read: bool, at_end: bool) -> InvalidImage:
    """The error for a picture of format `name` on which Pillow raised `error`: it ends early, or it is broken.

    `header_read`: Pillow could read the header. `at_end`: Pillow had read all bytes when it gave up.
    """
    detail = str(error) if not isinstance(error, UnidentifiedImageError) else "its header cannot be read"
    detail = " ".join((detail or type(error).__name__).split())[:200]
    if name == "WEBP":  # decoded in one piece, so only the container's length shows it
        truncated = struct.unpack_from("<I", encoded, 4)[0] + 8 > len(encoded)
    elif name == "TIFF":  # read through libtiff, out of order
        truncated = "truncated" in detail.lower() or tiff_ends_early(encoded)
    else:  # headers and PNG chunks are read in order: a reader at the end wanted more
        truncated = "truncated" in detail.lower() or (at_end and (not header_read or name == "PNG"))
    if truncated:
        return ImageTruncated(f"the {name} picture ends before its data does, after {len(encoded)} bytes: {detail}")
    return ImageCorrupt(f"the {name} picture is broken: {detail}")


def tiff_ends_early(encoded: bytes) -> bool:
    """Whether the directory, strips or tiles of a TIFF lie behind the end of the file."""
    try:
        stream = BytesIO(encoded)
        directory = TiffImagePlugin.ImageFileDirectory_v2(encoded[:16] if encoded[2:3] in b"+" else encoded[:8])
        if directory.next > len(encoded) - 2:
            return True
        stream.seek(directory.next)
        directory.load(stream)
        (strips, strip_bytes), (tiles, tile_bytes) = TIFF_OFFSETS
        offsets = directory.get(strips, directory.get(tiles, ()))
        lengths = directory.get(strip_bytes, directory.get(tile_bytes, ()))
        if not offsets:
            return stream.tell() >= len(encoded)
        return any(start + length > len(encoded) for start, length in zip(offsets, lengths, strict=False))
    except Exception:  # noqa: BLE001 - the picture is refused already; this only chooses the error
        return True
