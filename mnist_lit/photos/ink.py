"""Find the ink of one digit on a picture of paper or of a board, with OpenCV.

The steps: straighten the sheet of paper, pick the color channel with the strongest contrast, divide by the paper's
brightness, apply a threshold, erase ruled lines, and choose the connected components that form the digit.
"""

from collections.abc import Iterator

import cv2
import numpy as np

from mnist_lit.photos.lines import erase_ruled_lines
from mnist_lit.photos.parts import BLANK, check_width, disc, select_digit
from mnist_lit.photos.pictures import Array, UnreadableError


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
        try:
            return _find_digit(_relative_darkness(channel))
        except UnreadableError as error:  # ruled lines may be fainter in the next channel
            errors.append(error)
    raise errors[0]


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
    if max(width, height) > 2.5 * min(width, height):
        return pixels  # a broad 1 on a board
    rectangle = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    return cv2.warpPerspective(pixels, cv2.getPerspectiveTransform(corners, rectangle), (width, height))


def _rank_channels(pixels: Array, invert: bool | None) -> Iterator[Array]:
    """Gray, red, green and blue of pixels (H, W, 3) as dark ink on light paper, each (H, W), by contrast."""
    weighted = [(1.25, cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)), *((1.0, one) for one in cv2.split(pixels))]
    if all((channel == weighted[0][1]).all() for _, channel in weighted):
        del weighted[1:]  # a gray picture
    scored = []
    for weight, channel in weighted:
        channel = cv2.GaussianBlur(channel, (0, 0), 1)
        small = cv2.resize(channel, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        smaller = cv2.resize(small, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        paper = cv2.medianBlur(smaller, min(smaller.shape) // 2 | 1)
        deviation = small.astype(np.float32) - cv2.resize(paper, small.shape[::-1])
        sample = np.abs(deviation[::2, ::2])
        strongest = np.percentile(sample, 99.8)
        scored.append((weight * strongest / (np.median(sample) + 5), channel, small, deviation, 0.4 * strongest))
    for _, channel, *contrast in sorted(scored, key=lambda entry: -entry[0]):
        ink_is_light = _ink_is_light(*contrast) if invert is None else invert
        yield 255 - channel if ink_is_light else channel


def _ink_is_light(gray: Array, deviation: Array, minimum: float) -> bool:
    """Whether more strokes are lighter than the paper than darker; if there are none, whether the border is dark.

    Args:
        gray: Brightness, uint8 (H, W).
        deviation: Brightness minus that of the paper, float (H, W).
        minimum: Smallest deviation that counts.
    """
    light, dark = (_stroke_area((sign * deviation > minimum).astype(np.uint8)) for sign in (1, -1))
    if light == dark:
        border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
        return bool(np.median(border) < gray.mean())
    return light > dark


def _stroke_area(mask: Array) -> int:
    """The area of a mask (H, W) without its broad parts, which are lights, shadows or the background."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    area = int(np.count_nonzero(mask))
    for label in np.unique(labels[depth > min(mask.shape) / 10]):
        left, top, width, height, pixels = map(int, stats[label])
        inside = left > 0 and top > 0 and left + width < mask.shape[1] and top + height < mask.shape[0]
        deepest = float(depth[labels == label].max())
        if not (inside and deepest < min(mask.shape) / 4 and pixels > 10 * deepest**2):  # 2.5 times as long as wide
            area -= pixels
    return area


def _relative_darkness(channel: Array) -> Array:
    """The share of the paper's brightness that is missing at each pixel (H, W): 0 on paper in light and in shadow.

    The paper's brightness is a morphological closing, which fills dark shapes narrower than a quarter of the picture.
    """
    scale = min(1, 128 / max(channel.shape))
    small = cv2.resize(channel, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    reach = max(small.shape) // 4
    padded = cv2.copyMakeBorder(small, reach, reach, reach, reach, cv2.BORDER_REPLICATE)  # a digit may touch the border
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc(reach))[reach:-reach, reach:-reach]
    paper = cv2.resize(closed, channel.shape[::-1]).astype(np.float32)
    darkness = 1 - channel / np.maximum(paper, 16)
    counts = cv2.calcHist([darkness], [0], None, [100], [0, 0.5])
    return darkness - float(counts.argmax()) / 200  # noise makes the closing too bright


def _find_digit(darkness: Array) -> tuple[Array, float]:
    """The darkness (H, W) of the digit alone, relative to that of its ink, and the threshold for it.

    Raises:
        UnreadableError: There is no ink, or it is not one digit.
    """
    noise = 1.4826 * float(np.median(-darkness[darkness < 0])) if darkness.min() < 0 else 0.0  # standard deviation
    threshold, ink_darkness = _choose_threshold(darkness, 6 * noise)
    digit = select_digit(erase_ruled_lines((darkness > threshold).astype(np.uint8)))
    lower = max(6 * noise, 0.05, 0.15 * ink_darkness)
    whole = _continue_strokes(digit, (darkness > lower).astype(np.uint8))
    check_width(digit if whole is None else whole)
    if whole is None:
        return darkness / ink_darkness * cv2.dilate(digit, disc(3)), threshold / ink_darkness
    darkness *= cv2.dilate(whole, disc(3))
    return darkness / np.maximum(cv2.dilate(darkness, disc(7)), lower), 0.5  # half of the ink nearby


def _continue_strokes(digit: Array, faint: Array) -> Array | None:
    """The digit with strokes of fainter ink that continue its own; None without such strokes, or on ruled paper.

    Args:
        digit: Mask of the ink above the threshold, (H, W).
        faint: Mask of the ink above a lower threshold, (H, W).
    """
    enough = 0.03 * digit.sum()
    new = faint & (1 - cv2.dilate(digit, disc(9)))
    if new.sum() < enough:
        return None
    try:
        whole = select_digit(faint)
    except UnreadableError:
        return None
    depth, whole_depth = (cv2.distanceTransform(mask, cv2.DIST_L2, 3) for mask in (digit, whole))
    added, elsewhere = whole & new, new & (1 - whole)
    if added.sum() < max(enough, 5 * elsewhere.sum()) or (digit & (1 - whole)).sum() > enough:
        return None
    # lines of the paper are much thinner, and shadows much broader
    is_stroke = 0.4 < whole_depth[added > 0].mean() / depth[digit > 0].mean() < 2
    return whole if is_stroke and not (erase_ruled_lines(faint) != faint).any() else None


def _choose_threshold(darkness: Array, lowest: float) -> tuple[float, float]:
    """The darkness from which a pixel counts as ink, and the median darkness of the ink.

    Raises:
        UnreadableError: There is no ink.
    """
    above = darkness[darkness > max(lowest, 0.08)]
    if above.size < 2e-4 * darkness.size or above.max() < 0.12:
        raise UnreadableError(BLANK)
    levels = np.clip(above * 255, 0, 255).astype(np.uint8)
    otsu, _ = cv2.threshold(levels.reshape(1, -1), 0, 255, cv2.THRESH_OTSU)
    ink = float(np.median(above[above * 255 >= otsu]))
    return float(np.clip(otsu / 255, 0.35 * ink, 0.55 * ink)), ink
