"""`mnist-lit demo`: a web page, served to this machine only, on which networks read drawings and photos of digits."""

import argparse
import io
import json
import math
import os
import re
from collections.abc import Collection
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from PIL import Image
from torch import Tensor

from mnist_lit import UserError
from mnist_lit.checkpoints.find import find_checkpoint
from mnist_lit.classifier import DigitClassifier
from mnist_lit.command_parser import READERS
from mnist_lit.describe import parameter_count
from mnist_lit.files import project_path
from mnist_lit.photos.mnist_form import drawing_to_digit, photo_to_digit
from mnist_lit.photos.pictures import MAX_PIXELS, UnreadableError, open_picture
from mnist_lit.photos.server import LocalHandler, LocalServer, Workers
from mnist_lit.run.restore import load_classifier
from mnist_lit.signals import Stopped

MAX_BYTES = 64_000_000
"""Size of the largest upload that is accepted."""

MAX_DRAWING_PIXELS = 4_000_000
"""Size of the largest drawing, so that it is read within milliseconds: the page sends 560 x 560 pixels."""

PLACES = 24
"""Pictures of one kind that are read or wait. Both kinds together stay below MAX_CONNECTIONS."""

BUSY = {"error": "No answer: too many pictures at once; try again."}

POLICY = "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'"
"""Content security policy: the page may request nothing from other servers."""

FILES = {"/": "text/html", "/demo.css": "text/css", "/demo.js": "text/javascript"}
"""Types of the files of the page."""


class Network(NamedTuple):
    """A classifier, in evaluation mode, and its name on the page."""

    name: str
    model: DigitClassifier


def main(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: The checkpoint cannot be loaded, or the port not used.
    """
    networks = load_networks(options.ckpt_path, options.trust)
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other take five times as long
    cv2.setNumThreads(1)
    # glibc returns only blocks of more than 32 MiB to the system
    Image.core.set_block_size(2**26)  # type: ignore[attr-defined]
    with start_server(networks, options.port) as server:
        print(f"Draw a digit at http://127.0.0.1:{server.server_port} (Ctrl-C stops the server)", flush=True)
        try:
            server.serve_forever()
        except Stopped as stopped:
            os._exit(stopped.code)  # Python's own exit ends threads in C++ code, which then aborts the process


def load_networks(ckpt_path: str | None = None, trust: Collection[str] = ()) -> list[Network]:
    """Load the networks of the project, and as the last one, which the page chooses first, that of a checkpoint.

    Raises:
        UserError: The checkpoint is not found, or cannot be loaded.
    """
    own = find_checkpoint(ckpt_path).resolve() if ckpt_path else None
    files = [path for path in map(project_path, READERS) if path.resolve() != own] + ([own] if own else [])
    models = [load_classifier(file, trust)[0] for file in files]
    return [
        Network(f"{type(model.backbone).__name__}{' (yours)' * (file == own)}", model)
        for file, model in zip(files, models, strict=True)
    ]


def start_server(networks: list[Network], port: int) -> LocalServer:
    """Bind a server for the page to a port of 127.0.0.1; 0 means any free one.

    Raises:
        UserError: The port cannot be used.
    """
    # a drawing does not wait for large photos, of which one at a time fits into memory
    workers = {"/drawing": Workers(2, PLACES), "/photo": Workers(1, PLACES)}
    try:
        return LocalServer(port, partial(Handler, networks), workers)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port} cannot be used ({error}); choose another, or 0 for any free one.") from error


class Handler(LocalHandler):
    """Serves the page, and answers the pictures that it posts."""

    def __init__(self, networks: list[Network], *args: Any) -> None:
        self.networks = networks
        super().__init__(*args)

    def do_GET(self) -> None:  # noqa: N802
        """Send a file of the page, or the networks as JSON: `name` and `parameters` of each."""
        if self.path not in (*FILES, "/networks"):
            self.send_error(HTTPStatus.NOT_FOUND)
        elif not self._is_own_page():
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/networks":
            networks = [{"name": name, "parameters": parameter_count(model)} for name, model in self.networks]
            self._send_json(networks, HTTPStatus.OK)
        else:
            file = Path(__file__).with_name("demo.html" if self.path == "/" else self.path[1:])
            self._send(f"{FILES[self.path]}; charset=utf-8", file.read_bytes())

    def do_POST(self) -> None:  # noqa: N802
        """Answer a picture as JSON.

        `pixels` is the digit in MNIST's form, 28 x 28 from 0 to 255; `networks` has for each network its `input`, rows
        of pixels from 0 to 255, and its `probabilities` (10). Otherwise `error` gives the reason.
        """
        lengths = ",".join(self.headers.get_all("Content-Length", []))
        size = int(lengths) if re.fullmatch("[0-9]{1,18}", lengths) else 0
        if self.path not in self.server.workers or "Transfer-Encoding" in self.headers or not size:
            self.send_error(HTTPStatus.BAD_REQUEST)
        elif not self._is_own_page():
            self.send_error(HTTPStatus.FORBIDDEN)
        elif size > MAX_BYTES:
            error = f"No answer: the file has more than {MAX_BYTES // 10**6} MB."
            self._send_json({"error": error}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif not self.server.reserve(self.connection, size):
            self._send_json(BUSY, HTTPStatus.SERVICE_UNAVAILABLE)
        elif len(file := self.rfile.read(size)) == size:  # else the client has gone
            self.server.set_deadline(self.connection, math.inf)
            answer = self.server.workers[self.path].call(read_digit, self.networks, file, self.path == "/drawing")
            self._send_json(answer or BUSY, HTTPStatus.OK if answer else HTTPStatus.SERVICE_UNAVAILABLE)

    def _is_own_page(self) -> bool:
        """Whether a request comes from the page itself, and from no other, whose host name may point at this machine.

        The port may differ from the server's: a browser leaves out 80, and a tunnel has its own.
        """
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        return host.partition(":")[0] in ("127.0.0.1", "localhost") and origin in (None, f"http://{host}")

    def _send_json(self, answer: Any, status: HTTPStatus) -> None:
        self._send("application/json", json.dumps(answer).encode(), status)

    def _send(self, content_type: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)


def read_digit(networks: list[Network], file: bytes, is_drawing: bool) -> dict[str, Any]:
    """Read the digit in a picture file with each network, and return what the page shows."""
    try:
        image = open_picture(io.BytesIO(file), MAX_DRAWING_PIXELS if is_drawing else MAX_PIXELS)
        pixels = drawing_to_digit(image) if is_drawing else photo_to_digit(image)
    except UnreadableError as error:
        return {"error": f"No answer: {error}."}
    images = torch.from_numpy(pixels)[None, None]
    with torch.inference_mode():
        return {"pixels": pixels.tolist(), "networks": [_classify(network.model, images) for network in networks]}


def _classify(model: DigitClassifier, images: Tensor) -> dict[str, Any]:
    """The steps of the classifier's `forward` for one image (1, 1, 28, 28), with the input of its backbone."""
    prepared = model.preprocess.prepare(images)
    probabilities = model.backbone(model.preprocess.normalize(prepared)).softmax(dim=1)[0]
    probabilities = probabilities.nan_to_num()  # of a network that has diverged: JSON has no NaN
    return {"input": (prepared[0, 0] * 255).round().int().tolist(), "probabilities": probabilities.tolist()}
