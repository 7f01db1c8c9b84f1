"""Plain pictures for requests."""

import io

from PIL import Image


def png(width: int, height: int) -> bytes:
    """A PNG of one colour. Its size in bytes is small whatever its sides are."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 120, 40)).save(stream, "PNG")
    return stream.getvalue()
