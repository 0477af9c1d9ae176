"""A person's pictures of digits in the form of MNIST's images."""

import contextlib
import glob
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_lit import UserError

try:
    import cv2
except ModuleNotFoundError as error:
    raise UserError("--data.images needs OpenCV: uv run --extra photos mnist-lit predict ...") from error

from mnist_lit.photos.ink import Array, UnreadableError, disc, find_digit

FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "ICNS"),
    *("PCX", "PSD", "QOI", "SGI"),
)
"""Of Pillow's formats those that it decodes itself: for EPS it would run Ghostscript on a stranger's program."""

MAX_PIXELS = 50_000_000
"""Pixels of the largest picture that is read."""

WORKED_ON = (280, 1000)
"""Pixels of the longer side that a picture is brought to, if it is smaller or larger, before ink is looked for."""

DIGIT = 200
"""Pixels of the longer side of a digit whose strokes are measured: ten times that of MNIST's."""

STROKE = (20, 34)
"""Pixels that a stroke of such a digit is brought between."""


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell whatever a picture leads Pillow, OpenCV and numpy to, so that the other pictures are answered."""
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(f"not to be read ({(str(error) or 'damaged').splitlines()[0]})") from error


def load_digits(names: list[str], invert: bool | None = None) -> tuple[dict[str, Array], dict[str, str]]:
    """The digits of a person's pictures, uint8 (28, 28) as `digit_of` gives them, by the picture's file.

    Args:
        names: Files, folders (what lies directly in them) or glob patterns.
        invert: As `digit_of` takes it.

    Returns:
        The digits, and why there is none, each by its file.
    """
    digits: dict[str, Array] = {}
    failed: dict[str, str] = {}
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        else:
            # Path.glob takes no absolute pattern
            files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        if not files:
            failed[name] = "there is no file in this folder" if path.is_dir() else "there is no such file"
        for file in files:
            try:
                digits[str(file)] = digit_of(open_picture(file), invert)
            except UnreadableError as error:
                failed[str(file)] = str(error)
    return digits, failed


@_told()
def open_picture(file: Any) -> Image.Image:
    """A picture as RGB, upright, with what is transparent filled.

    Raises:
        UnreadableError: The file (a path, or what can be read) is no picture in one of FORMATS.
    """
    Image.init()  # before it Pillow does not know all of its formats
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableError(f"{image.width * image.height / 1e6:.0f} megapixels are more than 50")
            image.draft("RGB", (WORKED_ON[1], WORKED_ON[1]))  # a JPEG need not be decoded in full
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise UnreadableError("not a picture in a usual format, such as JPEG or PNG") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError("more than 50 megapixels") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # more than 8 bits, which Pillow would cut off at 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        low, high = values.min(), values.max()
        image = Image.fromarray(((values - low) / max(high - low, 1e-9) * 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        pixels = np.asarray(image)
        opaque = pixels[..., 3] > 127
        if opaque.any():
            seen = np.median(pixels[opaque][:, :3], axis=0)
            # a picture with transparent corners goes on as it is; ink on nothing gets paper, or a board
            fill = seen if opaque.mean() > 0.6 else np.full(3, 255 if seen.mean() < 128 else 0)
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*map(int, fill), 255)), image)
    return image.convert("RGB")


@_told()
def digit_of(image: Image.Image, invert: bool | None = None) -> Array:
    """The digit in an RGB picture as MNIST would show it: uint8 (28, 28), white on black.

    Args:
        image: The picture.
        invert: Whether the digit is lighter than what it is written on; where None, the picture tells.

    Raises:
        UnreadableError: There is no digit in it, or several.
    """
    if min(image.size) < 8 or max(image.size) > 20 * min(image.size):
        raise UnreadableError(f"{image.width} x {image.height} pixels are no picture of a digit")
    if np.ptp(np.asarray(image)) == 0:  # all black too, which ink is looked for in vain
        raise UnreadableError("no digit found, the page is blank")
    scale = float(np.clip(max(image.size), *WORKED_ON)) / max(image.size)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    pixels = cv2.resize(np.asarray(image), None, fx=scale, fy=scale, interpolation=method)
    return mnist_form(*find_digit(pixels, invert))


@_told()
def mnist_form(soft: Array, threshold: float) -> Array:
    """Ink (H, W) as MNIST has it: 20 pixels long, strokes as wide as those of its writers, centred by mass in 28x28.

    Raises:
        UnreadableError: There is no ink.
    """
    ys, xs = np.nonzero(soft > threshold)
    if not len(ys):
        raise UnreadableError("no digit found, the page is blank")
    cut = soft[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    scale = DIGIT / max(cut.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    large = cv2.resize(np.pad(cut, 2), None, fx=scale, fy=scale, interpolation=method)
    large = cv2.GaussianBlur(np.pad(large, STROKE[0]).astype(np.float32), (0, 0), 2)
    shape = _with_usual_strokes((large > threshold).astype(np.uint8))
    ys, xs = np.nonzero(shape)
    if not len(ys):
        raise UnreadableError("no digit found, its strokes are too thin and faint")
    shape = shape[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    scale = 20 / max(shape.shape)
    size = max(1, round(shape.shape[1] * scale)), max(1, round(shape.shape[0] * scale))
    small = cv2.resize(shape * 255.0, size, interpolation=cv2.INTER_AREA)
    mass = small.sum()
    center_y = (small.sum(axis=1) @ np.arange(size[1])) / mass
    center_x = (small.sum(axis=0) @ np.arange(size[0])) / mass
    top = int(np.clip(round(13.5 - center_y), 0, 28 - size[1]))
    left = int(np.clip(round(13.5 - center_x), 0, 28 - size[0]))
    image = np.zeros((28, 28), np.uint8)
    image[top : top + size[1], left : left + size[0]] = np.clip(np.round(small), 0, 255)
    return image


def _with_usual_strokes(shape: Array) -> Array:
    """Strokes as discs along their middle line, neither smaller nor larger than MNIST's pens."""
    depth = cv2.distanceTransform(shape, cv2.DIST_L2, 5)
    around = cv2.dilate(depth, disc(STROKE[1]))
    ridge = (depth >= cv2.dilate(depth, np.ones((3, 3), np.uint8)) - 0.3) & (depth > 0.6 * around) & (shape > 0)
    middle = ridge.astype(np.uint8)
    return cv2.bitwise_or(cv2.dilate(middle, disc(STROKE[0])), shape & cv2.dilate(middle, disc(STROKE[1])))
