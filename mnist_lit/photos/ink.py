"""Find the ink of one digit on a picture of paper or of a board, with OpenCV.

The steps: straighten the sheet of paper, pick the color channel with the strongest contrast, divide by the paper's
brightness, apply a threshold, erase ruled lines, and choose the connected components that form the digit.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lit.photos.pictures import UnreadableError

Array = NDArray[Any]

MAX_LINES = 300
"""Lines of a direction that are searched for: squared paper has a hundred, a picture full of ink has thousands."""

BLANK = "no digit found, the picture is blank"


def find_ink(pixels: Array, invert: bool | None = None) -> tuple[Array, float]:
    """Find the ink of the one digit on a picture.

    Args:
        pixels: RGB picture, uint8 (H, W, 3).
        invert: Whether the digit is lighter than its background; None decides it for each channel.

    Returns:
        The darkness of the digit's ink, about 1 on its strokes and 0 away from it, and the threshold above which a
        pixel counts as ink. The darkness has the shape (H, W) of the picture, or of the sheet of paper found in it.

    Raises:
        UnreadableError: The picture has no digit, or several.
    """
    errors = []
    for channel in _rank_channels(_straighten_sheet(pixels), invert):
        darkness = _relative_darkness(channel)
        try:
            threshold, ink_darkness = _choose_threshold(darkness)
            digit = _select_digit(_erase_ruled_lines((darkness > threshold).astype(np.uint8)))
        except UnreadableError as error:  # ruled lines may be fainter in the next channel
            errors.append(error)
        else:
            return darkness / ink_darkness * cv2.dilate(digit, disc(3)), threshold / ink_darkness
    raise errors[0]


def disc(diameter: int) -> Array:
    """A round structuring element, uint8 (diameter, diameter)."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(1, diameter), max(1, diameter)))


