"""Pictures that were made to hurt, by code: bombs, lying headers, cut files, odd colour modes, garbage beside pixels.

`seeds` yields all of them, the cheap ones first. Never decodes one.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

WIDTH, HEIGHT = 24, 16
_CUTS_OF_ONE_FILE = 150  # a longer file is cut at that many places, evenly


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    """Return an encoded picture."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def small(mode: str = "RGB") -> Image.Image:
    """Return a small picture with some content."""
    values = np.arange(WIDTH * HEIGHT * 3, dtype=np.uint32).reshape(HEIGHT, WIDTH, 3)
    image = Image.fromarray((values * 7 % 256).astype(np.uint8))
    if mode == "PA":
        return image.convert("P").convert("PA")
    if mode.startswith("I;16"):
        return Image.fromarray((values[..., 0] * 170 % 65536).astype(np.uint16))
    return image.convert(mode)


def valid() -> dict[str, bytes]:
    """Return a small picture of each format and way of coding."""
    frames = {"save_all": True, "append_images": [small().rotate(180), small().rotate(90)]}
    return {
        "jpeg": saved(small(), "JPEG"),
        "jpeg progressive": saved(small(), "JPEG", progressive=True),
        "jpeg gray": saved(small("L"), "JPEG"),
        "png": saved(small(), "PNG"),
        "png palette": saved(small("P"), "PNG", transparency=3),
        "png animated": saved(small(), "PNG", **frames),
        "png interlaced": _interlaced(),
        "webp": saved(small(), "WEBP"),
        "webp lossless": saved(small("RGBA"), "WEBP", lossless=True),
        "webp animated": saved(small(), "WEBP", **frames),
        "gif": saved(small("P"), "GIF"),
        "gif animated": saved(small(), "GIF", **frames),
        "bmp": saved(small(), "BMP"),
        "bmp palette": saved(small("P"), "BMP"),
        "bmp run lengths": run_lengths_bmp(16, b"\x04\x01\x00\x04abcd\x00\x00\x03\x02\x00\x02\x01\x01\x00\x01"),
        "tiff": saved(small(), "TIFF"),
        "tiff deflate": saved(small(), "TIFF", compression="tiff_adobe_deflate"),
        "tiff lzw": saved(small(), "TIFF", compression="tiff_lzw"),
        "tiff jpeg": saved(small(), "TIFF", compression="jpeg"),
        "tiff group4": saved(small("1"), "TIFF", compression="group4"),
        "tiff packbits": saved(small(), "TIFF", compression="packbits"),
        "mpo": saved(small(), "MPO", **frames),
    }


