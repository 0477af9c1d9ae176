"""Bring a digit into the form of MNIST's images: 28 x 28, white on black, 20 pixels long, centered by mass."""

import math

import cv2
import numpy as np
from PIL import Image

from mnist_lit.photos.ink import find_ink
from mnist_lit.photos.parts import BLANK, check_drawing, disc
from mnist_lit.photos.pictures import WORKING_SIZE, Array, UnreadableError, unreadable_on_error

LENGTH = 200
"""Longer side, in pixels, of the enlarged digit whose strokes are measured: ten times that of MNIST's digits."""

STROKE = (20, 34)
"""Thinnest and thickest stroke, in pixels, of the enlarged digit."""

MIN_STROKE = 0.04
"""Width of the thinnest stroke, as a share of the digit's length, before the digit is reduced to LENGTH pixels."""


@unreadable_on_error()
def photo_to_digit(image: Image.Image, invert: bool | None = None) -> Array:
    """Find the one digit on a photo or scan and bring it into MNIST's form, uint8 (28, 28).

    Args:
        image: The picture, in RGB.
        invert: Whether the digit is lighter than its background; None decides it from the picture.

    Raises:
        UnreadableError: The picture has no digit, or several.
    """
    _check_size(image)
    if np.ptp(np.asarray(image)) == 0:  # a single color, of any kind
        raise UnreadableError(BLANK)
    scale = float(np.clip(max(image.size), *WORKING_SIZE)) / max(image.size)
    return to_mnist_form(*find_ink(_rescale(np.asarray(image), scale), invert))


@unreadable_on_error()
def drawing_to_digit(image: Image.Image) -> Array:
    """Bring a drawing, black on white, into MNIST's form, uint8 (28, 28); all of its ink belongs to the digit.

    Raises:
        UnreadableError: The drawing is blank, has several digits, or is too small or too narrow.
    """
    _check_size(image)
    gray = np.asarray(image.convert("L"))
    gray = _crop(gray, gray < 128, BLANK)
    check_drawing((gray < 128).astype(np.uint8))
    ink = 1 - gray.astype(np.float32) / 255
    return to_mnist_form(ink, threshold=0.5)


def _check_size(image: Image.Image) -> None:
    """Refuse a picture that is too small or too narrow for a digit.

    Raises:
        UnreadableError: It is.
    """
    if min(image.size) < 8 or max(image.size) > 20 * min(image.size):
        raise UnreadableError(f"too small or too narrow, {image.width} x {image.height} pixels")


def to_mnist_form(ink: Array, threshold: float) -> Array:
    """Scale ink to 20 pixels, give it strokes as wide as those of MNIST, and center it by mass in uint8 (28, 28).

    Args:
        ink: Darkness of the ink, float (H, W).
        threshold: Darkness above which a pixel is ink.

    Raises:
        UnreadableError: No pixel is ink.
    """
    enlarged = _widen(_reduce(_crop(ink, ink > threshold, BLANK)), threshold)
    enlarged = _rescale(np.pad(enlarged, 2), LENGTH / max(enlarged.shape))
    enlarged = cv2.GaussianBlur(np.pad(enlarged, STROKE[0]).astype(np.float32), (0, 0), 2)
    shape = _limit_stroke_width((enlarged > threshold).astype(np.uint8))
    shape = _crop(shape, shape > 0, "no digit found, its strokes are too thin and faint")
    scale = 20 / max(shape.shape)
    height, width = (max(1, round(side * scale)) for side in shape.shape)
    small = cv2.resize(shape * 255.0, (width, height), interpolation=cv2.INTER_AREA)
    center_y = small.sum(axis=1) @ np.arange(height) / small.sum()
    center_x = small.sum(axis=0) @ np.arange(width) / small.sum()
    top = int(np.clip(round(13.5 - center_y), 0, 28 - height))
    left = int(np.clip(round(13.5 - center_x), 0, 28 - width))
    image = np.zeros((28, 28), np.uint8)
    image[top : top + height, left : left + width] = np.clip(np.round(small), 0, 255)
    return image


def _reduce(ink: Array) -> Array:
    """Reduce ink (H, W) to the largest working size, without losing thin strokes: wider ones take minutes to widen."""
    scale = WORKING_SIZE[1] / max(ink.shape)
    side = math.ceil(1 / scale)
    return _rescale(cv2.dilate(ink, np.ones((side, side), np.uint8)), scale) if scale < 1 else ink


def _widen(ink: Array, threshold: float) -> Array:
    """Widen the strokes of ink (H, W) that would vanish where it is reduced to LENGTH pixels."""
    shape = np.pad((ink > threshold).astype(np.uint8), 1)
    depth = cv2.distanceTransform(shape, cv2.DIST_L2, 3)[shape > 0]
    missing = round(MIN_STROKE * max(ink.shape) - 4 * float(depth.mean()))  # strokes are four times as wide as deep
    return cv2.dilate(np.pad(ink, missing // 2 + 1), disc(missing + 1)) if missing > 0 else ink


def _crop(values: Array, mask: Array, error: str) -> Array:
    """Crop values (H, W) to the bounding box of a mask (H, W); an empty mask raises UnreadableError."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise UnreadableError(error)
    return values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _rescale(pixels: Array, scale: float) -> Array:
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _limit_stroke_width(shape: Array) -> Array:
    """Thicken strokes of a mask (H, W) that are thinner than STROKE, and thin those that are thicker.

    The strokes' center lines are the ridge of the distance to the background; discs along them redraw the strokes.
    """
    depth = cv2.distanceTransform(shape, cv2.DIST_L2, 5)
    deepest_nearby = cv2.dilate(depth, disc(STROKE[1]))
    is_ridge = (depth >= cv2.dilate(depth, np.ones((3, 3), np.uint8)) - 0.3) & (depth > 0.6 * deepest_nearby)
    ridge = (is_ridge & (shape > 0)).astype(np.uint8)
    return cv2.bitwise_or(cv2.dilate(ridge, disc(STROKE[0])), shape & cv2.dilate(ridge, disc(STROKE[1])))
