"""Drawing: a picture and the server's reply in, an annotated picture out.

Labels become a caption below the picture. Boxes are drawn with their names. Masks are laid over the picture, with a
legend below. A banner says so where the weights are not trained for photographs. Sizes follow the size of the picture.
Drawing never filters the reply and never calls a server.
"""

import colorsys
import math
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mobilevision.results import OUTSIDE
from service.pb.mobilevision.v1 import vision_pb2

Reply = vision_pb2.ClassifyResponse | vision_pb2.DetectResponse | vision_pb2.SegmentResponse
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

MIN_WIDTH_PX = 320  # smaller pictures are enlarged, so that names fit
MASK_OPACITY = 0.55
LEGEND_ROWS = 8
BACKGROUND = "background"  # pixels of a class with this name stay as they are

_INK: Colour = (28, 30, 34)
_PAPER: Colour = (250, 250, 248)
_QUIET: Colour = (120, 124, 130)
_WHITE: Colour = (255, 255, 255)
_BANNERS: dict[int, tuple[str, Colour]] = {
    vision_pb2.WEIGHTS_STATE_RANDOM: ("weights: random. This answer means nothing", (196, 30, 46)),
    vision_pb2.WEIGHTS_STATE_DEMO: ("weights: demo, trained on drawn shapes only", (176, 104, 0)),
}


def annotate(image_bytes: bytes, reply: Reply, *, colours: Sequence[str] = ()) -> Image.Image:
    """Draw `reply` on the encoded picture that it answers.

    `colours`: those of the model, `#rrggbb` for each label (`Model.label_colours`). Without them, they are chosen here.

    Returns an upright RGB picture. A picture narrower than 320 pixels is enlarged by a whole factor.

    Raises OSError where the picture cannot be decoded, and ValueError where the mask has another size than the picture.
    """
    try:
        with Image.open(BytesIO(image_bytes)) as opened:
            picture = _plain_rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # Pillow's plugins raise nearly any exception; the server reads more kinds of pictures
        raise OSError(f"answered, but the picture cannot be drawn on here: {error}") from error
    scale = max(1, math.ceil(MIN_WIDTH_PX / picture.width))
    if picture.height * scale > 4 * MIN_WIDTH_PX:  # a narrow strip keeps its size
        scale = 1
    canvas = _DRAW[type(reply)](picture, scale, reply, colours)
    banner = _BANNERS.get(reply.model.weights)
    return canvas if banner is None else _below(_strip(canvas.width, _text_px(canvas), *banner), canvas)


def _draw_labels(
    picture: Image.Image, scale: int, reply: vision_pb2.ClassifyResponse, colours: Sequence[str]
) -> Image.Image:
    canvas = _enlarged(picture, scale)
    return _below(canvas, _caption(canvas.width, _text_px(canvas), reply, colours))


def _draw_boxes(
    picture: Image.Image, scale: int, reply: vision_pb2.DetectResponse, colours: Sequence[str]
) -> Image.Image:
    canvas = _enlarged(picture, scale)
    _boxes(canvas, _text_px(canvas), reply, scale, colours)
    return canvas


def _draw_mask(
    picture: Image.Image, scale: int, reply: vision_pb2.SegmentResponse, colours: Sequence[str]
) -> Image.Image:
    canvas = _enlarged(_masked(picture, reply, colours), scale)
    return _below(canvas, _legend(canvas.width, _text_px(canvas), reply, colours))


_DRAW: dict[type[Reply], Callable[[Image.Image, int, Any, Sequence[str]], Image.Image]] = {
    vision_pb2.ClassifyResponse: _draw_labels,
    vision_pb2.DetectResponse: _draw_boxes,
    vision_pb2.SegmentResponse: _draw_mask,
}


def _enlarged(picture: Image.Image, scale: int) -> Image.Image:
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _text_px(canvas: Image.Image) -> int:
    return max(12, round(min(canvas.width / 32, max(canvas.height, canvas.width / 2) / 20)))


def _plain_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # Pillow would clip values above 255 instead of scaling them
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture.info.pop("transparency", None)  # the server ignores transparency too
    return picture.convert("RGB")