def colour_modes() -> Iterator[bytes]:
    """Every mode that a format can hold, and transparency of each kind."""
    forms = {
        "PNG": ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"),
        "TIFF": ("1", "L", "LA", "I;16", "I", "F", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
        "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("1", "L", "P"),
        "BMP": ("1", "L", "P", "RGB", "RGBA"),
    }
    for form, modes in forms.items():
        for mode in modes:
            yield saved(small(mode), form)
    yield saved(small("P"), "PNG", transparency=bytes(range(256)))
    yield saved(small("L"), "PNG", transparency=7)
    yield saved(small("RGB"), "PNG", transparency=(1, 2, 3))
    cmyk = saved(small("CMYK"), "JPEG")
    adobe = cmyk.index(b"Adobe")
    yield cmyk[: adobe + 11] + b"\x02" + cmyk[adobe + 12 :]  # YCCK
    for samples in (np.full((4, 4), np.nan), np.full((4, 4), np.inf), np.full((4, 4), -1e38), np.full((4, 4), 1e38)):
        yield saved(Image.fromarray(samples.astype(np.float32)), "TIFF")


def cut() -> Iterator[bytes]:
    """Every truncation of the small pictures."""
    for content in valid().values():
        step = max(1, len(content) // _CUTS_OF_ONE_FILE)
        for end in range(1, len(content), step):
            yield content[:end]


def lying() -> Iterator[bytes]:
    """Each 4-byte and 2-byte field of the headers replaced by numbers that are too large, too small or negative."""
    for content in valid().values():
        for at in range(0, min(len(content), 64), 2):
            for number in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\1", b"\xff\xfe"):
                changed = content[:at] + number + content[at + len(number) :]
                yield _checked(changed) if changed.startswith(b"\x89PNG") else changed


def garbage_beside_pixels() -> Iterator[bytes]:
    """Metadata that lies, loops or is huge. None of it is needed to read the pixels."""
    looping = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2)
    looping += struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<I", 8)
    endless = b"II*\0" + struct.pack("<IH", 8, 0xFFFF) + struct.pack("<HHII", 0x0112, 2, 2**32 - 1, 8) * 2000
    unicode_ = b"MM\0*" + struct.pack(">IHHHII", 8, 1, 0x0112, 2, 2**31, 2**31)
    for exif in (looping, endless, unicode_, b"II*\0" + b"\xff" * 60_000, b"", b"\0" * 9, b"II*\0\xff\xff\xff\xff"):
        yield saved(small(), "JPEG", exif=b"Exif\0\0" + exif)
        yield saved(small(), "WEBP", exif=b"Exif\0\0" + exif)
        yield saved(small(), "PNG", exif=b"Exif\0\0" + exif)
    for profile in (b"\0", b"\xff" * 5000, bytes(2**20)):
        yield saved(small(), "JPEG", icc_profile=profile)
        yield saved(small(), "PNG", icc_profile=profile)
        yield saved(small(), "WEBP", icc_profile=profile)
        yield saved(small(), "TIFF", icc_profile=profile)
    nested = b"<x:xmpmeta>" + b"<a>" * 20_000 + b'tiff:Orientation="6"'
    laughs = b'<!DOCTYPE l [<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9)
    )
    for xmp in (nested, laughs + b"]>&j;", b'tiff:Orientation="' + b"9" * 30_000, b"\xff" * 60_000):
        yield saved(small(), "JPEG", xmp=xmp[:60_000])
        yield saved(small(), "WEBP", xmp=xmp)
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode("latin-1"))
        text.add_text("Raw profile type exif", "\nexif\n    9999999\n" + "zz" * 500)
        text.add_text("comment", "x" * 2**21, zip=True)
        yield saved(small(), "PNG", pnginfo=text)
    chunks = b"".join(_chunk(b"tEXt", b"a\0b") for _ in range(5000))
    png = valid()["png"]
    yield png[:33] + chunks + png[33:]
    segments = (b"\xff\xe1\0\x08Exif\0\0" + b"\xff\xfe\0\x04ab") * 4000
    yield b"\xff\xd8" + segments + valid()["jpeg"][2:]


def two_at_once() -> Iterator[bytes]:
    """Files that are a picture and something else."""
    pictures = valid()
    zip_end = b"PK\x03\x04" + b"a" * 100 + b"PK\x05\x06" + bytes(18)
    script = b"<html><script>alert(1)</script></html>"
    yield pictures["jpeg"] + zip_end
    yield pictures["png"] + script
    yield pictures["gif"].replace(b"GIF89a", b"GIF89a", 1) + b"*/=1;alert(1)//"
    yield pictures["jpeg"] + pictures["png"]
    yield pictures["jpeg"][:20] + pictures["png"]
    yield b"\x89PNG\r\n\x1a\n" + pictures["jpeg"]
    yield b"BM" + script + bytes(60)
    yield pictures["webp"][:12] + pictures["gif"]
    yield pictures["jpeg"] + bytes(2**20)
    for head in (
        b"",
        b"\0",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"GIF89a",
        b"II*\0",
        b"MM\0+\0\x08\0\0",
        b"%PDF",
        b"<svg",
    ):
        yield head
        yield head + bytes(64)
        yield head + b"\xff" * 64


def bombs() -> Iterator[bytes]:
    """Small files that state or hold very many pixels, scans, blocks, frames or runs."""
    yield bomb_png(30_000, 30_000, filled=False)
    yield bomb_png(4000, 4000, filled=True)
    yield bomb_png(16, 16, filled=True, zeros=64 * 2**20)  # far more data than pixels
    yield scans_jpeg(8000, 3000)
    yield scans_jpeg(64, 15_000)
    yield run_lengths_bmp(3000, b"\x01\x01\0\0" * 3000)
    yield run_lengths_bmp(10_000, b"\0\x02\xff\xff" * 50_000)
    for tile_px in (16, 1024, 16_384, 2**30):
        yield tiled_tiff(4000, tile_px)
    yield shared_strips_tiff(16_000)
    yield tiff_loop()
    yield saved(Image.new("RGB", (4000, 4000)), "WEBP", method=0)
    yield saved(Image.new("P", (16_000, 1000)), "GIF")
    yield frames_gif(20_000)
    yield saved(Image.new("L", (3500, 4000)), "JPEG", progressive=True)
    yield saved(Image.new("F", (2000, 4000)), "TIFF", compression="tiff_adobe_deflate")
    yield saved(Image.new("1", (4000, 4000)), "TIFF", compression="group4")