def _straighten_sheet(pixels: Array) -> Array:
    """Crop (H, W, 3) to a sheet of paper on a darker surface, seen from above; without a sheet, return it unchanged."""
    scale = 200 / max(pixels.shape[:2])
    gray = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    without_ink = cv2.morphologyEx(cv2.GaussianBlur(gray, (0, 0), 1), cv2.MORPH_CLOSE, disc(25))
    _, light = cv2.threshold(without_ink, 0, 1, cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(light, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outline = max(contours, key=cv2.contourArea, default=np.zeros((1, 1, 2), np.int32))
    area = cv2.contourArea(outline)
    hull = cv2.convexHull(outline)
    corners = cv2.approxPolyDP(hull, 0.03 * cv2.arcLength(hull, True), True)[:, 0].astype(np.float32)
    left, top, width, height = cv2.boundingRect(hull)
    edges = (left <= 1) + (top <= 1) + (left + width >= gray.shape[1] - 1) + (top + height >= gray.shape[0] - 1)
    is_sheet = len(corners) == 4 and edges <= 1 and area > 0.15 * gray.size and area > 0.9 * cv2.contourArea(hull)
    if not is_sheet or gray[light == 0].mean() > 0.65 * gray[light == 1].mean():
        return pixels
    center = corners.mean(axis=0)
    x, y = (corners - center).T
    corners = corners[np.argsort(np.arctan2(y, x))]  # clockwise from the upper left
    corners = (center + 0.97 * (corners - center)) / scale  # inside the sheet's edge
    sides = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)  # top, right, bottom, left
    width, height = int((sides[0] + sides[2]) / 2), int((sides[1] + sides[3]) / 2)
    rectangle = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    return cv2.warpPerspective(pixels, cv2.getPerspectiveTransform(corners, rectangle), (width, height))


def _rank_channels(pixels: Array, invert: bool | None) -> list[Array]:
    """Gray, red, green and blue of pixels (H, W, 3) as dark ink on light paper, each (H, W), by contrast."""
    scored = []
    for weight, channel in ((1.25, cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)), *((1, one) for one in cv2.split(pixels))):
        channel = cv2.GaussianBlur(channel, (0, 0), 1)
        small = cv2.resize(channel, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        smaller = cv2.resize(small, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        paper = cv2.medianBlur(smaller, min(smaller.shape) // 2 | 1)
        deviation = small.astype(np.float32) - cv2.resize(paper, small.shape[::-1])
        strongest = np.percentile(np.abs(deviation), 99.8)
        score = weight * strongest / (np.median(np.abs(deviation)) + 5)
        ink_is_light = _ink_is_light(deviation, 0.4 * strongest) if invert is None else invert
        scored.append((score, 255 - channel if ink_is_light else channel))
    return [channel for _, channel in sorted(scored, key=lambda pair: -pair[0])]


def _ink_is_light(deviation: Array, minimum: float) -> bool:
    """Whether more narrow shapes are lighter than the paper than darker; broad ones are lights and shadows.

    Args:
        deviation: Brightness minus that of the paper, float (H, W).
        minimum: Smallest deviation that counts.
    """
    areas = []
    for sign in (1, -1):
        mask = (sign * deviation > minimum).astype(np.uint8)
        broad = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc(min(mask.shape) // 5))
        labels, _ = _components(mask)
        areas.append(int((mask * ~np.isin(labels, labels[broad > 0])).sum()))
    return areas[0] > areas[1]


def _relative_darkness(channel: Array) -> Array:
    """The share of the paper's brightness that is missing at each pixel (H, W): 0 on paper in light and in shadow.

    The paper's brightness is a morphological closing, which fills dark shapes narrower than a quarter of the picture.
    """
    small = cv2.resize(channel, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    reach = max(small.shape) // 4
    padded = cv2.copyMakeBorder(small, reach, reach, reach, reach, cv2.BORDER_REPLICATE)  # a digit may touch the border
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc(reach))[reach:-reach, reach:-reach]
    paper = cv2.resize(closed, channel.shape[::-1]).astype(np.float32)
    darkness = 1 - channel / np.maximum(paper, 16)
    counts, edges = np.histogram(darkness, 100, (0, 0.5))
    return darkness - float(edges[counts.argmax()])  # noise makes the closing too bright


def _choose_threshold(darkness: Array) -> tuple[float, float]:
    """The darkness from which a pixel counts as ink, and the median darkness of the ink."""
    noise = 1.4826 * float(np.median(-darkness[darkness < 0])) if darkness.min() < 0 else 0.0  # standard deviation
    above = darkness[darkness > max(6 * noise, 0.08)]
    if above.size < 2e-4 * darkness.size or above.max() < 0.12:
        raise UnreadableError(BLANK)
    levels = np.clip(above * 255, 0, 255).astype(np.uint8)
    otsu, _ = cv2.threshold(levels.reshape(1, -1), 0, 255, cv2.THRESH_OTSU)
    ink = float(np.median(above[above * 255 >= otsu]))
    return float(np.clip(otsu / 255, 0.35 * ink, 0.55 * ink)), ink


def _erase_ruled_lines(ink: Array) -> Array:
    """The mask (H, W) without the lines of ruled or squared paper: straight, thin, from border to border."""
    erased = ink.copy()
    for mask, view in ((ink, erased), (ink.T, erased.T)):
        lines = _find_lines(mask)
        # up to two thick lines are strokes of a digit that fills the picture
        max_thickness = (0.04 if len(lines) > 2 else 0.015) * max(ink.shape)
        for left, right in lines:
            _erase_line(view, left, right, max_thickness)
    return erased if erased.sum() > 0.02 * ink.sum() else ink  # a 1 may fill the picture


def _find_lines(ink: Array) -> list[tuple[float, float]]:
    """Straight lines that cross a mask (H, W) from left to right, as their rows at the left and the right border.

    Shears the mask by all slopes up to 10 %, so that such a line becomes a row that is mostly ink.
    """
    height, width = ink.shape
    columns, margin = 200, 8
    thicker = cv2.dilate(ink, np.ones((3, 1), np.uint8))
    small = cv2.resize(thicker, (columns, height), interpolation=cv2.INTER_NEAREST).astype(np.float32)
    found = []
    for rise in np.arange(-0.1 * width, 0.1 * width, 1.5):
        shear = np.array([[1, 0, 0], [rise / columns, 1, 0]])
        sheared = cv2.warpAffine(small, shear, (columns, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
        share = sheared.mean(axis=1)
        at_borders = np.minimum(sheared[:, :margin].mean(axis=1), sheared[:, -margin:].mean(axis=1))
        rows = np.flatnonzero((share > 0.6) & (at_borders > 0.4))
        found += [(float(share[row]), float(row), float(row + rise)) for row in rows]
    left_right = np.array(sorted(found, reverse=True)).reshape(-1, 3)[:, 1:]  # (N, 2)
    lines: list[tuple[float, float]] = []
    while len(left_right) and len(lines) < MAX_LINES:
        best = left_right[0]
        lines.append((float(best[0]), float(best[1])))
        left_right = left_right[np.abs(left_right - best).sum(axis=1) > 12]  # without the same line, a little off
    return lines


def _erase_line(ink: Array, left: float, right: float, max_thickness: float) -> None:
    """Erase a line from a mask (H, W) in place, except where it is thicker than usual: a stroke crosses it there."""
    height, width = ink.shape
    reach = 14
    center = np.round(np.linspace(left, right, width)).astype(int)
    rows = center + np.arange(-reach, reach + 1)[:, None]  # (29, W)
    band = ink[rows.clip(0, height - 1), np.arange(width)] * ((rows >= 0) & (rows < height))
    thickness = band.sum(axis=0)
    usual = np.median(thickness[thickness > 0]) if thickness.any() else 0
    if usual <= max_thickness:
        offsets, columns = np.nonzero(band * (thickness <= 1.5 * usual + 1))
        ink[rows[offsets, columns], columns] = 0


def _select_digit(ink: Array) -> Array:
    """The part of a mask (H, W) that is the one digit: its largest component and smaller ones close to it."""
    gap = max(2, round(0.006 * max(ink.shape)))
    labels, parts = _components(cv2.morphologyEx(ink, cv2.MORPH_CLOSE, disc(2 * gap + 1)))
    parts = [part for part in parts if part.area > 1e-4 * ink.size and part.length > 0.02 * max(ink.shape)]
    inner = [part for part in parts if not part.touches_border]
    if inner and max(part.area for part in inner) > 0.1 * max(part.area for part in parts):
        parts = inner  # the others are a shadow, a finger or the table
    if not parts:
        raise UnreadableError(BLANK)
    largest = max(parts, key=lambda part: part.length * part.area**0.5)
    digit = [largest]
    for part in sorted(parts, key=largest.distance):
        if part is largest:
            continue
        is_large = part.height > 0.5 * largest.height and part.area > 0.15 * largest.area
        if is_large and part.overlap(largest) < 0.25:
            raise UnreadableError("several digits; give one digit per picture")
        is_near = min(map(part.distance, digit)) < 0.25 * largest.height
        if is_near and part.area > 0.02 * largest.area:
            digit.append(part)
    if largest.width > 2.2 * largest.height:
        raise UnreadableError("several digits that touch; give one digit per picture")
    return np.isin(labels, [part.label for part in digit]).astype(np.uint8) * ink


def _components(ink: Array) -> tuple[Array, list["_Component"]]:
    """The connected components of a mask (H, W), and the label of each pixel's component, int32 (H, W)."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    return labels, [_Component(label, stats[label], *ink.shape) for label in range(1, len(stats))]


class _Component:
    """The bounding box and the area of a connected component, in pixels."""

    def __init__(self, label: int, stats: Array, rows: int, columns: int) -> None:
        self.label = label
        self.left, self.top, self.width, self.height, self.area = map(int, stats)
        self.right, self.bottom = self.left + self.width, self.top + self.height
        self.length = max(self.width, self.height)
        self.touches_border = not (self.left > 0 and self.top > 0 and self.right < columns and self.bottom < rows)

    def distance(self, other: "_Component") -> float:
        """The distance between the two boxes."""
        across = max(self.left - other.right, other.left - self.right, 0)
        down = max(self.top - other.bottom, other.top - self.bottom, 0)
        return float(np.hypot(across, down))

    def overlap(self, other: "_Component") -> float:
        """The share of the narrower box's width that lies above or below the other box."""
        shared = min(self.right, other.right) - max(self.left, other.left)
        return max(shared, 0) / min(self.width, other.width)
