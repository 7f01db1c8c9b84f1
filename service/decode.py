"""Decode: encoded bytes in, a uint8 RGB array of the model's input size out, with the geometry to map results back.

Accepts JPEG, PNG, WebP, BMP, GIF (first frame) and TIFF (first page), told apart by their first bytes. The byte limit
is checked before parsing and the pixel limit from the header before decoding. The EXIF orientation is applied. Every
colour mode becomes RGB: alpha is dropped, not composited, as `convert("RGB")` does in the pipelines the models were
trained with; 16-bit, 32-bit and float samples are scaled to 8 bits, not clipped.

Whatever is wrong with the bytes is raised as an `InvalidImage` error: no exception of Pillow's passes this module. It
never touches a file, never decodes truncated pictures in part, and never looks at more than one frame.
"""

import ctypes
import math
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import PIL
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from handlers.frame import Array
from model_store.card import InputSize, Preprocess
from service.errors import (
    ImageCorrupt,
    ImageEmpty,
    ImageFormatUnsupported,
    ImageTooManyBytes,
    ImageTooManyPixels,
    ImageTruncated,
    InvalidImage,
)
from service.work import Decoded, Geometry

SUPPORTED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

# Imported so that `Image.open` finds them registered and never goes looking for every plugin there is.
_PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,  # what phones write for two-lens and HDR pictures: a JPEG with more behind it
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
# Pillow's own bomb check (a warning at 89 million pixels, an error at 179) would stand in the way of a higher limit:
# here the limit is the operator's, checked from the header before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about odd metadata ("Corrupt EXIF data") of pictures it reads all the same: not worth a log line.
warnings.filterwarnings("ignore", module=r"PIL\.")


