"""Open picture files of many formats as RGB images."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_lit import printable

Array = NDArray[Any]

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

    def __init__(self, reason: object) -> None:
        super().__init__(printable(reason))


@contextlib.contextmanager
def unreadable_on_error() -> Iterator[None]:
    """Turn any exception of Pillow, OpenCV, NumPy or a disk into an UnreadableError: one picture cannot stop others.

    Raises:
        UnreadableError: An exception was raised.
    """
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or "damaged"  # strerror has no name of a file
        raise UnreadableError(f"cannot be read ({reason.splitlines()[0]})") from error


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
    """Convert any mode of Pillow's to RGB, where `Image.convert` alone would lose the digit."""
    if image.mode.startswith(("I", "F")):  # more than 8 bits, which Pillow would clip at 255
        values = np.array(image, dtype=np.float32)  # changed in place: a large picture has 200 MB
        np.nan_to_num(values, copy=False, posinf=0, neginf=0)
        low, high = float(values.min()), float(values.max())
        values -= low
        values *= 255 / max(high - low, 1e-9)
        image = Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):  # opaque, as most screenshots: this saves memory
            return image.convert("RGB")
        size = [min(side, WORKING_SIZE[1]) for side in image.size]
        pixels = np.asarray(image.resize(size, Image.Resampling.NEAREST))  # a sample of a large picture
        opaque = pixels[..., 3] > 127
        if opaque.any():
            color = np.median(pixels[opaque][:, :3], axis=0)
            if opaque.mean() <= 0.6:  # ink without paper: add white paper, or a black board behind light ink
                color = np.full(3, 255 if color.mean() < 128 else 0)
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*map(int, color), 255)), image)
    return image.convert("RGB")
