"""`mnist-lit read`: read the handwritten digits in a person's pictures."""

import argparse
import contextlib
import csv
import glob
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mnist_lit import printable
from mnist_lit.checkpoints.find import find_checkpoint
from mnist_lit.classifier import DigitClassifier
from mnist_lit.command_parser import READERS
from mnist_lit.describe import markdown_table
from mnist_lit.files import expand, project_path, save_figure, write_atomically
from mnist_lit.photos.mnist_form import photo_to_digit
from mnist_lit.photos.pictures import Array, UnreadableError, open_picture, unreadable_on_error
from mnist_lit.run.restore import load_classifier

SMALLEST_LOGIT = 1.9
"""2 % of MNIST's training images have no larger logit with the DS_CNN_V3 for photos. For V1 and V2, it is 2.1 and 1.4.

Probabilities say less: a letter has low logits for all digits, but often one that is far above the others.
"""

MAX_SHOWN = 400
"""Most digits in predictions.png."""


def main(options: argparse.Namespace) -> None:
    """Print a table of the digits read, and write it into predictions.csv in the current folder.

    Raises:
        UserError: The checkpoint is not found, or cannot be loaded.
        SystemExit: A picture could not be read.
    """
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        checkpoint = find_checkpoint(options.ckpt_path) if options.ckpt_path else project_path(READERS[-1])
    model, _ = load_classifier(checkpoint, options.trust)
    digits, failed = load_digits(options.pictures, options.invert)
    for file, reason in failed.items():
        print(f"mnist-lit: error: {printable(file)}: {reason}.", file=sys.stderr)
    readings = classify(model, digits) if digits else []
    saved = []
    if readings and not options.json:
        rows = [list(readings[0]), *([_cell(value) for value in reading.values()] for reading in readings)]
        shown = [[printable(cell) for cell in row] for row in rows[1:]]
        print(markdown_table([[title.replace("_", " ") for title in rows[0]], *shown]))
        table = io.StringIO(newline="")
        csv.writer(table).writerows(rows)
        # a name on the disk may be no UTF-8
        write_atomically(Path("predictions.csv"), table.getvalue().encode(errors="surrogateescape"))
        saved.append("predictions.csv")
    if readings and options.show:
        save_figure(_contact_sheet(list(digits.values())[:MAX_SHOWN], readings), Path("predictions.png"), dpi=100)
        saved.append("predictions.png" + f" (the first {MAX_SHOWN})" * (len(digits) > MAX_SHOWN))
    if options.json:
        errors = [{"file": file, "error": reason} for file, reason in failed.items()]
        print(json.dumps({"pictures": readings, "errors": errors}, indent=1))
    elif saved:
        print("Saved " + " and ".join(saved))
    if failed:
        raise SystemExit(1)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def load_digits(names: list[str], invert: bool | None = None) -> tuple[dict[str, Array], dict[str, str]]:
    """Load the digits of many pictures, with a progress bar on a terminal.

    Args:
        names: Files, folders (the files directly in them) or glob patterns.
        invert: As in `photo_to_digit`.

    Returns:
        By file: the digits in MNIST's form, uint8 (28, 28), and for pictures that could not be read the reason.
    """
    digits: dict[str, Array] = {}
    failed: dict[str, str] = {}
    files: list[Path] = []
    for name in names:
        try:
            files += _find_files(name)
        except UnreadableError as error:
            failed[name] = str(error)
    console = Console(stderr=True)
    for file in track(files, "Reading pictures", console=console, transient=True, disable=not console.is_terminal):
        try:
            digits[str(file)] = photo_to_digit(open_picture(file), invert)
        except UnreadableError as error:
            failed[str(file)] = str(error)
    return digits, failed


@unreadable_on_error()
def _find_files(name: str) -> list[Path]:
    """The files that a name stands for: a file, a folder or a pattern.

    Raises:
        UnreadableError: There are none, or they cannot be listed.
    """
    path = expand(name)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    else:
        files = [path] if path.is_file() else sorted(_glob(path))
    if not files:
        raise UnreadableError("no files in this folder" if path.is_dir() else "no such file")
    return files


def _glob(path: Path) -> list[Path]:
    """The files that a pattern matches; brackets in the name of an existing folder are not part of the pattern."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    names = glob.glob(str(path.relative_to(folder)), root_dir=folder, recursive=True)  # noqa: PTH207  skips hidden files
    return [path for name in names if (path := folder / name).is_file()]


def classify(model: DigitClassifier, digits: dict[str, Array]) -> list[dict[str, Any]]:
    """The two most likely digits of each picture, their probabilities, and whether it is unlike MNIST's digits.

    Args:
        model: The classifier, in evaluation mode.
        digits: By file, the digit in MNIST's form, uint8 (28, 28).
    """
    images = torch.from_numpy(np.stack(list(digits.values())))[:, None]  # (N, 1, 28, 28)
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in torch.split(images, 500)])  # (N, 10)
    confidences, classes = logits.softmax(dim=1).nan_to_num().topk(2)  # (N, 2) each
    return [
        {
            "file": file,
            "digit": first,
            "confidence": round(p1, 4),
            "second_guess": second,
            "second_confidence": round(p2, 4),
            "unlike_digits": unlike,
        }
        for file, (first, second), (p1, p2), unlike in zip(
            digits, classes.tolist(), confidences.tolist(), is_unlike_digits(logits).tolist(), strict=True
        )
    ]


def is_unlike_digits(logits: Tensor) -> Tensor:
    """Whether each image is unlike MNIST's digits, bool (N,), from its logits (N, 10)."""
    return ~(logits.amax(dim=1) >= SMALLEST_LOGIT)  # NaN is unlike any digit


def _contact_sheet(images: list[Array], readings: list[dict[str, Any]]) -> Figure:
    """Draw the images that the network sees, each uint8 (28, 28), titled with file, digit and confidence."""
    columns = min(len(images), 8)
    lines = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.3 * columns, 1.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels:
        panel.axis("off")
    for panel, image, reading in zip(panels, images, readings, strict=False):
        panel.imshow(image, cmap="gray", vmin=0, vmax=255)
        name = printable(Path(reading["file"]).name)
        title = f"{name[:16]}\n{reading['digit']} ({reading['confidence']:.0%})"
        panel.set_title(title, fontsize="small", parse_math=False)  # $ in a name is no TeX
    return figure
