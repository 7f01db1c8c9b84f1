"""Drawing: a picture and the server's reply in, an annotated picture out.

Labels become a caption band under the picture, boxes are drawn with their names, masks are laid over the picture with a
legend. Where the weights are not trained for photographs the picture says so. Sizes follow the picture. The reply is
taken as it is: nothing is filtered, and no server is asked.
"""

import colorsys
import math
from collections.abc import Iterable
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from service.pb.mobilevision.v1 import vision_pb2

Reply = vision_pb2.ClassifyResponse | vision_pb2.DetectResponse | vision_pb2.SegmentResponse
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

OUTSIDE = 255  # class map value of pixels the model did not see
MIN_WIDTH_PX = 320  # smaller pictures are enlarged, so that names fit
MASK_OPACITY = 0.55
LEGEND_ROWS = 8
BACKGROUND = "background"  # a class of this name means "nothing": its pixels are left as they are

_INK: Colour = (28, 30, 34)
_PAPER: Colour = (250, 250, 248)
_QUIET: Colour = (120, 124, 130)
_BANNERS: dict[int, tuple[str, Colour]] = {
    vision_pb2.WEIGHTS_STATE_RANDOM: ("weights: random. This answer means nothing", (196, 30, 46)),
    vision_pb2.WEIGHTS_STATE_DEMO: ("weights: demo, trained on drawn shapes only", (176, 104, 0)),
}


def annotate(image_bytes: bytes, reply: Reply) -> Image.Image:
    """Draw `reply` on the picture it answers. Returns an RGB image, upright; small pictures come out enlarged."""
    with Image.open(BytesIO(image_bytes)) as opened:
        picture = _plain_rgb(ImageOps.exif_transpose(opened))
    enlarged = max(1, math.ceil(MIN_WIDTH_PX / picture.width))
    if picture.height * enlarged > 4 * MIN_WIDTH_PX:  # a narrow strip stays as it is
        enlarged = 1
    if isinstance(reply, vision_pb2.SegmentResponse):
        picture = _masked(picture, reply)
    canvas = picture.resize((picture.width * enlarged, picture.height * enlarged), Image.Resampling.NEAREST)
    text_px = max(12, round(min(canvas.width / 32, max(canvas.height, canvas.width / 2) / 20)))
    if isinstance(reply, vision_pb2.ClassifyResponse):
        canvas = _below(canvas, _caption(canvas.width, text_px, reply))
    elif isinstance(reply, vision_pb2.DetectResponse):
        _boxes(canvas, text_px, reply, enlarged)
    else:
        canvas = _below(canvas, _legend(canvas.width, text_px, reply))
    banner = _BANNERS.get(reply.model.weights)
    return canvas if banner is None else _below(_strip(canvas.width, text_px, *banner), canvas)


def _plain_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # Pillow would clip 16 bits, not scale them
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture.info.pop("transparency", None)  # dropped, as the server does
    return picture.convert("RGB")


def colour_of(label: int) -> Colour:
    """A colour per class id: steps of the golden angle, so that neighbouring ids differ most."""
    hue = (0.58 + label * 0.381966) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, 0.46 + 0.1 * (label % 3 - 1), 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def _font(size_px: float) -> Font:
    return ImageFont.load_default(size=size_px)


def _on(background: Colour) -> Colour:
    """Ink that is readable on a colour."""
    red, green, blue = background
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else (255, 255, 255)


def _fitted(text: str, font: Font, width_px: float) -> str:
    """Cut a text that is too wide, with an ellipsis."""
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
    ImageDraw.Draw(strip).text((pad, strip.height / 2), text, fill=(255, 255, 255), font=font, anchor="lm")
    return strip


def _rows(
    width: int, text_px: int, rows: Iterable[tuple[str, float, Colour]], foot: str, *, empty: str, number: str
) -> Image.Image:
    """A band of rows: colour, name, bar, number; below them a line on the model. `number` formats 0..1."""
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


def _caption(width: int, text_px: int, reply: vision_pb2.ClassifyResponse) -> Image.Image:
    best = colour_of(reply.labels[0].id) if reply.labels else _QUIET
    rows = [(label.name, label.score, best if place == 0 else _QUIET) for place, label in enumerate(reply.labels)]
    return _rows(width, text_px, rows, reply.model.name, empty="no labels", number="{:.3f}")


def _legend(width: int, text_px: int, reply: vision_pb2.SegmentResponse) -> Image.Image:
    rows = [
        (found.name, found.area_fraction, _QUIET if found.name == BACKGROUND else colour_of(found.id))
        for found in reply.classes[:LEGEND_ROWS]
    ]
    more = len(reply.classes) - len(rows)
    foot = reply.model.name + (f", {more} more classes" if more > 0 else "")
    if reply.classes and not reply.mask_png:
        foot += ", no mask drawn: it came as COCO run lengths"
    return _rows(width, text_px, rows, foot, empty="no classes", number="{:.1%}")


def _masked(picture: Image.Image, reply: vision_pb2.SegmentResponse) -> Image.Image:
    """Lay the class colours over the picture; outlines stay sharp, the unseen part pales."""
    if not reply.mask_png:
        return picture
    with Image.open(BytesIO(reply.mask_png)) as opened:
        classes = np.asarray(opened)  # uint8 (H, W), class ids
    if classes.shape != (picture.height, picture.width):
        raise ValueError(f"the mask has {classes.shape[::-1]} pixels, the picture {picture.size}: not its answer")
    palette = np.array([colour_of(label) for label in range(256)], np.uint8)
    palette[OUTSIDE] = _PAPER
    opacity = np.full(256, round(MASK_OPACITY * 255), np.uint8)
    opacity[[found.id for found in reply.classes if found.name == BACKGROUND]] = 0
    blended = Image.composite(Image.fromarray(palette[classes]), picture, Image.fromarray(opacity[classes]))
    edges = np.zeros(classes.shape, bool)
    edges[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    edges[1:] |= classes[1:] != classes[:-1]
    blended.paste((255, 255, 255), mask=Image.fromarray(edges.astype(np.uint8) * 200))
    return blended


def _boxes(canvas: Image.Image, text_px: int, reply: vision_pb2.DetectResponse, scale: int) -> None:
    """Draw the boxes of `reply`, the best last, so that they lie on top."""
    draw = ImageDraw.Draw(canvas)
    font = _font(text_px)
    line_px = max(2, round(text_px / 6))
    pad = max(2, round(text_px * 0.28))
    for found in reversed(reply.detections):
        colour = colour_of(found.label.id)
        box = [edge * scale for edge in (found.box.x_min, found.box.y_min, found.box.x_max, found.box.y_max)]
        # Boxes end between pixels, rectangles on them; and a box of less than a pixel is drawn as one.
        corners = (box[0], box[1], max(box[2] - 1, box[0]), max(box[3] - 1, box[1]))
        draw.rectangle(tuple(_grown(corners, 1)), outline=(255, 255, 255), width=1)
        draw.rectangle(corners, outline=colour, width=line_px)
    taken: list[tuple[float, float, float, float]] = []
    chips = []
    for found in reply.detections:  # names above all boxes, the best's where they belong
        colour = colour_of(found.label.id)
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
        draw.text((pad, (chip[1] + chip[3]) / 2), "nothing found", fill=(255, 255, 255), font=font, anchor="lm")


def _grown(box: tuple[float, float, float, float], by: float) -> tuple[float, float, float, float]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
