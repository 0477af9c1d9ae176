"""Seeded digits in pens of any width: on paper and on screens, dashed, two-toned, in several parts, and pairs."""

import functools
import itertools

import cv2
import numpy as np
from PIL import Image

from helpers.paper import DIGITS, HELD_OUT_STROKES, TUNED_STROKES, Array, Picture, curve

KINDS = ("screen", "paper", "gaps", "bar", "dashed", "two-toned", "faint", "light")
"""Kinds of pictures of one digit."""

# strokes of digits in two parts, as in helpers.paper: a bar, foot or stem does not touch the rest
PARTED = [
    (1, ["!.3,.25 .52,0 .5,.96", "!.2,1 .8,1"]),
    (1, ["!.5,.05 .5,1", "!.3,0 .55,0"]),
    (2, [".1,.25 .3,.02 .7,.03 .85,.28 .55,.6 .08,.95", "!.05,1 .92,1"]),
    (3, ["!.12,0 .85,0", ".75,.05 .4,.42 .85,.65 .7,.95 .35,1 .08,.85"]),
    (4, ["!.3,0 .1,.6 .65,.62", "!.75,.2 .72,1"]),
    (4, ["!.3,.05 .1,.62 .9,.6", "!.6,0 .6,.57", "!.6,.65 .6,1"]),
    (5, ["!.28,0 .9,0", ".25,.06 .2,.44 .6,.38 .86,.65 .6,.97 .1,.92"]),
    (5, ["!.35,0 1,-.05", ".25,.02 .2,.44 .6,.38 .86,.65 .6,.97 .1,.92"]),
    (7, ["!.1,0 .9,0", ".85,.06 .6,.45 .45,1"]),
]


RING = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
"""The neighbors of a pixel, clockwise, as steps in y and x."""


def penned(kind: str, seed: int, held_out: bool) -> Picture:
    """A picture of one digit, of one of KINDS; its `paper` is the pen's width, as a share of the digit's length."""
    rng = np.random.default_rng([seed, held_out, KINDS.index(kind)])
    length = rng.uniform(150, 650 if kind in ("screen", "paper") else 350)
    narrow, wide = {"screen": (0.005, 0.15), "paper": (0.005, 0.15), "light": (0.1, 0.2)}.get(kind, (0.02, 0.07))
    pen = max(float(np.exp(rng.uniform(np.log(narrow), np.log(wide)))), 1.5 / length)
    digit, source = seed % 10, "strokes" if seed // 10 % 2 else "handwriting"
    if kind == "bar":
        source = "strokes"
        digit, strokes = PARTED[seed % len(PARTED)]
        segments = _distort(strokes, rng)
    else:
        segments = _segments(digit, source, rng, held_out)
    if kind == "dashed":
        segments = _without(segments, int(rng.integers(5, 14)), rng.uniform(0.02, 0.05) + pen, rng)
    elif kind == "gaps":
        segments = _without(segments, 2, rng.uniform(0.01, 0.06) + pen, rng)
    ink = _draw(segments * length, pen * length)
    if kind == "two-toned":  # one end of the digit is fainter
        angle = rng.uniform(0, 2 * np.pi)
        y, x = (np.linspace(-1, 1, size) for size in ink.shape)
        side = np.cos(angle) * x + np.sin(angle) * y[:, None] > rng.uniform(-0.3, 0.3)
        ink = np.where(side, ink * rng.uniform(0.25, 0.6), ink).astype(np.float32)
    return Picture(_place(ink, kind, rng), digit, source, f"{pen:.3f}")


