"""Pixels of usual JPEGs, decoded by libjpeg-turbo without Pillow: encoded bytes in, an array out.

Pillow decodes with the same library, so the pixels are the same to the bit. It takes longer, because it reads in
pieces, stores four bytes per pixel, and copies them into an array through Python. Never decides whether a picture is
accepted: whatever the library complains about is left to Pillow.
"""

import numpy as np
import simplejpeg

from handlers.contract.frame import Array


def pixels(encoded: bytes, *, width: int, height: int, grey: bool) -> Array | None:
    """Decode a JPEG of 8 bits per sample: uint8 [H, W, 3], or [H, W] if it is `grey`. Releases the GIL meanwhile.

    None: the library found something odd, such as missing data, or another size. Takes no memory for another size.
    """
    into = np.empty((height, width, 1 if grey else 3), np.uint8)
    try:
        # `strict`: an error instead of grey pixels where data is missing.
        found = simplejpeg.decode_jpeg(encoded, "GRAY" if grey else "RGB", buffer=into, strict=True)
    except ValueError:
        return None
    if found.shape != into.shape:
        return None
    return into[..., 0] if grey else into
