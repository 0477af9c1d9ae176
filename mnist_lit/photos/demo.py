"""`mnist-lit demo`: a web page, served to this machine only, that reads drawings and photos of digits."""

import argparse
import io
import json
import re
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from mnist_lit import UserError
from mnist_lit.checkpoints.find import find_checkpoint
from mnist_lit.classifier import DigitClassifier
from mnist_lit.command_parser import REFERENCE
from mnist_lit.extras import require
from mnist_lit.files import project_path
from mnist_lit.run.restore import load_classifier

require("demo", "demo", "cv2")
from mnist_lit.photos.mnist_form import drawing_to_digit, photo_to_digit  # noqa: E402
from mnist_lit.photos.pictures import UnreadableError, open_picture  # noqa: E402

MAX_BYTES = 64_000_000
"""Size of the largest upload that is accepted."""

POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data: blob:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)
"""Content security policy: the page may request nothing from other servers."""


def main(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    checkpoint = find_checkpoint(options.ckpt_path) if options.ckpt_path else project_path(REFERENCE)
    model, _ = load_classifier(checkpoint, options.trust)
    with start_server(model, options.port) as server:
        print(f"Draw a digit at http://127.0.0.1:{server.server_port} (Ctrl-C stops the server)", flush=True)
        server.serve_forever()


def start_server(model: DigitClassifier, port: int) -> ThreadingHTTPServer:
    """Bind a server for the page to a port of 127.0.0.1; 0 means any free one.

    Raises:
        UserError: The port cannot be used.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, model))
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port} cannot be used ({error}); choose another, or 0 for any free one.") from error


class Handler(BaseHTTPRequestHandler):
    """Serves the page, and answers the pictures that it posts."""

    def __init__(self, model: DigitClassifier, *args: Any) -> None:
        self.model = model
        super().__init__(*args)

    def do_GET(self) -> None:
        """Send the page."""
        if self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
        elif self._check_origin():
            self._send("text/html; charset=utf-8", Path(__file__).with_suffix(".html").read_bytes())

    def do_POST(self) -> None:
        """Answer a picture as JSON: `probabilities` (10) and `pixels` (784), or `error`."""
        length = self.headers.get("Content-Length", "")
        size = int(length) if re.fullmatch("[0-9]{1,9}", length) else 0
        if self.path not in ("/drawing", "/photo") or not 0 < size <= MAX_BYTES:
            self.send_error(HTTPStatus.BAD_REQUEST)
        elif self._check_origin():
            answer = read_digit(self.model, self.rfile.read(size), is_drawing=self.path == "/drawing")
            self._send("application/json", json.dumps(answer).encode())

    def _check_origin(self) -> bool:
        """Refuse requests of other pages, also of those whose host name was pointed at this machine."""
        port, host, origin = self.connection.getsockname()[1], self.headers.get("Host"), self.headers.get("Origin")
        if host in (f"127.0.0.1:{port}", f"localhost:{port}") and origin in (None, f"http://{host}"):
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def _send(self, content_type: str, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Log nothing: the page sends a request for each stroke."""


def read_digit(model: DigitClassifier, file: bytes, is_drawing: bool) -> dict[str, Any]:
    """Read the digit in a picture file, and return what the page shows."""
    try:
        image = open_picture(io.BytesIO(file))
        pixels = drawing_to_digit(image) if is_drawing else photo_to_digit(image)
    except UnreadableError as error:
        return {"error": f"No answer: {error}."}
    with torch.inference_mode():
        probabilities = model(torch.from_numpy(pixels)[None, None]).softmax(dim=1)[0]
    return {"probabilities": probabilities.tolist(), "pixels": pixels.flatten().tolist()}
