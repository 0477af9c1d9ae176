"""Open picture files of many formats as RGB images."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "ICNS"),
    *("PCX", "PSD", "QOI", "SGI"),
)
"""The formats that Pillow decodes itself. For EPS it would run Ghostscript, and EPS files are programs."""

MAX_PIXELS = 50_000_000

WORKING_SIZE = (280, 1000)
"""Smallest and largest longer side, in pixels, of a picture in which ink is searched."""


class UnreadableError(Exception):
    """A picture in which no digit can be read; the message gives the reason in a few words."""


@contextlib.contextmanager
def unreadable_on_error() -> Iterator[None]:
    """Turn any exception of Pillow, OpenCV or NumPy into an UnreadableError, so that one picture cannot stop others."""
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(f"cannot be read ({(str(error) or 'damaged').splitlines()[0]})") from error


@unreadable_on_error()
def open_picture(file: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture as RGB, upright, with a background in place of transparency.

    Raises:
        UnreadableError: The file is damaged, too large or not in one of FORMATS.
    """
    Image.init()  # registers all formats
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError  # as Pillow does from 179 megapixels on
            image.draft("RGB", (WORKING_SIZE[1], WORKING_SIZE[1]))  # decodes a large JPEG at a fraction of its size
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise UnreadableError("not a picture in a common format, such as JPEG or PNG") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError(f"more than {max_pixels // 10**6} megapixels") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode of Pillow's to RGB, where `Image.convert` alone would lose the digit.

    Works in place, because a picture of 50 megapixels would otherwise need more than 1 GB.
    """
    if image.mode.startswith(("I", "F")):  # more than 8 bits, which Pillow would clip at 255
        values = np.array(image, dtype=np.float64)
        np.nan_to_num(values, copy=False)
        low, high = values.min(), values.max()
        values -= low
        values /= max(high - low, 1e-9)
        values *= 255
        image = Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() == (255, 255):  # as in a drawing of the demo, which should be fast
            return image.convert("RGB")
        counts = np.reshape(image.histogram(alpha.point([0] * 128 + [255] * 128)), (4, 256))[:3].cumsum(axis=1)
        if opaque := int(counts[0, -1]):
            middle = ((opaque - 1) // 2, opaque // 2)
            color = np.array([count.searchsorted(middle, "right").mean() for count in counts])  # medians
            if opaque <= 0.6 * alpha.width * alpha.height:  # ink without paper: add white paper, or a black board
                color = np.full(3, 255 if color.mean() < 128 else 0)  # behind light ink
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*map(int, color), 255)), image)
    return image.convert("RGB")