def _quiet_libtiff() -> None:
    """Keep libtiff's C code from printing: whoever sends a broken TIFF would write dozens of lines into our log.

    Pillow has no switch for that. Its wheels bring their own libtiff, already loaded; without one this does nothing.
    """
    for library in (Path(PIL.__file__).parent.parent / "pillow.libs").glob("libtiff*"):
        libtiff = ctypes.CDLL(str(library))
        for setter in (libtiff.TIFFSetErrorHandler, libtiff.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


_quiet_libtiff()

# The pictures decoded at once are as many as there are threads for it; OpenCV starts none of its own.
cv2.setNumThreads(1)

_SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("TIFF", re.compile(rb"II[*+]\x00|MM\x00[*+]")),  # + is BigTIFF
    ("BMP", re.compile(rb"BM.{12}[\x0c-\x80]\x00\x00\x00", re.DOTALL)),  # "BM" alone begins many a text
)
# Formats people send by mistake, to tell them what they sent.
_FOREIGN = (
    ("HEIC", re.compile(rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)),
    ("AVIF", re.compile(rb"....ftypavi[fs]", re.DOTALL)),
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

_ORIENTATION = 0x0112  # EXIF tag
# Where Pillow keeps what may hold an orientation; the last two are PNG text.
_METADATA = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
_TRANSPOSE = {  # EXIF orientation -> what makes the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES_SWAPPED = frozenset({5, 6, 7, 8})
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Resizing the part that is cut out alone spares a 1 x 10000 picture from becoming millions of pixels long. It differs
# by one in 255 from resizing all and cutting (Pillow takes the two axes in another order), so only those get it.
_MAX_CROP_WASTE = 4

# A progressive JPEG may hold any number of scans, each a pass over the whole picture, in a few bytes. Real ones have
# about ten: up to _USUAL_SCANS always pass, more only while scans x pixels stays within some seconds of work.
_USUAL_SCANS = 20
_MAX_SCANNED_PIXELS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest picture accepted: encoded bytes, and pixels by its header."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class _Upright:
    """A decoded picture and what it shows: `box` is the part of `image`, in its pixels, that is the whole picture.

    `width_px` x `height_px` is the full upright picture; `image` is smaller where a JPEG was decoded at a fraction, and
    its last row and column may then reach past the picture.
    """

    image: Image.Image
    box: tuple[float, float, float, float]
    width_px: int
    height_px: int


def decode(
    image: bytes,
    *,
    size: InputSize,
    preprocess: Preprocess,
    limits: Limits,
    allocate: Callable[[], Array | None] = lambda: None,
) -> Decoded:
    """Decode a picture and bring it to the model's input. Raises an `InvalidImage` error.

    `allocate` is called once the pixels exist, for the array to put them into.
    """
    name = _check_bytes(image, limits)
    upright = _read(image, name, lambda width, height: _resized_sides(width, height, size, preprocess), limits)
    pixels, geometry = _to_input(upright, size, preprocess)
    return Decoded(pixels=_placed(pixels, size, allocate()), geometry=geometry, format=name)


def _check_bytes(image: bytes, limits: Limits) -> str:
    """Name the format, from the first bytes alone."""
    if not image:
        raise ImageEmpty("the request has no image bytes; put the content of the picture file into `image`")
    if len(image) > limits.max_bytes:
        raise ImageTooManyBytes(
            f"the picture has {len(image)} bytes, this server accepts {limits.max_bytes}; "
            "scale it down or raise the JPEG compression",
            metadata={"limit_bytes": str(limits.max_bytes), "actual_bytes": str(len(image))},
        )
    for name, signature in _SIGNATURES:
        if signature.match(image):
            return name
    # Only the first bytes are looked at: some of these patterns would walk through megabytes of text.
    head = image[:512]
    guess = next((f" ({name})" for name, signature in _FOREIGN if signature.match(head)), "")
    raise _unsupported(f"the bytes are no picture this server reads{guess}")


def _unsupported(what: str) -> ImageFormatUnsupported:
    return ImageFormatUnsupported(
        f"{what}; it reads {', '.join(SUPPORTED_FORMATS)}", metadata={"supported_formats": ",".join(SUPPORTED_FORMATS)}
    )


def _read(encoded: bytes, name: str, resized_sides: Callable[[int, int], tuple[int, int]], limits: Limits) -> _Upright:
    """Decode to an upright RGB or L image. The only place where Pillow meets foreign bytes."""
    stream = BytesIO(encoded)
    picture: ImageFile.ImageFile | None = None
    try:
        picture = Image.open(stream, formats=[name])
        width, height = picture.size
        _check_pixels(width, height, limits)
        orientation = 1
        box = (0.0, 0.0, float(width), float(height))
        if isinstance(picture, JpegImagePlugin.JpegImageFile):
            _check_scans(picture, encoded)
            orientation = _orientation(picture)
            swapped = orientation in _SIDES_SWAPPED
            target = resized_sides(height, width)[::-1] if swapped else resized_sides(width, height)
            # Decodes at 1/2, 1/4 or 1/8 where that leaves twice the target. For `antialias: false` models this departs
            # from OpenCV on pictures over four times their input, which is where two taps alone would alias.
            drafted = picture.draft(None, (2 * target[0], 2 * target[1]))
            if drafted is not None:
                box = tuple(map(float, drafted[1]))  # type: ignore[assignment]  # four of them
        picture.load()
        if not isinstance(picture, JpegImagePlugin.JpegImageFile):
            # A PNG may carry its EXIF behind the pixels; Pillow turns TIFFs itself, which may swap the sides.
            orientation = _orientation(picture)
            width, height = picture.size
            _check_pixels(width, height, limits)
            box = (0.0, 0.0, float(width), float(height))
        plain = _to_rgb(picture)
        if orientation in _TRANSPOSE:
            box = _turned(box, plain.size, orientation)
            plain = plain.transpose(_TRANSPOSE[orientation])
            if orientation in _SIDES_SWAPPED:
                width, height = height, width
    except InvalidImage:
        raise
    except Exception as error:  # Pillow's plugins raise nearly everything on hostile bytes
        at_end = stream.tell() >= len(encoded)
        raise _translated(error, name, encoded, header_read=picture is not None, at_end=at_end) from error
    return _Upright(image=plain, box=box, width_px=width, height_px=height)


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width <= 0 or height <= 0:
        raise ImageCorrupt(f"the header states a picture of {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise ImageTooManyPixels(
            f"the picture has {width} x {height} pixels, this server accepts {limits.max_pixels} in all; scale it down",
            metadata={"limit_pixels": str(limits.max_pixels), "width": str(width), "height": str(height)},
        )


def _check_scans(picture: JpegImagePlugin.JpegImageFile, encoded: bytes) -> None:
    if not picture.info.get("progressive"):
        return
    # Inside coded data 0xFF is always followed by zero, so this finds scan headers (and a few chance hits in metadata).
    scans = encoded.count(b"\xff\xda")
    if scans > _USUAL_SCANS and scans * picture.width * picture.height > _MAX_SCANNED_PIXELS:
        raise ImageCorrupt(f"the progressive JPEG of {picture.width} x {picture.height} pixels has {scans} scans")


def _orientation(picture: ImageFile.ImageFile) -> int:
    """EXIF orientation, 1 to 8. Metadata that cannot be read does not spoil the picture: then 1."""
    if _METADATA.isdisjoint(picture.info):
        return 1
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - see the docstring
        return 1
    return value if value in _TRANSPOSE else 1


def _turned(
    box: tuple[float, float, float, float], size: tuple[int, int], orientation: int
) -> tuple[float, float, float, float]:
    """Where `box` of a stored image of `size` lies once the image was made upright."""
    x0, y0, x1, y1 = box
    width, height = size
    flips_x, flips_y = {
        2: (True, False), 3: (True, True), 4: (False, True), 5: (False, False),
        6: (False, True), 7: (True, True), 8: (True, False),
    }[orientation]  # fmt: skip
    if flips_x:
        x0, x1 = width - x1, width - x0
    if flips_y:
        y0, y1 = height - y1, height - y0
    return (y0, x0, y1, x1) if orientation in _SIDES_SWAPPED else (x0, y0, x1, y1)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Every mode to RGB, or L, which is resized at a third of the cost and becomes RGB afterwards."""
    # With this entry Pillow would warn about palettes or look for the transparent colour: alpha is dropped anyway.
    picture.info.pop("transparency", None)
    mode = picture.mode
    if mode in {"L", "RGB"}:
        return picture
    if mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bit(np.asarray(picture), mode))
    if mode in {"1", "LA"}:
        return picture.convert("L")
    if mode in {"La", "RGBa"}:
        return picture.convert("LA" if mode == "La" else "RGBA").convert("RGB")
    if mode == "LAB":
        raise _unsupported("the picture is in the CIE L*a*b* colour space, which this server does not convert")
    return picture.convert("RGB")  # 1, P, PA, RGBA, RGBX, CMYK, YCbCr, HSV


def _to_8_bit(samples: Array, mode: str) -> Array:
    """Scale samples (H, W) of 16 or 32 bits or floats to uint8 0..255.

    16-bit modes use their full range. 32-bit integers and floats carry no range: the smallest of 0..1 (floats only),
    8 bit, 16 bit and 0..maximum that holds the largest sample is taken. Negative and not-a-number samples are black.
    """
    if mode.startswith("I;16"):
        return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max())
    ranges = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    full = next((full for full in ranges if top <= full), top)
    return np.rint(np.clip(values, 0.0, None) * (255.0 / full)).astype(np.uint8)


def _translated(error: Exception, name: str, encoded: bytes, *, header_read: bool, at_end: bool) -> InvalidImage:
    """Tell a picture that ends early from one that is broken."""
    detail = str(error) if not isinstance(error, UnidentifiedImageError) else "its header cannot be read"
    detail = " ".join((detail or type(error).__name__).split())[:200]
    if name == "WEBP":  # decoded in one piece: only the container's own length tells
        truncated = struct.unpack_from("<I", encoded, 4)[0] + 8 > len(encoded)
    elif name == "TIFF":  # read through libtiff, out of order
        truncated = "truncated" in detail.lower() or _tiff_ends_early(encoded)
    else:  # headers and PNG chunks are read in order: a reader that stands at the end wanted more
        truncated = "truncated" in detail.lower() or (at_end and (not header_read or name == "PNG"))
    if truncated:
        return ImageTruncated(f"the {name} picture ends before its data does, after {len(encoded)} bytes: {detail}")
    return ImageCorrupt(f"the {name} picture is broken: {detail}")


def _tiff_ends_early(encoded: bytes) -> bool:
    """Whether a TIFF places its directory or its strips or tiles behind the end of the file."""
    try:
        stream = BytesIO(encoded)
        directory = TiffImagePlugin.ImageFileDirectory_v2(encoded[:16] if encoded[2:3] in b"+" else encoded[:8])
        if directory.next > len(encoded) - 2:
            return True
        stream.seek(directory.next)
        directory.load(stream)
        offsets = directory.get(273, directory.get(324, ()))  # StripOffsets, TileOffsets
        lengths = directory.get(279, directory.get(325, ()))  # StripByteCounts, TileByteCounts
        if not offsets:
            return stream.tell() >= len(encoded)
        return any(start + length > len(encoded) for start, length in zip(offsets, lengths, strict=False))
    except Exception:  # noqa: BLE001 - the picture is refused already; this only words the refusal
        return True


def _resized_sides(width: int, height: int, size: InputSize, preprocess: Preprocess) -> tuple[int, int]:
    """(width, height) of the whole upright picture after the resize, before the crop."""
    short_px = preprocess.shorter_side_px
    if short_px is None:
        return size.width, size.height
    # The long side is truncated, as torchvision and transformers do.
    if width <= height:
        return short_px, int(short_px * height / width)
    return int(short_px * width / height), short_px


def _crop_offset(margin_px: int, preprocess: Preprocess) -> int:
    return margin_px // 2 if preprocess.crop_offset == "floor" else round(margin_px / 2)


def _to_input(upright: _Upright, size: InputSize, preprocess: Preprocess) -> tuple[Array, Geometry]:
    """Resize and crop: uint8 (h, w, 3), smaller than the input where the resized is, and where it lies in the picture.

    Any memory layout; may be read-only.
    """
    width, height = upright.width_px, upright.height_px
    shown = (0.0, 0.0, float(width), float(height))  # what is resized, in pixels of the picture
    if not preprocess.antialias:
        upright, shown = _whole_samples(upright)
    resized_width, resized_height = _resized_sides(width, height, size, preprocess)
    # 0 when squashed; below 0 where the input is larger than the resized
    left = _crop_offset(resized_width - size.width, preprocess)
    top = _crop_offset(resized_height - size.height, preprocess)
    # What is cut out, in pixels of the resized picture.
    cut = (max(left, 0), max(top, 0), min(left + size.width, resized_width), min(top + size.height, resized_height))
    cut_size = (cut[2] - cut[0], cut[3] - cut[1])
    x0, y0, x1, y1 = upright.box
    x_scale, y_scale = (x1 - x0) / resized_width, (y1 - y0) / resized_height
    source = (x0 + cut[0] * x_scale, y0 + cut[1] * y_scale, x0 + cut[2] * x_scale, y0 + cut[3] * y_scale)
    wasteful = resized_width * resized_height > _MAX_CROP_WASTE * cut_size[0] * cut_size[1]
    if not preprocess.antialias:
        pixels = _two_taps(upright.image, None if wasteful else (resized_width, resized_height), cut, source)
    else:
        method = _FILTERS[preprocess.interpolation]
        if not wasteful:
            resized = upright.image.resize((resized_width, resized_height), method, box=upright.box).crop(cut)
        else:
            width_limit, height_limit = upright.image.size
            within = (max(source[0], 0), max(source[1], 0), min(source[2], width_limit), min(source[3], height_limit))
            resized = upright.image.resize(cut_size, method, box=within)
        pixels = np.asarray(resized.convert("RGB"))
    x_step, y_step = (shown[2] - shown[0]) / resized_width, (shown[3] - shown[1]) / resized_height
    geometry = Geometry(
        width_px=width,
        height_px=height,
        x0=shown[0] + left * x_step,
        y0=shown[1] + top * y_step,
        x1=shown[0] + (left + size.width) * x_step,
        y1=shown[1] + (top + size.height) * y_step,
    )
    return pixels, geometry


def _whole_samples(upright: _Upright) -> tuple[_Upright, tuple[float, float, float, float]]:
    """The picture without the row and column that reach past it, and what is left of it, in its pixels.

    OpenCV resizes whole images only.
    """
    x0, y0, x1, y1 = upright.box
    whole = (math.ceil(x0), math.ceil(y0), math.floor(x1), math.floor(y1))
    if whole == (0, 0, *upright.image.size):
        return upright, (0.0, 0.0, float(upright.width_px), float(upright.height_px))
    x_step, y_step = upright.width_px / (x1 - x0), upright.height_px / (y1 - y0)
    shown = (
        (whole[0] - x0) * x_step,
        (whole[1] - y0) * y_step,
        (whole[2] - x0) * x_step,
        (whole[3] - y0) * y_step,
    )
    image = upright.image.crop(whole)
    box = (0.0, 0.0, float(image.width), float(image.height))
    return replace(upright, image=image, box=box), shown


def _placed(pixels: Array, size: InputSize, into: Array | None) -> Array:
    """`pixels` in the middle of a black input, in `into` or else wherever it costs least: uint8 (height, width, 3)."""
    height, width, _ = pixels.shape
    if (height, width) == (size.height, size.width):
        if into is None:
            return np.ascontiguousarray(pixels)
        np.copyto(into, pixels)
        return into
    # As torchvision pads a crop that is larger than the picture.
    padded = np.empty((size.height, size.width, 3), np.uint8) if into is None else into
    padded[...] = 0
    top, left = (size.height - height + 1) // 2, (size.width - width + 1) // 2
    padded[top : top + height, left : left + width] = pixels
    return padded


def _two_taps(
    image: Image.Image,
    resized: tuple[int, int] | None,
    cut: tuple[int, int, int, int],
    source: tuple[float, float, float, float],
) -> Array:
    """Bilinear from the two nearest samples whatever the scale: uint8 (height, width, 3).

    `cut` out of the whole image `resized` by OpenCV; where `resized` is None, because it would be much larger than what
    is cut out of it, the part `source` alone, by Pillow, which is within one in 255 of it.
    """
    if resized is None:
        size = (cut[2] - cut[0], cut[3] - cut[1])
        part = image.transform(size, Image.Transform.EXTENT, source, Image.Resampling.BILINEAR)
        return np.asarray(part.convert("RGB"))
    pixels = cv2.resize(np.asarray(image), resized, interpolation=cv2.INTER_LINEAR)
    pixels = pixels[cut[1] : cut[3], cut[0] : cut[2]]
    return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