def colour_of(label: int, colours: Sequence[str] = ()) -> Colour:
    """A colour for a class id, RGB, 0..255: that of `colours` (`#rrggbb`) if there is one.

    Else hues are a golden angle apart, so that neighbouring ids look different.
    """
    if label < len(colours):
        red, green, blue = bytes.fromhex(colours[label].removeprefix("#"))
        return red, green, blue
    hue = (0.58 + label * 0.381966) % 1.0
    parts = colorsys.hls_to_rgb(hue, 0.46 + 0.1 * (label % 3 - 1), 0.75)
    return round(parts[0] * 255), round(parts[1] * 255), round(parts[2] * 255)


def _font(size_px: float) -> Font:
    return ImageFont.load_default(size=size_px)


def _on(background: Colour) -> Colour:
    """A text colour that is readable on `background`."""
    red, green, blue = background
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else _WHITE


def _fitted(text: str, font: Font, width_px: float) -> str:
    """Shorten a text that is too wide, with an ellipsis."""
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


def _below(upper: Image.Image, lower: Image.Image) -> Image.Image:
    stacked = Image.new("RGB", (upper.width, upper.height + lower.height), _PAPER)
    stacked.paste(upper, (0, 0))
    stacked.paste(lower, (0, upper.height))
    return stacked


def _strip(width: int, text_px: int, text: str, colour: Colour) -> Image.Image:
    font = _font(text_px)
    pad = max(4, round(text_px * 0.45))
    strip = Image.new("RGB", (width, text_px + 2 * pad), colour)
    text = _fitted(text, font, width - 2 * pad)
    ImageDraw.Draw(strip).text((pad, strip.height / 2), text, fill=_WHITE, font=font, anchor="lm")
    return strip


def _rows(
    width: int, text_px: int, rows: Iterable[tuple[str, float, Colour]], foot: str, *, empty: str, number: str
) -> Image.Image:
    """A band with one row per (name, share, colour): a patch of the colour, the name, a bar and the share.

    A share is 0..1, and `number` formats it. `foot` is the line below the rows. `empty` stands where there are no rows.
    """
    listed = list(rows)
    font, small = _font(text_px), _font(max(10, round(text_px * 0.75)))
    pad = max(4, round(text_px * 0.6))
    line = round(text_px * 1.55)
    band = Image.new("RGB", (width, pad * 2 + line * (max(len(listed), 1) + 1)), _PAPER)
    draw = ImageDraw.Draw(band)
    number_px = font.getlength(number.format(0.999)) + pad
    room = width - 2 * pad
    name_px = min(max((font.getlength(name) for name, _, _ in listed), default=0.0) + 2.2 * text_px, room * 0.55)
    bar_from, bar_to = pad + name_px, width - pad - number_px
    for index, (name, share, colour) in enumerate(listed):
        middle = pad + line * (index + 0.5)
        half = text_px * 0.36
        draw.rectangle((pad, middle - half, pad + 2 * half, middle + half), fill=colour)
        draw.text(
            (pad + 1.3 * text_px, middle),
            _fitted(name, font, name_px - 1.6 * text_px),
            fill=_INK,
            font=font,
            anchor="lm",
        )
        if bar_to - bar_from > 2 * half:
            track = (bar_from, middle - half, bar_to, middle + half)
            draw.rounded_rectangle(track, radius=half, fill=(228, 229, 226))
            filled = bar_from + (bar_to - bar_from) * min(max(share, 0.0), 1.0)
            if filled - bar_from >= 1:
                radius = min(half, (filled - bar_from) / 2)
                draw.rounded_rectangle((bar_from, middle - half, filled, middle + half), radius=radius, fill=colour)
        draw.text((width - pad, middle), number.format(share), fill=_INK, font=font, anchor="rm")
    if not listed:
        draw.text((pad, pad + line * 0.5), empty, fill=_QUIET, font=font, anchor="lm")
    last = pad + line * (max(len(listed), 1) + 0.55)
    draw.text((pad, last), _fitted(foot, small, room), fill=_QUIET, font=small, anchor="lm")
    return band


def _caption(width: int, text_px: int, reply: vision_pb2.ClassifyResponse, colours: Sequence[str]) -> Image.Image:
    best = colour_of(reply.labels[0].id, colours) if reply.labels else _QUIET
    rows = [(label.name, label.score, best if place == 0 else _QUIET) for place, label in enumerate(reply.labels)]
    return _rows(width, text_px, rows, reply.model.name, empty="no labels", number="{:.3f}")


