"""Every kind of picture file the tests need, made in code: names to bytes, no files.

`PICTURES` can be decoded, `BROKEN` must be refused with the reason beside it.
"""

import base64
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
WIDTH, HEIGHT = 64, 48
# What undoes each EXIF orientation's way of storing: upright -> stored.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def quadrants(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Upright picture that shows every flip: top left red, top right green, bottom left blue, bottom right white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    half_x, half_y = width // 2, height // 2
    pixels[:half_y, :half_x] = (255, 0, 0)
    pixels[:half_y, half_x:] = (0, 255, 0)
    pixels[half_y:, :half_x] = (0, 0, 255)
    pixels[half_y:, half_x:] = (255, 255, 255)
    return Image.fromarray(pixels)


def gradient(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Smooth uint8 (height, width, 3): survives JPEG almost unchanged."""
    x = np.linspace(0, 255, width)[None, :]
    y = np.linspace(0, 255, height)[:, None]
    planes = [x + 0 * y, y + 0 * x, (x + y) / 2]
    return np.stack(planes, axis=-1).astype(np.uint8)


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def rotated(orientation: int, format_name: str = "JPEG", *, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """`quadrants` stored turned, with the EXIF orientation that makes it upright again."""
    image = quadrants(*size)
    how = STORED[orientation]
    stored = image if how is None else image.transpose(how)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format_name, {})
    return encoded(stored, format_name, exif=exif(orientation), **options)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def cmyk_jpeg(*, adobe: bool = True) -> bytes:
    data = encoded(Image.fromarray(gradient()).convert("CMYK"), "JPEG", quality=95)
    if adobe:
        return data
    start = data.index(b"\xff\xee")  # the Adobe marker says that the ink values are inverted
    return data[:start] + data[start + 2 + struct.unpack_from(">H", data, start + 2)[0] :]


def sixteen_bit_png() -> bytes:
    """Horizontal ramp 0..65535."""
    ramp = np.tile(np.linspace(0, 65535, WIDTH).astype(np.uint16), (HEIGHT, 1))
    return encoded(Image.fromarray(ramp), "PNG")


def png(width: int, height: int, *, data: bytes = b"", bit_depth: int = 8, colour: int = 2) -> bytes:
    """A PNG from parts: the header may promise anything."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def many_scans_jpeg() -> bytes:
    """A progressive JPEG of 16000 x 8000 pixels that repeats a scan header thousands of times."""
    small = encoded(Image.fromarray(gradient()), "JPEG", progressive=True)
    frame = small.index(b"\xff\xc2")
    big = small[: frame + 5] + struct.pack(">HH", 8000, 16000) + small[frame + 9 :]
    scan = big.rindex(b"\xff\xda")
    return big[:-2] + big[scan:-2] * 2000 + b"\xff\xd9"


def animation(format_name: str) -> bytes:
    """First frame red, then blue."""
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format_name == "WEBP" else {}
    return encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options)


def _rgba() -> Image.Image:
    image = quadrants().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    return image


def _palette(transparency: bytes | int) -> bytes:
    return encoded(quadrants().quantize(8), "PNG", transparency=transparency)


def _grey(mode: str) -> Image.Image:
    return Image.fromarray(gradient()).convert(mode)


def _float_tiff(scale: float) -> bytes:
    ramp = np.tile(np.linspace(0, scale, WIDTH, dtype=np.float32), (HEIGHT, 1))
    return encoded(Image.fromarray(ramp), "TIFF")


def _tiff(compression: str) -> bytes:
    return encoded(quadrants(), "TIFF", compression=compression)


