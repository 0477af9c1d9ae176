"""Seeded pictures of a digit on paper, as a person might take them: in fonts, drawn strokes and real handwriting."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mnist_lit.data import sample

Array = NDArray[Any]

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
# the code was tuned on the first ones; the reported accuracy is measured on the held-out ones
TUNED_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono-Oblique", "cmr10")
HELD_OUT_FONTS = (
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmss10",
    "cmb10",
    "cmti10",
    "DejaVuSans-Oblique",
)

# strokes of each digit as points "x,y" of a unit square, y down; a stroke that begins with ! has corners, not curves
TUNED_STROKES = {
    0: [".5,0 .12,.25 .1,.7 .45,1 .85,.75 .88,.25 .5,0"],
    1: [".5,0 .5,.5 .5,1"],
    2: [".1,.25 .3,.02 .7,.03 .85,.28 .55,.6 .08,1", "!.08,1 .92,.97"],
    3: [".12,.1 .5,0 .82,.2 .4,.46", ".4,.46 .85,.65 .7,.95 .35,1 .08,.85"],
    4: ["!.3,0 .1,.6 .9,.6", "!.7,.2 .65,1"],
    5: ["!.8,.02 .25,.02 .18,.42", ".18,.42 .6,.36 .86,.65 .6,.97 .1,.92"],
    6: [".7,0 .3,.3 .14,.7 .4,1 .8,.8 .7,.55 .4,.52 .17,.7"],
    7: ["!.1,.04 .88,.04 .4,1"],
    8: [".8,.15 .45,0 .2,.2 .5,.47 .82,.75 .5,1 .15,.78 .5,.47 .82,.2 .75,.1"],
    9: [".82,.2 .5,0 .18,.2 .3,.48 .65,.45 .82,.2 .8,.6 .7,1"],
}
HELD_OUT_STROKES = {
    0: [".62,.03 .25,.1 .08,.5 .3,.95 .7,.92 .92,.5 .75,.08 .55,0"],
    1: ["!.35,.2 .55,0 .5,1"],
    2: [".08,.2 .4,0 .8,.15 .75,.45 .35,.85 .1,.92 .25,.76 .5,.92 .92,.95"],
    3: ["!.15,.03 .82,.03 .45,.4", ".45,.4 .85,.55 .8,.85 .45,1 .1,.9"],
    4: ["!.62,1 .62,0 .05,.68 .95,.68"],
    5: [".25,.05 .2,.45 .55,.38 .82,.6 .7,.92 .35,1 .1,.9", "!.25,.05 .85,0"],
    6: [".55,0 .28,.25 .1,.65 .25,.97 .65,1 .85,.75 .6,.5 .25,.6 .12,.75"],
    7: [".08,.1 .45,.04 .9,.02 .6,.45 .45,1", "!.3,.5 .8,.48"],
    8: [".5,.48 .15,.25 .35,.02 .7,.03 .82,.25 .5,.48 .15,.72 .3,.98 .7,.98 .88,.72 .5,.48"],
    9: [".8,.12 .45,.02 .15,.25 .35,.5 .75,.35 .85,.05 .8,.5 .55,.95 .2,.98"],
}
INKS = {
    "black": (25, 25, 30),
    "blue": (30, 50, 150),
    "red": (185, 35, 40),
    "green": (20, 110, 60),
    "pencil": (95, 95, 98),
}
PAPERS = {"white": (245, 245, 242), "cream": (235, 222, 190), "pink": (240, 190, 200), "yellow": (245, 225, 110),
          "kraft": (190, 150, 105), "sky": (170, 205, 235)}  # fmt: skip
BOARDS = {"black": (30, 30, 32), "green": (35, 75, 60), "navy": (25, 35, 80)}
CHALKS = {"white": (238, 238, 235), "yellow": (240, 225, 110), "pink": (240, 170, 185)}


class Picture(NamedTuple):
    """A picture, its digit, and how it was made."""

    image: Image.Image
    digit: int
    source: str  # "font", "strokes" or "handwriting"
    paper: str  # "plain", "ruled", "grid", "board" or "shadow"


def seven(mode: str = "L", paper: object = 255, ink: object = 0) -> Image.Image:
    """A drawn 7, which upside down or mirrored is not a 7."""
    image = Image.new(mode, (120, 160), paper)  # type: ignore[arg-type]
    ImageDraw.Draw(image).line([(35, 30), (85, 30), (55, 130)], fill=ink, width=10)  # type: ignore[arg-type]
    return image


def picture(seed: int, held_out: bool) -> Picture:
    """Make the picture of a seed, from the fonts, strokes and handwriting of the tuned or the held-out part."""
    rng = np.random.default_rng([seed, held_out])
    digit = seed % 10
    source = ("font", "strokes", "handwriting")[seed // 10 % 3]
    paper = ("plain", "ruled", "grid", "board", "shadow")[seed // 30 % 5]
    height = int(rng.integers(160, 640))
    width = int(height * rng.uniform(0.7, 1.5))
    side = min(height, width) * rng.uniform(0.22, 0.85)
    ink = DRAWN[source](digit, side, rng, held_out)
    ink = ink[: height - 4, : width - 4]
    top, left = (int(rng.integers(2, size - of + 1 - 2)) for size, of in zip((height, width), ink.shape, strict=True))
    mask = np.zeros((height, width), np.float32)
    mask[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return Picture(_photograph(mask, paper, rng, held_out), digit, source, paper)


def _font(digit: int, side: float, rng: np.random.Generator, held_out: bool) -> Array:
    name = rng.choice(HELD_OUT_FONTS if held_out else TUNED_FONTS)
    font = ImageFont.truetype(str(FONTS / f"{name}.ttf"), int(side * 1.3))
    glyph = Image.new("L", (int(side * 2), int(side * 2)))
    ImageDraw.Draw(glyph).text((side, side), str(digit), 255, font, anchor="mm")
    return _cut(np.asarray(glyph.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)) / 255)


def _strokes(digit: int, side: float, rng: np.random.Generator, held_out: bool) -> Array:
    pen = side * rng.uniform(0.025, 0.15)
    angle, slant, squeeze = rng.uniform(-0.14, 0.14), rng.uniform(-0.1, 0.3), rng.uniform(0.55, 0.9)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    canvas = np.zeros((int(side * 2.4), int(side * 2.4)), np.uint8)
    for stroke in (HELD_OUT_STROKES if held_out else TUNED_STROKES)[digit]:
        points = np.array([point.split(",") for point in stroke.strip("!").split()], float)
        points += rng.normal(0, 0.018, points.shape)
        path = points if stroke.startswith("!") else curve(points)
        path = (path - 0.5) * [squeeze, 1]
        path[:, 0] -= slant * path[:, 1]
        path = (path @ turn.T + 1.2) * side
        cv2.polylines(canvas, [np.round(path * 16).astype(np.int32)], False, 255, max(1, round(pen)), cv2.LINE_AA, 4)
    return _cut(canvas / 255)


def curve(points: Array) -> Array:
    """A Catmull-Rom spline through points (N, 2)."""
    padded = np.vstack([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, 12)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False)
    ]
    return np.vstack(parts)


def _handwriting(digit: int, side: float, rng: np.random.Generator, held_out: bool) -> Array:
    """One of the sample's digits, as a smooth shape of any size."""
    images, labels = DIGITS
    image = rng.choice(images[labels == digit][250 * held_out :][:250]).reshape(28, 28).astype(np.float32)
    large = cv2.GaussianBlur(cv2.resize(image, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC), (0, 0), 3)
    shape = _cut(np.clip((large - 100) / 40, 0, 1))
    scale = side / max(shape.shape)
    return np.clip(cv2.resize(shape, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), 0, 1)


