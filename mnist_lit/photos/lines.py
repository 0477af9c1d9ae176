"""Erase the lines of ruled and squared paper from a mask of ink."""

import cv2
import numpy as np

from mnist_lit.photos.pictures import Array

MAX_LINES = 300
"""Lines of a direction that are searched for: squared paper has a hundred, a picture full of ink has thousands."""


def erase_ruled_lines(ink: Array) -> Array:
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
    small = cv2.resize(thicker, (columns, height), interpolation=cv2.INTER_NEAREST)
    if not (small[:, :margin].any() and small[:, -margin:].any()):
        return []
    found = []
    for rise in np.arange(-0.1 * width, 0.1 * width, 1.5):
        shear = np.array([[1, 0, 0], [rise / columns, 1, 0]])
        sheared = cv2.warpAffine(small, shear, (columns, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
        share, left, right = (
            cv2.reduce(part, 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F)[:, 0]
            for part in (sheared, sheared[:, :margin], sheared[:, -margin:])
        )
        at_borders = np.minimum(left, right)
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