def tiff(
    samples: np.ndarray, *, photometric: int, extra: int | None = None, orientation: int = 1, order: str = "<"
) -> bytes:
    """An uncompressed TIFF of one strip: `samples` (height, width, samples per pixel), in any dtype."""
    height, width, count = samples.shape
    samples = samples.astype(samples.dtype.newbyteorder(order))
    bits, form = samples.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    body = samples.tobytes()
    shorts: list[tuple[int, list[int]]] = [
        (258, [bits] * count), (259, [1]), (262, [photometric]), (274, [orientation]), (277, [count]), (284, [1]),
        (339, [form] * count),
    ]  # fmt: skip
    if extra is not None:
        shorts.append((338, [extra]))
    longs = [(256, width), (257, height), (273, 0), (278, height), (279, len(body))]
    after = 8 + 2 + 12 * (len(shorts) + len(longs)) + 4
    tail, entries = b"", {}
    for tag, values in shorts:
        packed = struct.pack(f"{order}{len(values)}H", *values)
        field = packed.ljust(4, b"\0")
        if len(packed) > 4:
            field, tail = struct.pack(f"{order}I", after + len(tail)), tail + packed
        entries[tag] = struct.pack(f"{order}HHI", tag, 3, len(values)) + field
    for tag, value in longs:
        entries[tag] = struct.pack(f"{order}HHII", tag, 4, 1, after + len(tail) if tag == 273 else value)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    return head + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4) + tail + body


def _ramp(dtype: str, channels: int, full: float) -> np.ndarray:
    """(HEIGHT, WIDTH, channels): 0 to `full` from left to right; the last of 2 or 4 channels is `full`: alpha."""
    ramp = np.tile(np.linspace(0, full, WIDTH)[None, :, None], (HEIGHT, 1, channels))
    if channels in (2, 4):
        ramp[..., -1] = full
    return ramp.astype(dtype)


def png_with(kind: bytes, body: bytes) -> bytes:
    """`quadrants` as PNG with one more chunk before the pixels."""
    data = encoded(quadrants(), "PNG")
    at = data.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:at] + chunk + data[at:]


def without_end(**options: object) -> bytes:
    """A JPEG without its end marker."""
    return encoded(quadrants(), "JPEG", **({"quality": 95, "subsampling": 0} | options))[:-2]


# `quadrants` by `cjpeg -arithmetic -quality 95 -sample 1x1` of libjpeg-turbo 2.1.5: Pillow does not write this kind.
_ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoK"
    "CgoKBggLDAsKDAkKCgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoK"
    "CgoKCgoKCgr/yQARCAAwAEADAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AOf5pm8y8XmdEOM5MnyTnyg0gaJx"
    "SPWAMYOyrNqnuP4J42npmWtLw+grgvOWdaJzx7+c+f8A7hTbVSV5DC5ESozJfOE2dsg1HredgP/Z"
)


def arithmetic_jpeg() -> bytes:
    """An arithmetic coded JPEG. The 64 KiB that Pillow gives its decoder at once end within the coded data."""
    comment = b"\xff\xfe" + struct.pack(">H", 2**16 - len(_ARITHMETIC) + 40)
    return _ARITHMETIC[:2] + comment.ljust(2**16 - len(_ARITHMETIC) + 42, b"x") + _ARITHMETIC[2:]


