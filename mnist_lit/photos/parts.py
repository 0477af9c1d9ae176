"""Choose the connected parts of a mask of ink that form one digit, and refuse several digits."""

import cv2
import numpy as np

from mnist_lit.photos.pictures import Array, UnreadableError

BLANK = "no digit found, the picture is blank"
SEVERAL = "several digits; give one digit per picture"


class Part:
    """The bounding box and the area of a connected part, in pixels."""

    def __init__(self, label: int, stats: Array, rows: int, columns: int) -> None:
        self.label = label
        self.left, self.top, self.width, self.height, self.area = map(int, stats)
        self.right, self.bottom = self.left + self.width, self.top + self.height
        self.length = max(self.width, self.height)
        self.touches_border = not (self.left > 0 and self.top > 0 and self.right < columns and self.bottom < rows)

    def distance(self, other: "Part") -> float:
        """The distance between the two boxes."""
        across = max(self.left - other.right, other.left - self.right, 0)
        down = max(self.top - other.bottom, other.top - self.bottom, 0)
        return float(np.hypot(across, down))

    def shared_rows(self, other: "Part") -> int:
        """The number of rows in which both boxes lie."""
        return max(min(self.bottom, other.bottom) - max(self.top, other.top), 0)

    def shared_columns(self, other: "Part") -> int:
        """The number of columns in which both boxes lie."""
        return max(min(self.right, other.right) - max(self.left, other.left), 0)

    def gap(self, other: "Part", labels: Array) -> int:
        """The smallest gap between two parts in a row of pixels; 0 or less if they are not side by side."""
        if self.shared_rows(other) < 0.5 * min(self.height, other.height):
            return 0
        top, bottom = max(self.top, other.top), min(self.bottom, other.bottom)
        ends = []
        for part in (self, other):
            mask = labels[top:bottom] == part.label  # a connected part has pixels in each row
            ends.append((mask.argmax(axis=1), mask.shape[1] - mask[:, ::-1].argmax(axis=1)))
        (first, last), (other_first, other_last) = ends
        return int(max((other_first - last).min(), (first - other_last).min()))


def disc(diameter: int) -> Array:
    """A round structuring element, uint8 (diameter, diameter)."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(1, diameter), max(1, diameter)))


def select_digit(ink: Array) -> Array:
    """The parts of a mask (H, W) that form the one digit: the largest and those close to it.

    Raises:
        UnreadableError: The mask has no digit, or several.
    """
    gap = max(2, round(0.006 * max(ink.shape)))
    # close the gaps, one above the other, that erased ruled lines leave; a gap to the side may separate two digits
    labels, parts = _find_parts(cv2.morphologyEx(ink, cv2.MORPH_CLOSE, np.ones((2 * gap + 1, 3), np.uint8)))
    parts = [part for part in parts if part.area > 5e-5 * ink.size and part.length > 0.02 * max(ink.shape)]
    inner = [part for part in parts if not part.touches_border]
    if inner and max(part.area for part in inner) > 0.1 * max(part.area for part in parts):
        parts = inner  # the others are a shadow, a finger or the table
    if not parts:
        raise UnreadableError(BLANK)
    largest = max(parts, key=lambda part: part.length * part.area**0.5)
    digit = [largest]
    for part in sorted(parts, key=largest.distance):
        is_near = min(map(part.distance, digit)) < 0.25 * max(_size(digit))
        if part is not largest and is_near and part.area > 0.02 * largest.area:
            digit.append(part)
    _check_one_digit(labels, parts, _size(digit)[1])
    chosen = np.zeros(labels.max() + 1, np.uint8)
    chosen[[part.label for part in digit]] = 1
    return chosen[labels] * ink


def check_width(digit: Array) -> None:
    """Refuse a mask (H, W) that is far broader than a digit.

    Raises:
        UnreadableError: The mask is several digits that touch.
    """
    _, _, width, height = cv2.boundingRect(digit)
    if width > 2.2 * height:
        raise UnreadableError(SEVERAL)


def check_drawing(ink: Array) -> None:
    """Refuse a mask (H, W) of ink that is more than one digit.

    Raises:
        UnreadableError: The mask has several digits.
    """
    _check_one_digit(*_find_parts(ink), len(ink))


def _check_one_digit(labels: Array, parts: list[Part], height: int) -> None:
    """Refuse parts that stand side by side, each about as tall as the whole digit.

    Args:
        labels: The label of each pixel's part, int32 (H, W).
        parts: All parts that count.
        height: That of the digit.

    Raises:
        UnreadableError: The parts are several digits.
    """
    area = max(part.area for part in parts)
    tall = [part for part in parts if part.height > 0.5 * height and part.area > 0.15 * area]
    tall = sorted(tall, key=lambda part: -part.area)[:6]
    for i, one in enumerate(tall):
        for other in tall[:i]:
            # a 4 may be an L and a lower stem close to it, while two digits close to each other are on one line
            is_on_line = one.shared_rows(other) > 0.7 * height
            is_apart = one.shared_columns(other) < 0.25 * min(one.width, other.width)
            if (is_on_line or is_apart) and one.gap(other, labels) > (0.03 if is_on_line else 0.15) * height:
                raise UnreadableError(SEVERAL)


def _size(parts: list[Part]) -> tuple[int, int]:
    """Width and height of all parts together."""
    left, top = min(part.left for part in parts), min(part.top for part in parts)
    return max(part.right for part in parts) - left, max(part.bottom for part in parts) - top


def _find_parts(ink: Array) -> tuple[Array, list[Part]]:
    """The connected parts of a mask (H, W), and the label of each pixel's part, int32 (H, W)."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    return labels, [Part(label, stats[label], *ink.shape) for label in range(1, len(stats))]