def pair(seed: int, held_out: bool) -> Picture:
    """Two digits side by side, with a gap of 4 to 40 % of their length; `digit` is both of them, such as 14."""
    rng = np.random.default_rng([seed, held_out, 99])
    digits = (11, 14, int(rng.integers(10, 100)))[seed % 3]
    length, pen = rng.uniform(120, 300), rng.uniform(0.015, 0.1)
    source, kind = ("handwriting", "strokes")[seed // 3 % 2], ("screen", "paper", "light")[seed // 6 % 3]
    inks = (
        _draw(_segments(int(digit), source, rng, held_out) * length * rng.uniform(0.85, 1.1), pen * length)
        for digit in str(digits)
    )
    height = round(1.2 * length) + 20
    left, right = (np.pad(ink, ((height - len(ink), 0), (0, 0))) for ink in inks)
    # the second digit is as close as its gap allows, in the row where they are closest
    free = np.argmax(left[:, ::-1] > 0, axis=1) + np.argmax(right > 0, axis=1)
    nearest = int(free[left.any(axis=1) & right.any(axis=1)].min())
    shift = left.shape[1] - nearest + round(length * rng.uniform(0.04, 0.4))
    ink = np.zeros((height, max(left.shape[1], shift + right.shape[1])), np.float32)
    ink[:, : left.shape[1]] = left
    ink[:, max(shift, 0) : max(shift, 0) + right.shape[1]] += right
    return Picture(_place(np.minimum(ink, 1), kind, rng), digits, source, kind)


def _segments(digit: int, source: str, rng: np.random.Generator, held_out: bool) -> Array:
    """The line segments (N, 2, 2) of a digit of length 1, as pairs of points x, y."""
    if source == "strokes":
        return _distort((HELD_OUT_STROKES if held_out else TUNED_STROKES)[digit], rng)
    images, labels = DIGITS
    chosen = rng.choice(np.flatnonzero(labels == digit)[250 * held_out :][:250])
    return _skeleton(images[chosen].astype(np.uint8).tobytes())


def _distort(strokes: list[str], rng: np.random.Generator) -> Array:
    angle, slant, squeeze = rng.uniform(-0.12, 0.12), rng.uniform(-0.1, 0.3), rng.uniform(0.6, 0.9)
    lines = []
    for stroke in strokes:
        points = np.array([point.split(",") for point in stroke.strip("!").split()], float)
        points += rng.normal(0, 0.01, points.shape)
        path = points if stroke.startswith("!") else curve(points)
        path = np.vstack([path[:1], *(np.linspace(a, b, 9)[1:] for a, b in itertools.pairwise(path))])
        path = path * [squeeze, 1] @ [[1, 0], [-slant, 1]]
        path = path @ [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        lines.append(np.stack([path[:-1], path[1:]], axis=1))
    return _of_length_1(np.vstack(lines))


@functools.cache
def _skeleton(pixels: bytes) -> Array:
    """The center lines of an MNIST image as segments (N, 2, 2), by Zhang and Suen's thinning."""
    image = np.frombuffer(pixels, np.uint8).reshape(28, 28).astype(np.float32)
    large = cv2.GaussianBlur(cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC), (0, 0), 1.2)
    shape = np.pad(large > 100, 1)
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            ring = np.stack([np.roll(shape, (-y, -x), (0, 1)) for y, x in RING])  # (8, H, W)
            count, edges = ring.sum(axis=0), (~ring & np.roll(ring, -1, axis=0)).sum(axis=0)
            up, right, down, left = ring[::2]
            inner = (up & right & down) | (right & down & left) if first else (up & right & left) | (up & down & left)
            border = shape & (count >= 2) & (count <= 6) & (edges == 1) & ~inner
            shape = shape & ~border
            changed |= bool(border.any())
    points = np.argwhere(shape)[:, ::-1].astype(float)
    distance = np.abs(points[:, None] - points).max(axis=2)
    weights = distance <= 2
    smooth = weights @ points / weights.sum(axis=1, keepdims=True)
    return _of_length_1(smooth[np.argwhere(np.triu(distance <= 1))])


def _of_length_1(segments: Array) -> Array:
    scaled: Array = segments / np.ptp(segments, axis=(0, 1)).max()
    return scaled


def _without(segments: Array, count: int, diameter: float, rng: np.random.Generator) -> Array:
    """The segments outside of some discs on them."""
    middles = segments.mean(axis=1)
    for center in rng.permutation(middles)[:count]:
        kept = np.linalg.norm(middles - center, axis=1) > diameter / 2
        segments, middles = segments[kept], middles[kept]
    return segments


def _draw(segments: Array, pen: float) -> Array:
    """The ink of segments (N, 2, 2), in pixels, as a mask 0..1 (H, W) without a margin."""
    corner = segments.min(axis=(0, 1)) - pen / 2 - 1
    points = 2 * (segments - corner)
    width, height = (np.ceil(points.max(axis=(0, 1)) / 2 + pen / 2 + 1)).astype(int)
    ink = np.zeros((2 * height, 2 * width), np.uint8)
    for segment in np.round(points * 16).astype(np.int32):
        cv2.line(ink, segment[0], segment[1], 255, max(1, round(2 * pen)), cv2.LINE_8, 4)
    return cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _place(ink: Array, kind: str, rng: np.random.Generator) -> Image.Image:
    """Ink (H, W) on a white screen of up to 1,200 pixels, on a black one for "light", else photographed on paper."""
    smallest = 1000 if kind == "screen" else 0
    height, width = (max(int(side / rng.uniform(0.35, 0.95)), side + 12, smallest) for side in ink.shape)
    height, width = max(height, width // 2), max(width, height // 2)
    top, left = (int(rng.integers(4, of - side - 4)) for of, side in zip((height, width), ink.shape, strict=True))
    mask = np.zeros((height, width, 1), np.float32)
    mask[top : top + ink.shape[0], left : left + ink.shape[1], 0] = ink
    if kind == "screen":
        return Image.fromarray(np.where(mask[..., 0] > 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if kind == "light":
        return Image.fromarray((20 + 225 * mask[..., 0]).astype(np.uint8)).convert("RGB")
    sheet = rng.uniform(150, 245) * np.array([1, rng.uniform(0.9, 1), rng.uniform(0.75, 1)])
    contrast = rng.uniform(0.12, 0.3) if kind == "faint" else rng.uniform(0.5, 0.9)
    scene = sheet * (1 - contrast * mask)
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    light = 1 - rng.uniform(0, 0.2) * (1 + x * np.cos(angle := rng.uniform(0, 7)) + y * np.sin(angle)) / 2
    scene = cv2.GaussianBlur((scene * light[..., None]).astype(np.float32), (0, 0), rng.uniform(0.3, 1.2))
    noise = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(0.5, 3 if kind == "faint" else 6)
    return Image.fromarray(np.clip(scene + noise, 0, 255).astype(np.uint8))