def small_parts(size_bytes: int = 4 * 2**20) -> Iterator[bytes]:
    """Pictures of very many chunks, segments, blocks or fill bytes, which Pillow reads one by one."""
    pictures = valid()
    png, jpeg, gif = pictures["png"], pictures["jpeg"], pictures["gif"]
    for kind, body in ((b"tEXt", b""), (b"IDAT", b""), (b"abCd", b""), (b"gAMA", bytes(4)), (b"eXIf", b"II*\0")):
        chunk = _chunk(kind, body)
        many = chunk * ((size_bytes - len(png)) // len(chunk))
        yield png[:33] + many + png[33:]
        yield png[:-12] + many + png[-12:]
    for part in (b"\xff\xe1\0\2", b"\xff\xfe\0\2", b"\xff\xff", b"\xff\xdb\0\2", b"\xff\0"):
        yield jpeg[:2] + part * ((size_bytes - len(jpeg)) // len(part)) + jpeg[2:]
    start = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    for part in (b"\x21\xfe\0", b"\x21\xfe\1a\0", b"\0"):
        yield gif[:start] + part * ((size_bytes - len(gif)) // len(part)) + gif[start:]


def seeds() -> Iterator[bytes]:
    """Yield all of them."""
    yield from valid().values()
    yield from colour_modes()
    yield from two_at_once()
    yield from garbage_beside_pixels()
    yield from bombs()
    yield from small_parts()
    yield from lying()
    yield from cut()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _checked(png: bytes) -> bytes:
    """Return a PNG whose header has the right checksum."""
    return png[:29] + struct.pack(">I", zlib.crc32(png[12:29])) + png[33:]


def _interlaced() -> bytes:
    """Return a PNG of 8 x 8 gray pixels, Adam7."""
    passes = ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))
    rows = b"".join((b"\0" + bytes(range(width))) * height for width, height in passes)
    head = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def bomb_png(width: int, height: int, *, filled: bool, zeros: int = 0) -> bytes:
    """Return a PNG of zeros. Not `filled`: the header states more pixels than there are."""
    count = zeros or ((width * 3 + 1) * height if filled else 1000)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(count), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def scans_jpeg(side_px: int, scans: int) -> bytes:
    """Return a progressive JPEG that repeats its last scan."""
    content = saved(small(), "JPEG", progressive=True)
    frame = content.index(b"\xff\xc2")
    content = content[: frame + 5] + struct.pack(">HH", side_px, side_px) + content[frame + 9 :]
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * scans + b"\xff\xd9"


def run_lengths_bmp(side_px: int, data: bytes) -> bytes:
    """Return a BMP with run lengths of 8 bits."""
    head = struct.pack("<IiiHHIIiiII", 40, side_px, side_px, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + head + bytes(1024) + data


def _tiff(entries: list[tuple[int, int, int]]) -> bytes:
    directory = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)


def tiled_tiff(side_px: int, tile_px: int) -> bytes:
    """Return a TIFF with one tile of any size."""
    entries = [(256, side_px), (257, side_px), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile_px), (323, tile_px)]
    entries += [(324, 138), (325, 20)]
    return _tiff([(tag, 1, value) for tag, value in entries]) + bytes(4) + zlib.compress(bytes(999))


def shared_strips_tiff(strips: int) -> bytes:
    """Return a TIFF whose strips are all the whole file."""
    after = 8 + 2 + 10 * 12 + 4
    total = after + 8 * strips
    entries = [(256, 1, 16), (257, 1, strips), (258, 1, 8), (259, 1, 32773), (262, 1, 1), (266, 1, 2)]
    entries += [(273, strips, after), (277, 1, 1), (278, 1, 1), (279, strips, after + 4 * strips)]
    return _tiff(entries) + struct.pack("<I", 0) * strips + struct.pack("<I", total) * strips


def tiff_loop() -> bytes:
    """Return a TIFF whose next page is the page itself."""
    content = saved(small(), "TIFF")
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    end = at + 2 + 12 * count
    return content[:end] + struct.pack("<I", at) + content[end + 4 :]


def frames_gif(frames: int) -> bytes:
    """Return a GIF that repeats its frame."""
    content = saved(small("P"), "GIF")
    start = content.index(b",", 13 + 3 * 2 ** ((content[10] & 7) + 1))
    return content[:start] + content[start:-1] * frames + b";"
