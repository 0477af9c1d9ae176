"""Ways of writing 1, 7 and 9 that MNIST's writers rarely used, drawn onto its images."""

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

SCALE = 8
"""Strokes are drawn this many times larger and then reduced, which makes their edges smooth."""

INK = 100
"""Rows with a pixel brighter than this belong to the digit."""

Pixels = NDArray[np.uint8]
"""One image (H, W)."""

Points = list[tuple[float, float]]
"""A stroke's corners as (x, y), in pixels."""


def add_variants(images: Tensor, labels: Tensor, share: float) -> Tensor:
    """Draw a serif, a foot or both on some 1s, a bar through some 7s, and a hook at the tail of some 9s.

    The choice is random, but the same each time.

    Args:
        images: Raw pixels, uint8 (N, 1, 28, 28).
        labels: The digits (N,).
        share: Share of the images of 1, 7 and 9 that are changed, from 0 to 1.
    """
    rng = np.random.default_rng(0)
    changed = images.clone()
    is_chosen = np.isin(labels.numpy(), (1, 7, 9)) & (rng.random(len(labels)) < share)
    for index in np.flatnonzero(is_chosen):
        changed[index, 0] = torch.from_numpy(_variant(images[index, 0].numpy(), int(labels[index]), rng))
    return changed


def _variant(pixels: Pixels, digit: int, rng: Generator) -> Pixels:
    """Another way to write a 1, 7 or 9 (28, 28)."""
    rows = np.flatnonzero(pixels.max(axis=1) > INK)
    if len(rows) < 8:  # too small to have these parts
        return pixels
    top, bottom = int(rows[0]), int(rows[-1])
    height = bottom - top
    kind = rng.integers(3)
    strokes: list[Points] = []
    if digit == 1 and kind < 2:
        length, angle = rng.uniform(0.25, 0.55) * height, np.radians(rng.uniform(35, 65))
        x = _center(pixels[top])
        strokes.append([(x, top + 0.5), (x - length * np.cos(angle), top + 0.5 + length * np.sin(angle))])
    if digit == 1 and kind > 0:
        half, x = rng.uniform(0.2, 0.4) * height, _center(pixels[bottom])
        strokes.append([(x - half, bottom), (x + half, bottom)])
    if digit == 7:
        row = int(top + height * rng.uniform(0.45, 0.65))
        half, x = rng.uniform(0.18, 0.35) * height, _center(pixels[row])
        strokes.append([(x - half, row), (x + half, row + rng.uniform(-1, 1))])
    if digit == 9:
        length, x = rng.uniform(0.2, 0.45) * height, _center(pixels[bottom])
        low = (x - 0.7 * length, bottom + 0.3)
        strokes.append([(x, bottom - 0.5), low, (x - length, bottom - 0.4 * length)])
    return _draw(pixels, strokes, rng.uniform(1.6, 2.6))


def _center(row: Pixels) -> float:
    """Mean column of the ink in a row."""
    return float(np.average(np.arange(len(row)), weights=row + 1e-6))


def _draw(pixels: Pixels, strokes: list[Points], width: float) -> Pixels:
    """Add white strokes of a width in pixels."""
    size = len(pixels)
    large = Image.new("L", (size * SCALE, size * SCALE))
    draw, radius = ImageDraw.Draw(large), SCALE * width / 2
    for stroke in strokes:
        points = [((x + 0.5) * SCALE, (y + 0.5) * SCALE) for x, y in stroke]
        draw.line(points, fill=255, width=round(2 * radius))
        for point in points:  # round ends
            draw.circle(point, radius, fill=255)
    drawn: Pixels = np.maximum(pixels, np.asarray(large.resize((size, size), Image.Resampling.BOX)))
    return drawn
