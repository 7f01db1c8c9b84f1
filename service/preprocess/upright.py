"""Reading an encoded picture: bytes in, an upright RGB or grey image or array out.

Pillow reads it, or `service.preprocess.turbo_jpeg` if it is a JPEG of which an array is wanted. The EXIF orientation is
applied. Every colour mode becomes RGB or grey (`service.preprocess.colours`). Only the first frame or page is read.

Whatever is wrong with the bytes is raised as an `InvalidImage` error: no exception of Pillow's leaves this module.
"""

import ctypes
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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

from handlers.contract.card import Preprocess
from handlers.contract.frame import Array
from service.core.errors import ImageTruncated, ServiceError
from service.preprocess import deep_tiff, jpeg, png, turbo_jpeg
from service.preprocess.colours import array, fingerprint, is_composited, to_rgb
from service.preprocess.formats import damage, tiff_ends_early, unsupported
from service.preprocess.limits import (
    EncodedStream,
    Limits,
    check_blocks,
    check_memory,
    check_pixels,
    check_run_lengths,
    check_scans,
)
from service.preprocess.memory import decode_bytes, deep_bytes, plain_jpeg_bytes

# Imported so that `Image.open` finds these plugins registered and never loads all others.
_PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,  # a JPEG with more behind it, as phones write for two lenses and HDR
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
# Pillow's own limit (a warning at 89 million pixels, an error at 179 million) would override the operator's limit,
# which is checked from the header before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about odd metadata ("Corrupt EXIF data") of pictures that it reads nevertheless.
warnings.filterwarnings("ignore", module=r"PIL\.")