PICTURES: dict[str, bytes] = {
    "jpeg": encoded(quadrants(), "JPEG", quality=95, subsampling=0),
    "jpeg progressive": encoded(quadrants(), "JPEG", quality=95, subsampling=0, progressive=True),
    "jpeg gray": encoded(_grey("L"), "JPEG", quality=95),
    "jpeg cmyk adobe": cmyk_jpeg(),
    "jpeg cmyk plain": cmyk_jpeg(adobe=False),
    "jpeg 1x1": encoded(quadrants(1, 1), "JPEG"),
    "jpeg 12000 wide": encoded(quadrants(12000, 40), "JPEG"),
    "jpeg without end": without_end(),
    "jpeg arithmetic": arithmetic_jpeg(),
    "jpeg without half of its end": without_end() + b"\xff",
    "mpo": encoded(quadrants(), "MPO", save_all=True, append_images=[quadrants()]),
    "png": encoded(quadrants(), "PNG"),
    "png rgba": encoded(_rgba(), "PNG"),
    "png 1-bit": encoded(_grey("1"), "PNG"),
    "png gray": encoded(_grey("L"), "PNG"),
    "png gray alpha": encoded(_grey("LA"), "PNG"),
    "png 16-bit": sixteen_bit_png(),
    "png palette": encoded(quadrants().quantize(8), "PNG"),
    "png palette transparent index": _palette(0),
    "png palette alpha": _palette(bytes([0, 128, 255])),
    "png rgb transparent colour": encoded(quadrants(), "PNG", transparency=(255, 0, 0)),
    "png 1x1": encoded(quadrants(1, 1), "PNG"),
    "png 1x10000": encoded(quadrants(1, 10000), "PNG"),
    "png 10000x1": encoded(quadrants(10000, 1), "PNG"),
    "png text of 2 MiB": png_with(b"zTXt", b"comment\0\0" + zlib.compress(bytes(2**21))),
    "png international text of 2 MiB": png_with(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**21))),
    "png profile of 2 MiB": png_with(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**21))),
    "png broken profile": png_with(b"iCCP", b"icc\0\0 no zlib stream"),
    "webp": encoded(quadrants(), "WEBP", lossless=True),
    "webp alpha": encoded(_rgba(), "WEBP", lossless=True, exact=True),
    "webp animated": animation("WEBP"),
    "bmp": encoded(quadrants(), "BMP"),
    "bmp 1-bit": encoded(_grey("1"), "BMP"),
    "gif": encoded(quadrants(), "GIF"),
    "gif animated": animation("GIF"),
    "tiff": encoded(quadrants(), "TIFF"),
    "tiff lzw": _tiff("tiff_lzw"),
    "tiff deflate": _tiff("tiff_adobe_deflate"),
    "tiff jpeg": _tiff("jpeg"),
    "tiff 1-bit group4": encoded(_grey("1"), "TIFF", compression="group4"),
    "tiff cmyk": encoded(_grey("CMYK"), "TIFF"),
    "tiff 16-bit": encoded(Image.open(BytesIO(sixteen_bit_png())), "TIFF"),
    "tiff 32-bit": encoded(_grey("I"), "TIFF"),
    "tiff float 0..1": _float_tiff(1.0),
    "tiff float 0..255": _float_tiff(255.0),
    "tiff float 0..1e6": _float_tiff(1e6),
    "tiff rgb called grey": tiff(np.asarray(quadrants()), photometric=1),
    "tiff 16-bit rgb": tiff(_ramp("u2", 3, 65535), photometric=2),
    "tiff 16-bit rgb called grey": tiff(_ramp("u2", 3, 65535), photometric=1),
    "tiff 16-bit rgb called grey big-endian": tiff(_ramp("u2", 3, 65535), photometric=1, order=">"),
    "tiff 16-bit alpha": tiff(_ramp("u2", 2, 65535), photometric=1, extra=2),
    "tiff 16-bit alpha big-endian": tiff(_ramp("u2", 2, 65535), photometric=1, extra=2, order=">"),
    "tiff 32-bit rgb": tiff(_ramp("u4", 3, 2**32 - 1), photometric=2),
    "tiff float rgb": tiff(_ramp("f4", 3, 1.0), photometric=2),
    "tiff float rgb big-endian": tiff(_ramp("f4", 3, 1.0), photometric=2, order=">"),
    "tiff float rgba": tiff(_ramp("f4", 4, 1.0), photometric=2, extra=2),
    "tiff double": tiff(_ramp("f8", 1, 1.0), photometric=1),
    "tiff double rgb": tiff(_ramp("f8", 3, 255.0), photometric=2),
    "tiff two pages": encoded(quadrants(), "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
}