def _legend(width: int, text_px: int, reply: vision_pb2.SegmentResponse, colours: Sequence[str]) -> Image.Image:
    rows = [
        (found.name, found.area_fraction, _QUIET if found.name == BACKGROUND else colour_of(found.id, colours))
        for found in reply.classes[:LEGEND_ROWS]
    ]
    more = len(reply.classes) - len(rows)
    foot = reply.model.name + (f", {more} more classes" if more > 0 else "")
    if reply.classes and not reply.mask_png:
        foot += ", no mask drawn: it came as COCO run lengths"
    return _rows(width, text_px, rows, foot, empty="no classes", number="{:.1%}")


def _masked(picture: Image.Image, reply: vision_pb2.SegmentResponse, colours: Sequence[str]) -> Image.Image:
    """Lay the class colours over the picture, with white outlines. Pixels that the model did not see become pale."""
    if not reply.mask_png:
        return picture
    with Image.open(BytesIO(reply.mask_png)) as opened:
        classes = np.asarray(opened)  # uint8 (height, width), class ids
    if classes.shape != (picture.height, picture.width):
        raise ValueError(
            f"the mask is {classes.shape[1]} x {classes.shape[0]} pixels, the picture is {picture.width} x "
            f"{picture.height}: draw a reply on the picture that was sent"
        )
    palette = np.array([colour_of(label, colours) for label in range(256)], np.uint8)
    palette[OUTSIDE] = _PAPER
    opacity = np.full(256, round(MASK_OPACITY * 255), np.uint8)
    opacity[[found.id for found in reply.classes if found.name == BACKGROUND]] = 0
    blended = Image.composite(Image.fromarray(palette[classes]), picture, Image.fromarray(opacity[classes]))
    edges = np.zeros(classes.shape, bool)
    edges[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    edges[1:] |= classes[1:] != classes[:-1]
    blended.paste(_WHITE, mask=Image.fromarray(edges.astype(np.uint8) * 200))
    return blended


def _boxes(
    canvas: Image.Image, text_px: int, reply: vision_pb2.DetectResponse, scale: int, colours: Sequence[str]
) -> None:
    """Draw the boxes of `reply`. The best are drawn last, so that they lie on top."""
    draw = ImageDraw.Draw(canvas)
    font = _font(text_px)
    line_px = max(2, round(text_px / 6))
    pad = max(2, round(text_px * 0.28))
    for found in reversed(reply.detections):
        colour = colour_of(found.label.id, colours)
        box = [edge * scale for edge in (found.box.x_min, found.box.y_min, found.box.x_max, found.box.y_max)]
        # A box ends between two pixels, a drawn rectangle on a pixel. A box of less than a pixel is drawn as one pixel.
        corners = (box[0], box[1], max(box[2] - 1, box[0]), max(box[3] - 1, box[1]))
        draw.rectangle(tuple(_grown(corners, 1)), outline=_WHITE, width=1)
        draw.rectangle(corners, outline=colour, width=line_px)
    taken: list[Rectangle] = []
    chips = []
    for found in reply.detections:  # the best boxes choose the place of their names first
        colour = colour_of(found.label.id, colours)
        text = _fitted(f"{found.label.name} {found.label.score:.2f}", font, canvas.width - 2 * pad)
        chip_width, chip_height = font.getlength(text) + 2 * pad, text_px + 2 * pad
        left = min(max(found.box.x_min * scale, 0.0), max(canvas.width - chip_width, 0.0))
        top, bottom = found.box.y_min * scale, found.box.y_max * scale
        places = [
            (left, min(max(place, 0.0), max(canvas.height - chip_height, 0.0)))
            for place in (
                top - chip_height,
                top,
                bottom,
                bottom - chip_height,
                top + chip_height,
                top + 2 * chip_height,
            )
        ]
        free = (p for p in places if not any(_overlap((*p, p[0] + chip_width, p[1] + chip_height), t) for t in taken))
        x, y = next(free, places[0])
        chip = (x, y, x + chip_width, y + chip_height)
        taken.append(chip)
        chips.append((chip, text, colour))
    for chip, text, colour in reversed(chips):
        draw.rectangle(chip, fill=colour)
        middle = (chip[1] + chip[3]) / 2
        draw.text((chip[0] + pad, middle), text, fill=_on(colour), font=font, anchor="lm")
    if not reply.detections:
        chip = (0, canvas.height - text_px - 2 * pad, font.getlength("nothing found") + 2 * pad, canvas.height)
        draw.rectangle(chip, fill=_INK)
        draw.text((pad, (chip[1] + chip[3]) / 2), "nothing found", fill=_WHITE, font=font, anchor="lm")


def _grown(box: Rectangle, by: float) -> Rectangle:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
