"""Where on a picture of paper the ink of a digit is."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class UnreadableError(Exception):
    """Why no digit is read in a picture, in a few words."""


def find_digit(pixels: Array, invert: bool | None = None) -> tuple[Array, float]:
    """How dark the ink of the one digit on a picture is.

    Args:
        pixels: RGB, uint8 (H, W, 3).
        invert: Whether the digit is lighter than what it is written on; where None, the picture tells.

    Returns:
        The darkness (H, W), 0 where there is no digit and about 1 where there is, and from where on it is ink.

    Raises:
        UnreadableError: There is no digit, or there are several.
    """
    errors = []
    for channel in _channels(_sheet(pixels), invert):
        darkness = _darkness(channel)
        try:
            threshold, ink_darkness = _threshold(darkness)
            digit = _one_digit(_without_rules((darkness > threshold).astype(np.uint8)))
        except UnreadableError as error:  # in another channel the lines of the paper may be fainter
            errors.append(error)
        else:
            return darkness / ink_darkness * cv2.dilate(digit, disc(3)), threshold / ink_darkness
    raise errors[0]


def _sheet(pixels: Array) -> Array:
    """The sheet of paper that lies on something darker, seen from above; else the picture (H, W, 3) as it is."""
    height, width = pixels.shape[:2]
    scale = 200 / max(height, width)
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    without_ink = cv2.morphologyEx(cv2.GaussianBlur(small, (0, 0), 1), cv2.MORPH_CLOSE, disc(25))
    _, light = cv2.threshold(without_ink, 0, 1, cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(light, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outline = max(contours, key=cv2.contourArea, default=np.zeros((1, 1, 2), np.int32))
    area = cv2.contourArea(outline)
    outline = cv2.convexHull(outline)
    corners = cv2.approxPolyDP(outline, 0.03 * cv2.arcLength(outline, True), True)[:, 0].astype(np.float32)
    left, top, wide, tall = cv2.boundingRect(outline)
    sides = (left <= 1) + (top <= 1) + (left + wide >= small.shape[1] - 1) + (top + tall >= small.shape[0] - 1)
    is_sheet = len(corners) == 4 and sides <= 1 and area > 0.15 * small.size and area > 0.9 * cv2.contourArea(outline)
    if not is_sheet or small[light == 0].mean() > 0.65 * small[light == 1].mean():
        return pixels
    middle = corners.mean(axis=0)
    corners = corners[np.argsort(np.arctan2(*(corners - middle).T[::-1]))]  # clockwise from the upper left
    corners = (middle + 0.97 * (corners - middle)) / scale  # without the edge
    wide, tall = (
        int((np.linalg.norm(corners[a] - corners[b]) + np.linalg.norm(corners[c] - corners[d])) / 2)
        for a, b, c, d in ((0, 1, 2, 3), (1, 2, 3, 0))
    )
    straight = np.array([[0, 0], [wide, 0], [wide, tall], [0, tall]], np.float32)
    return cv2.warpPerspective(pixels, cv2.getPerspectiveTransform(corners, straight), (wide, tall))


def _channels(pixels: Array, invert: bool | None) -> list[Array]:
    """Grey, red, green and blue of pixels (H, W, 3), dark on light (H, W), that in which ink differs most first."""
    channels = []
    for channel, worth in (
        (cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), 1.25),
        *((one, 1.0) for one in cv2.split(pixels)),
    ):
        channel = cv2.GaussianBlur(channel, (0, 0), 1)
        small = cv2.resize(channel, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        smaller = cv2.resize(small, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        paper = cv2.medianBlur(smaller, min(smaller.shape) // 2 | 1)  # what covers most
        deviation = small.astype(np.float32) - cv2.resize(paper, small.shape[::-1])
        strongest = np.percentile(np.abs(deviation), 99.8)
        score = worth * strongest / (np.median(np.abs(deviation)) + 5)
        is_light = _is_light(deviation, 0.4 * strongest) if invert is None else invert
        channels.append((score, 255 - channel if is_light else channel))
    return [channel for _, channel in sorted(channels, key=lambda scored: -scored[0])]


def _is_light(deviation: Array, least: float) -> bool:
    """Whether ink is lighter than paper, by what deviates from it (H, W) and is narrow, as light and shadow are not."""
    areas = []
    for sign in (1, -1):
        mask = (sign * deviation > least).astype(np.uint8)
        broad = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc(min(mask.shape) // 5))
        labels, _ = _parts(mask)
        areas.append(int((mask * ~np.isin(labels, labels[broad > 0])).sum()))
    return areas[0] > areas[1]


def _darkness(channel: Array) -> Array:
    """The share of the paper's light that ink takes (H, W), 0 on paper, however that is lit.

    The paper is the closing of the picture: what is dark and narrower than a quarter of it is filled.
    """
    small = cv2.resize(channel, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    reach = max(small.shape) // 4
    # beyond the border there is more paper: a digit may fill its picture
    wider = cv2.copyMakeBorder(small, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    closed = cv2.morphologyEx(wider, cv2.MORPH_CLOSE, disc(reach))[reach:-reach, reach:-reach]
    paper = cv2.resize(closed, channel.shape[::-1]).astype(np.float32)
    darkness = 1 - channel / np.maximum(paper, 16)
    counts, edges = np.histogram(darkness, 100, (0, 0.5))
    return darkness - float(edges[counts.argmax()])  # of the closing, noise has made the paper too light


def _threshold(darkness: Array) -> tuple[float, float]:
    """From which darkness there is ink, and how dark it is.

    Raises:
        UnreadableError: Nothing stands out from the paper and its noise.
    """
    noise = 1.4826 * float(np.median(-darkness[darkness < 0])) if darkness.min() < 0 else 0.0
    above = darkness[darkness > max(6 * noise, 0.08)]
    if above.size < 2e-4 * darkness.size or above.max() < 0.12:
        raise UnreadableError("no digit found, the page is blank")
    levels = np.clip(above * 255, 0, 255).astype(np.uint8)
    otsu, _ = cv2.threshold(levels.reshape(1, -1), 0, 255, cv2.THRESH_OTSU)
    ink = float(np.median(above[above * 255 >= otsu]))
    return float(np.clip(otsu / 255, 0.35 * ink, 0.55 * ink)), ink


def _without_rules(ink: Array) -> Array:
    """Ink without the lines of ruled or squared paper: straight, thin, from one border to the other."""
    cleaned = ink.copy()
    for turned in (False, True):
        view = cleaned.T if turned else cleaned
        lines = _lines(ink.T if turned else ink)
        for left, right in lines:
            # a thick one alone is the stroke of a digit that fills the picture
            _erase(view, left, right, thickest=(0.04 if len(lines) > 2 else 0.015) * max(ink.shape))
    return cleaned if cleaned.sum() > 0.02 * ink.sum() else ink  # a 1 may fill the picture


def _lines(ink: Array) -> list[tuple[float, float]]:
    """Lines that cross ink (H, W) from left to right, by where they begin and end: rows at the left and the right."""
    height, width = ink.shape
    columns, end = 200, 8
    # a row too many rather than a line missed
    thicker = cv2.dilate(ink, np.ones((3, 1), np.uint8))
    small = cv2.resize(thicker, (columns, height), interpolation=cv2.INTER_NEAREST).astype(np.float32)
    found = []
    for rise in np.arange(-0.1 * width, 0.1 * width, 1.5):
        shear = np.array([[1, 0, 0], [rise / columns, 1, 0]])
        sheared = cv2.warpAffine(small, shear, (columns, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
        share = sheared.mean(axis=1)
        ends = np.minimum(sheared[:, :end].mean(axis=1), sheared[:, -end:].mean(axis=1))
        found += [
            (float(share[row]), float(row), float(row + rise)) for row in np.flatnonzero((share > 0.6) & (ends > 0.4))
        ]
    lines: list[tuple[float, float]] = []
    for _, left, right in sorted(found, reverse=True):
        if all(abs(left - a) + abs(right - b) > 12 for a, b in lines):
            lines.append((left, right))
    return lines


def _erase(ink: Array, left: float, right: float, thickest: float) -> None:
    """Clear a line where it is no thicker than it mostly is: elsewhere a stroke crosses it."""
    height, width = ink.shape
    reach = 14
    rows = np.round(np.linspace(left, right, width)).astype(int)
    around = rows[None] + np.arange(-reach, reach + 1)[:, None]  # (29, W)
    inside = (around >= 0) & (around < height)
    band = ink[around.clip(0, height - 1), np.arange(width)] * inside
    thickness = band.sum(axis=0)
    usual = np.median(thickness[thickness > 0]) if thickness.any() else 0
    if usual > thickest:
        return
    thin = thickness <= 1.5 * usual + 1
    for row, column in zip(*np.nonzero(band * thin), strict=True):
        ink[around[row, column], column] = 0


def _one_digit(ink: Array) -> Array:
    """The ink of the one digit, with the parts that belong to it.

    Raises:
        UnreadableError: There is none, or there are several.
    """
    gap = max(2, round(0.006 * max(ink.shape)))
    labels, parts = _parts(cv2.morphologyEx(ink, cv2.MORPH_CLOSE, disc(2 * gap + 1)))
    parts = [part for part in parts if part.area > 1e-4 * ink.size and part.long > 0.02 * max(ink.shape)]
    inner = [part for part in parts if not part.at_border]
    if inner and max(part.area for part in inner) > 0.1 * max(part.area for part in parts):
        parts = inner  # what touches the border is a shadow, a finger or the table
    if not parts:
        raise UnreadableError("no digit found, the page is blank")
    largest = max(parts, key=lambda part: part.long * part.area**0.5)
    mains = [part for part in parts if part.tall > 0.5 * largest.tall and part.area > 0.15 * largest.area]
    digit = [largest]
    for part in sorted(parts, key=lambda part: part.distance(largest)):
        if part is largest:
            continue
        near = min(part.distance(other) for other in digit)
        beside = part.overlap(largest) < 0.25
        if part in mains and beside:
            raise UnreadableError("several digits: one a picture, please")
        if near < 0.25 * largest.tall and part.area > 0.02 * largest.area:
            digit.append(part)
    if largest.wide > 2.2 * largest.tall:
        raise UnreadableError("several digits in one line: one a picture, please")
    kept = np.isin(labels, [part.index for part in digit]).astype(np.uint8)
    return kept * ink


def _parts(ink: Array) -> tuple[Array, list["_Part"]]:
    """The number of the part of each pixel (H, W), and the connected parts."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    return labels, [_Part(stat, index, *ink.shape) for index, stat in enumerate(stats) if index > 0]


class _Part:
    """A connected part of the ink: where it lies and how large it is, in pixels."""

    def __init__(self, stats: Array, index: int, height: int, width: int) -> None:
        self.index = index
        self.left, self.top, self.wide, self.tall, self.area = map(int, stats)
        self.right, self.bottom = self.left + self.wide, self.top + self.tall
        self.long = max(self.wide, self.tall)
        self.at_border = self.left <= 0 or self.top <= 0 or self.right >= width or self.bottom >= height

    def distance(self, other: "_Part") -> float:
        """Between the boxes."""
        across = max(self.left - other.right, other.left - self.right, 0)
        down = max(self.top - other.bottom, other.top - self.bottom, 0)
        return float(np.hypot(across, down))

    def overlap(self, other: "_Part") -> float:
        """Share of the narrower one's width that lies above or below the other."""
        shared = min(self.right, other.right) - max(self.left, other.left)
        return max(shared, 0) / min(self.wide, other.wide)


def disc(diameter: int) -> Array:
    """A round structuring element."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(1, diameter), max(1, diameter)))