def _quiet_libtiff() -> None:
    """Keep libtiff's C code from printing: one broken TIFF would write dozens of lines into the log.

    Pillow has no switch for that. Its wheels contain a libtiff, which is loaded already. Without one this does nothing.
    """
    for library in (Path(PIL.__file__).parent.parent / "pillow.libs").glob("libtiff*"):
        libtiff = ctypes.CDLL(str(library))
        for setter in (libtiff.TIFFSetErrorHandler, libtiff.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


_quiet_libtiff()
deep_tiff.accept_grey_named_colours()

_ORIENTATION = 0x0112  # EXIF tag
# Entries of Pillow's `info` that may hold an orientation. The last two are PNG text.
_METADATA = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
_TRANSPOSE = {  # EXIF orientation -> how the stored picture becomes upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES_SWAPPED = frozenset({5, 6, 7, 8})


@dataclass(frozen=True, slots=True)
class Upright:
    """A decoded picture: a Pillow image of mode RGB or L, or an array uint8 [H, W, 3] or [H, W].

    `width_px` x `height_px` is the full upright picture. `decoded` is smaller if a JPEG was decoded at a fraction of
    its size; its last row and column may then reach past the picture. `box` is the rectangle of `decoded`, in its
    pixels, that shows the whole picture.
    """

    decoded: Image.Image | Array
    box: tuple[float, float, float, float]
    width_px: int
    height_px: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of `decoded`, in its pixels."""
        if isinstance(self.decoded, Image.Image):
            return self.decoded.size
        return self.decoded.shape[1], self.decoded.shape[0]

    def as_image(self) -> Image.Image:
        """What was decoded, as an image of Pillow."""
        return self.decoded if isinstance(self.decoded, Image.Image) else Image.fromarray(self.decoded)

    def as_array(self) -> Array:
        """What was decoded, uint8 [H, W, 3] or [H, W]."""
        return array(self.decoded) if isinstance(self.decoded, Image.Image) else self.decoded


def read(
    encoded: bytes,
    name: str,
    resized_sides: Callable[[int, int], tuple[int, int]],
    preprocess: Preprocess,
    limits: Limits,
    *,
    reserve: Callable[[int], None],
) -> Upright:
    """Decode a picture of format `name`. Raises an `InvalidImage` error, and what `reserve` raises.

    `resized_sides` maps (width, height) of the upright picture to those after the resize, in pixels. With
    `preprocess.reduced_decoding`, JPEGs are decoded no larger than needed for that. `reserve` is called with the bytes
    that decoding takes, right before it.
    """
    reader = _JpegReader if name == "JPEG" else _PngReader if name == "PNG" else _Reader
    reading = reader(encoded, name, resized_sides, preprocess, limits, reserve)
    try:
        return reading.upright()
    except (ServiceError, MemoryError):  # too little memory is no fault of the caller
        raise
    except Exception as error:  # Pillow's plugins raise nearly any exception on hostile bytes
        raise damage(error, name, encoded, header_read=reading.header_read, at_end=reading.at_end) from error


class _Reader:
    """The reading of one picture."""

    def __init__(
        self,
        encoded: bytes,
        name: str,
        resized_sides: Callable[[int, int], tuple[int, int]],
        preprocess: Preprocess,
        limits: Limits,
        reserve: Callable[[int], None],
    ) -> None:
        self._encoded = encoded
        self._name = name
        self._resized_sides = resized_sides
        self._preprocess = preprocess
        self._limits = limits
        self._reserve = reserve
        self._stream = EncodedStream(encoded, name)
        self.header_read = False

    @property
    def at_end(self) -> bool:
        """Whether Pillow has read all bytes."""
        return self._stream.tell() >= len(self._encoded)

    def upright(self) -> Upright:
        """Decode the picture. Raises an `InvalidImage` error, and nearly any exception on hostile bytes."""
        try:
            picture = Image.open(self._stream, formats=[self._name])
        except (UnidentifiedImageError, KeyError):
            deep = self._deep()
            if deep is None:
                raise
            return self._read_deep(deep)
        self.header_read = True
        check_pixels(*picture.size, self._limits)
        return self._read(picture)

    def _read(self, picture: ImageFile.ImageFile) -> Upright:
        if isinstance(picture, BmpImagePlugin.BmpImageFile):
            check_run_lengths(picture, self._encoded, self._limits)
        elif isinstance(picture, TiffImagePlugin.TiffImageFile):
            check_blocks(picture, self._encoded, self._limits)
        self._make_room(picture, full=picture.size, scans=1, rotated=self._may_turn(picture))
        picture.load()
        # Pillow turns TIFFs itself, which may swap the sides.
        check_pixels(*picture.size, self._limits)
        box = (0.0, 0.0, float(picture.width), float(picture.height))
        return self._turned(picture, picture.size, box, _orientation(picture))

    def _may_turn(self, picture: ImageFile.ImageFile) -> bool:
        return _orientation(picture) in _TRANSPOSE

    def _make_room(self, picture: ImageFile.ImageFile, *, full: tuple[int, int], scans: int, rotated: bool) -> None:
        width, height = full
        needed = decode_bytes(
            picture,
            full_px=width * height,
            scans=scans,
            rotated=rotated,
            as_array=not self._preprocess.antialias,
            composited=is_composited(picture, self._preprocess.alpha),
            target=self._resized_sides(width, height),
        )
        check_memory(needed, width, height, self._limits)
        self._reserve(needed)

    def _turned(
        self,
        picture: Image.Image,
        full: tuple[int, int],
        box: tuple[float, float, float, float],
        orientation: int,
    ) -> Upright:
        width, height = full
        plain = to_rgb(picture, self._preprocess.alpha)
        if orientation in _TRANSPOSE:
            box = _turned(box, plain.size, orientation)
            plain = plain.transpose(_TRANSPOSE[orientation])
            if orientation in _SIDES_SWAPPED:
                width, height = height, width
        return Upright(decoded=plain, box=box, width_px=width, height_px=height)

    def _deep(self) -> deep_tiff.Header | None:
        """The header of a TIFF of a kind that Pillow does not read. None: it is another picture, or a broken one."""
        if self._name != "TIFF" or tiff_ends_early(self._encoded):
            return None
        found = deep_tiff.header(self._encoded)
        if found is not None and not found.is_read:
            raise unsupported(f"the picture is a {found.kind}, which is not read")
        return found

    def _read_deep(self, deep: deep_tiff.Header) -> Upright:
        check_pixels(deep.width, deep.height, self._limits)
        check_blocks(deep, self._encoded, self._limits)
        target = self._resized_sides(deep.width, deep.height)
        needed = deep_bytes(deep, as_array=not self._preprocess.antialias, target=target)
        check_memory(needed, deep.width, deep.height, self._limits)
        self._reserve(needed)
        plain = deep_tiff.pixels(self._encoded, deep)
        return Upright(plain, (0.0, 0.0, float(plain.width), float(plain.height)), plain.width, plain.height)


class _PngReader(_Reader):
    """The reading of one PNG."""

    def upright(self) -> Upright:
        """As that of any picture, without the texts and the colour profile."""
        self._encoded = png.without_extras(self._encoded)
        self._stream = EncodedStream(self._encoded, self._name)
        return super().upright()

    def _may_turn(self, picture: ImageFile.ImageFile) -> bool:
        return True  # its EXIF may stand behind the pixels


class _JpegReader(_Reader):
    """The reading of one JPEG."""

    def upright(self) -> Upright:
        """As that of any picture. The end may be missing, if no pixel is. Raises `ImageFormatUnsupported` too."""
        self._frame = jpeg.frame(self._encoded)
        jpeg.check_kind(self._frame)
        self._filled: bytes | None = None
        self._left_to_pillow = False
        self._sent_bytes = len(self._encoded)
        if jpeg.lacks_end(self._encoded, self._frame):
            self._encoded, self._filled = jpeg.ended(self._encoded)
            self._stream = EncodedStream(self._encoded, self._name)
        return self._plain() or super().upright()

    def _plain(self) -> Upright | None:
        """The picture without Pillow, if Pillow would read nothing else from its header and hand its pixels over."""
        header = None if self._filled is not None else jpeg.plain(self._encoded)
        if header is None or not self._wants_array(header.width_px, header.height_px):
            return None
        width, height = size = header.width_px, header.height_px
        check_pixels(*size, self._limits)
        scans = check_scans(self._encoded, *size, self._limits)
        as_array = not self._preprocess.antialias
        target = self._resized_sides(*size)
        needed = plain_jpeg_bytes(size, header.factors, scans=scans, as_array=as_array, target=target)
        check_memory(needed, *size, self._limits)
        self._reserve(needed)
        self._reserve = _reserved
        return self._turbo(width, height, grey=len(header.factors) == 1)

    def _turbo(self, width: int, height: int, *, grey: bool) -> Upright | None:
        pixels = turbo_jpeg.pixels(self._encoded, width=width, height=height, grey=grey)
        self._left_to_pillow = pixels is None
        return None if pixels is None else Upright(pixels, (0.0, 0.0, float(width), float(height)), width, height)

    def _wants_array(self, width: int, height: int) -> bool:
        """Whether an array of the pixels is wanted, not an image of Pillow's: OpenCV resizes it, or nobody does."""
        if self._preprocess.reduced_decoding:
            return False
        return not self._preprocess.antialias or self._resized_sides(width, height) == (width, height)

    def _read(self, picture: ImageFile.ImageFile) -> Upright:
        full = picture.size
        orientation = _orientation(picture)
        scans = check_scans(self._encoded, *full, self._limits)
        if self._frame is not None and self._frame.is_arithmetic:
            if self._encoded.rfind(jpeg.END) < self._encoded.rfind(jpeg.SCAN):
                raise self._ends_early()
            picture.decodermaxblock = len(self._encoded)  # this decoder wants all data at once
        box = self._drafted(picture, full, orientation)
        self._make_room(picture, full=full, scans=scans, rotated=orientation in _TRANSPOSE)
        if self._is_usual(picture, orientation):
            upright = self._turbo(*full, grey=picture.mode == "L")
            if upright is not None:
                return upright
        wanted = None if self._filled is None else self._fingerprint(self._filled, full, orientation)
        picture.load()
        if wanted is not None and fingerprint(picture) != wanted:
            raise self._ends_early()
        return self._turned(picture, full, box, orientation)

    def _is_usual(self, picture: ImageFile.ImageFile, orientation: int) -> bool:
        """Whether an array is wanted, and Pillow would change nothing in the pixels that are stored."""
        return (
            not self._left_to_pillow
            and self._wants_array(*picture.size)
            and self._frame is not None
            and self._frame.marker in jpeg.HUFFMAN_CODED
            and picture.mode in {"L", "RGB"}
            and orientation not in _TRANSPOSE
            and self._filled is None  # the end is there
        )

    def _ends_early(self) -> ImageTruncated:
        return ImageTruncated(f"the JPEG picture ends before its data does, after {self._sent_bytes} bytes")

    def _drafted(
        self, picture: ImageFile.ImageFile, full: tuple[int, int], orientation: int
    ) -> tuple[float, float, float, float]:
        """Choose the size that the JPEG is decoded at. Return the rectangle that shows the whole picture."""
        width, height = full
        if self._preprocess.reduced_decoding:
            swapped = orientation in _SIDES_SWAPPED
            target = self._resized_sides(height, width)[::-1] if swapped else self._resized_sides(width, height)
            # At 1/2, 1/4 or 1/8 if that leaves twice the target.
            drafted = picture.draft(None, (2 * target[0], 2 * target[1]))
            if drafted is not None:
                x0, y0, x1, y1 = map(float, drafted[1])
                return x0, y0, x1, y1
        return 0.0, 0.0, float(width), float(height)

    def _fingerprint(self, encoded: bytes, full: tuple[int, int], orientation: int) -> int:
        """The fingerprint of a JPEG that is decoded for nothing else."""
        with Image.open(EncodedStream(encoded, "JPEG"), formats=["JPEG"]) as picture:
            self._drafted(picture, full, orientation)
            return fingerprint(picture)


def _reserved(_bytes: int) -> None:
    """Reserve no memory: it was reserved before."""


def _orientation(picture: ImageFile.ImageFile) -> int:
    """EXIF orientation, 1 to 8. It is 1 if the metadata cannot be read: the picture can be used nevertheless."""
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
    """The rectangle `box` of a stored image of `size` (width, height), after the image was made upright. Pixels."""
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
