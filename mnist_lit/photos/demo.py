"""A page to draw a digit on, or to drop a photo of one, on this machine alone."""

import argparse
import io
import json
import re
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_lit import UserError
from mnist_lit.checkpoints.io import find, project_path
from mnist_lit.classifier import DigitClassifier, load_classifier
from mnist_lit.commands import REFERENCE

try:
    import cv2  # noqa: F401  what pictures are read with
except ModuleNotFoundError as error:
    raise UserError("mnist-lit demo needs OpenCV: uv run --extra demo mnist-lit demo") from error

from mnist_lit.photos.ink import UnreadableError
from mnist_lit.photos.mnist_form import digit_of, mnist_form, open_picture

MAX_BYTES = 64_000_000
"""Of the largest file that is taken."""

POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data: blob:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)
"""What the page may ask for: nothing from anywhere else."""


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit demo` with its options, until Ctrl-C.

    Raises:
        UserError: The checkpoint cannot be read, or the port is taken.
        SystemExit: The arguments are at fault, or ask for help; or Ctrl-C has ended it.
    """
    checkpoint = find(options.ckpt_path) if options.ckpt_path else project_path(REFERENCE)
    model, _ = load_classifier(checkpoint, options.trust)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", options.port), partial(Handler, model))
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {options.port} cannot be used ({error}): give another, or 0 for any.") from error
    with server:
        print(f"Draw a digit at http://127.0.0.1:{server.server_port} (Ctrl-C ends this)", flush=True)
        server.serve_forever()


class Handler(BaseHTTPRequestHandler):
    """Serves the page, and reads the pictures that it sends."""

    def __init__(self, model: DigitClassifier, *args: Any) -> None:
        self.model = model
        super().__init__(*args)

    def do_GET(self) -> None:
        """Send the page."""
        if self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
        elif self._is_asked_here():
            self._send("text/html; charset=utf-8", Path(__file__).with_suffix(".html").read_bytes())

    def do_POST(self) -> None:
        """Answer a picture with probabilities (10) and pixels (784), or with why there are none."""
        told = self.headers.get("Content-Length", "")
        length = int(told) if re.fullmatch("[0-9]{1,9}", told) else 0
        if self.path not in ("/drawing", "/photo") or not 0 < length <= MAX_BYTES:
            self.send_error(HTTPStatus.BAD_REQUEST)
        elif self._is_asked_here():
            answer = read(self.model, self.rfile.read(length), self.path == "/drawing")
            self._send("application/json", json.dumps(answer).encode())

    def _is_asked_here(self) -> bool:
        """Whether it is asked by this page or the address bar, and not by another page or a name that it has given."""
        port, host, origin = self.connection.getsockname()[1], self.headers.get("Host"), self.headers.get("Origin")
        if host in (f"127.0.0.1:{port}", f"localhost:{port}") and origin in (None, f"http://{host}"):
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name it is called by
        """Nothing: the terminal is not told of each stroke."""


def read(model: DigitClassifier, file: bytes, is_drawing: bool) -> dict[str, Any]:
    """What the model reads in a picture file; in a drawing all that is black belongs to the digit."""
    try:
        image = open_picture(io.BytesIO(file))
        ink = 1 - np.asarray(image.convert("L")) / 255
        pixels = mnist_form(ink, threshold=0.5) if is_drawing else digit_of(image)
    except UnreadableError as error:
        return {"error": f"No answer: {error}."}
    with torch.inference_mode():
        probabilities = model(torch.from_numpy(pixels)[None, None]).softmax(dim=1)[0]
    return {"probabilities": probabilities.tolist(), "pixels": pixels.flatten().tolist()}