_JPEG = encoded(noise(WIDTH, HEIGHT), "JPEG", quality=90)
_PNG = encoded(noise(WIDTH, HEIGHT), "PNG")
_FLIPPED = bytearray(_PNG)
_FLIPPED[len(_PNG) // 2] ^= 0xFF

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "IMAGE_EMPTY"),
    "text": (b"hello, this is no picture", "IMAGE_FORMAT_UNSUPPORTED"),
    "text that begins like a bmp": (b"BMW builds cars in Munich and elsewhere", "IMAGE_FORMAT_UNSUPPORTED"),
    "svg": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "IMAGE_FORMAT_UNSUPPORTED"),
    "heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64), "IMAGE_FORMAT_UNSUPPORTED"),
    "avif": (encoded(quadrants(), "AVIF"), "IMAGE_FORMAT_UNSUPPORTED"),
    "avif of the brand mif1": (
        b"\x00\x00\x00\x20ftypmif1\x00\x00\x00\x00mif1avifmiaf" + bytes(64),
        "IMAGE_FORMAT_UNSUPPORTED",
    ),
    "jpeg of 12 bits": (_JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), "IMAGE_FORMAT_UNSUPPORTED"),
    "jpeg lossless": (_JPEG.replace(b"\xff\xc0\x00\x11", b"\xff\xc3\x00\x11"), "IMAGE_FORMAT_UNSUPPORTED"),
    "tiff float alpha": (tiff(_ramp("f4", 2, 1.0), photometric=1, extra=2), "IMAGE_FORMAT_UNSUPPORTED"),
    "tiff half floats": (tiff(_ramp("f2", 3, 1.0), photometric=2), "IMAGE_FORMAT_UNSUPPORTED"),
    "tiff signed rgb": (tiff(_ramp("i2", 3, 32767), photometric=2), "IMAGE_FORMAT_UNSUPPORTED"),
    "tiff of five bands": (tiff(_ramp("u2", 5, 1.0), photometric=1), "IMAGE_FORMAT_UNSUPPORTED"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "IMAGE_FORMAT_UNSUPPORTED"),
    "ppm": (encoded(quadrants(), "PPM"), "IMAGE_FORMAT_UNSUPPORTED"),
    "ico": (encoded(quadrants(), "ICO"), "IMAGE_FORMAT_UNSUPPORTED"),
    "base64": (b"/9j/4AAQSkZJRgABAQAAAQABAAD", "IMAGE_FORMAT_UNSUPPORTED"),
    "zeros": (bytes(1000), "IMAGE_FORMAT_UNSUPPORTED"),
    "tiff lab": (encoded(Image.new("LAB", (8, 8)), "TIFF"), "IMAGE_FORMAT_UNSUPPORTED"),
    "jpeg signature only": (b"\xff\xd8\xff", "IMAGE_TRUNCATED"),
    "jpeg cut in header": (_JPEG[:100], "IMAGE_TRUNCATED"),
    "jpeg cut in data": (_JPEG[: len(_JPEG) // 2], "IMAGE_TRUNCATED"),
    "jpeg without its last bytes": (_JPEG[:-8], "IMAGE_TRUNCATED"),
    "jpeg without its last bytes, cut in a marker": (_JPEG[:-8] + b"\xff", "IMAGE_TRUNCATED"),
    "jpeg progressive without end": (without_end(progressive=True), "IMAGE_TRUNCATED"),
    "jpeg arithmetic cut": (arithmetic_jpeg()[:-30], "IMAGE_TRUNCATED"),
    "jpeg with restart markers without end": (without_end(restart_marker_blocks=2), "IMAGE_TRUNCATED"),
    "png signature only": (_PNG[:8], "IMAGE_TRUNCATED"),
    "png cut in header": (_PNG[:20], "IMAGE_TRUNCATED"),
    "png cut in data": (_PNG[: len(_PNG) // 2], "IMAGE_TRUNCATED"),
    "webp cut": (encoded(noise(WIDTH, HEIGHT), "WEBP")[:200], "IMAGE_TRUNCATED"),
    "bmp cut": (PICTURES["bmp"][:500], "IMAGE_TRUNCATED"),
    "gif cut": (encoded(noise(WIDTH, HEIGHT), "GIF")[:1500], "IMAGE_TRUNCATED"),
    "tiff cut": (PICTURES["tiff"][:500], "IMAGE_TRUNCATED"),
    "tiff lzw cut": (PICTURES["tiff lzw"][:-30], "IMAGE_TRUNCATED"),
    "tiff float rgb cut": (PICTURES["tiff float rgb"][:-500], "IMAGE_TRUNCATED"),
    "png damaged": (bytes(_FLIPPED), "IMAGE_CORRUPT"),
    "jpeg of 77 bits": (_JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x4d"), "IMAGE_CORRUPT"),
    "webp damaged": (PICTURES["webp"][:20] + bytes(len(PICTURES["webp"]) - 20), "IMAGE_CORRUPT"),
    "png of no width": (png(0, 10), "IMAGE_CORRUPT"),
    "png bomb": (png(60000, 60000), "IMAGE_TOO_MANY_PIXELS"),
    "jpeg of thousands of scans": (many_scans_jpeg(), "IMAGE_CORRUPT"),
}