DIGITS = [part.flatten(1).numpy() if part.ndim > 1 else part.numpy() for part in sample._read_all()]
"""The sample's images, uint8 (N, 784), and labels (N,)."""
DRAWN = {"font": _font, "strokes": _strokes, "handwriting": _handwriting}


def _cut(ink: Array) -> Array:
    rows, columns = (np.flatnonzero(ink.max(axis=axis) > 0.1) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _photograph(mask: Array, paper: str, rng: np.random.Generator, held_out: bool) -> Image.Image:
    height, width = mask.shape
    on_board = paper == "board"
    sheet = np.array(rng.choice(list((BOARDS if on_board else PAPERS).values())), float)
    pen = np.array(rng.choice(list((CHALKS if on_board else INKS).values())), float)
    scene = np.tile(sheet, (height, width, 1)).astype(np.float32)
    if paper in ("ruled", "grid") or (held_out and on_board and rng.random() < 0.5):
        rules = _rules(height, width, paper == "grid", rng)[..., None]
        color = (
            sheet + 40 if on_board else rng.choice([(120, 150, 200), (150, 150, 150), (190, 110, 120), (90, 95, 110)])
        )
        scene = scene * (1 - rules) + color * rules
    scene = scene * (1 - mask[..., None]) + pen * mask[..., None]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    direction = rng.uniform(0, 2 * math.pi)
    fall = rng.uniform(0, 0.35)
    light = 1 - fall / 2 + fall / 2 * (np.cos(direction) * x + np.sin(direction) * y)
    if held_out:  # a lamp's vignette
        light *= 1 - rng.uniform(0, 0.2) * (x**2 + y**2)
    if paper == "shadow":
        edge = np.cos(direction) * y - np.sin(direction) * x + rng.uniform(-0.4, 0.4)
        if held_out:
            edge += 0.2 * np.sin(3 * x + direction)
        light *= 1 - rng.uniform(0.25, 0.55) / (1 + np.exp(-np.clip(edge * rng.uniform(8, 60), -50, 50)))
    scene *= light[..., None]
    scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.4, 1.6))
    texture = cv2.resize(rng.standard_normal((height // 3, width // 3), np.float32), (width, height)) * rng.uniform(
        0, 3
    )
    scene += texture[..., None] + rng.uniform(1, 9) * rng.standard_normal(scene.shape, np.float32)
    return Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))


def _rules(height: int, width: int, grid: bool, rng: np.random.Generator) -> Array:
    """Lines of ruled or squared paper, slightly tilted, 0 to 1 (H, W)."""
    lines = np.zeros((height, width), np.uint8)
    gap = min(height, width) * rng.uniform(0.06, 0.3)
    tilt = math.tan(math.radians(rng.uniform(-3, 3)))
    thick = int(rng.integers(1, 4))
    for place in np.arange(-2 * gap, max(height, width) * 1.2, gap):
        cv2.line(lines, (0, round(place)), (width, round(place + tilt * width)), 255, thick, cv2.LINE_AA)
        if grid:
            cv2.line(lines, (round(place), 0), (round(place - tilt * height), height), 255, thick, cv2.LINE_AA)
    return lines * np.float32(rng.uniform(0.5, 1) / 255)
