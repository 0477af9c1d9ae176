"""Many people who draw on the demo's page at once."""

import http.client
import io
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageDraw

from helpers.paper import HELD_OUT_STROKES, TUNED_STROKES, Array, curve

SIDE, PEN = 560, 38  # of the page's canvas


def canvas(strokes: list[str], x: float = 0.5, y: float = 0.5) -> bytes:
    """The PGM file that the page posts, with strokes, as in helpers.paper, around a position from 0 to 1."""
    image = Image.new("L", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        points: Array = np.array([point.split(",") for point in stroke.strip("!").split()], float)
        path = points if stroke.startswith("!") else curve(points)
        path = ((path - 0.5) * [0.45, 0.65] + [x, y]) * SIDE
        pen.line([(float(x), float(y)) for x, y in path], fill="black", width=PEN, joint="curve")
        for x_end, y_end in path[[0, -1]].tolist():
            pen.circle((x_end, y_end), PEN / 2, fill="black")
    file = io.BytesIO()
    image.save(file, "PPM")
    return file.getvalue()


def drawings(count: int) -> list[bytes]:
    """The ten digits in two hands, each at a random position."""
    generator = np.random.default_rng(0)
    hands = itertools.cycle(itertools.chain(HELD_OUT_STROKES.values(), TUNED_STROKES.values()))
    return [canvas(next(hands), *generator.uniform(0.4, 0.6, 2)) for _ in range(count)]


def post_all(port: int, bodies: list[bytes], connections: int) -> list[float]:
    """Post drawings over several connections at once; return the seconds of each answer, infinity for a failure."""

    def post(body: bytes) -> float:
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", "/drawing", body)
            response = connection.getresponse()
            is_read = response.status == 200 and b"probabilities" in response.read()
        except (OSError, http.client.HTTPException):
            is_read = False
        finally:
            connection.close()
        return time.perf_counter() - started if is_read else float("inf")

    with ThreadPoolExecutor(connections) as pool:
        return list(pool.map(post, bodies))
