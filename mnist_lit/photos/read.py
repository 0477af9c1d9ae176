"""`mnist-lit read`: read the handwritten digits in a person's pictures."""

import argparse
import csv
import glob
import io
import math
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mnist_lit.checkpoints.find import find_checkpoint
from mnist_lit.classifier import DigitClassifier
from mnist_lit.command_parser import REFERENCE
from mnist_lit.describe import markdown_table
from mnist_lit.extras import require
from mnist_lit.files import expand, project_path, write_atomically
from mnist_lit.run.restore import load_classifier

require("read", "photos", "cv2")

from mnist_lit.photos.mnist_form import photo_to_digit  # noqa: E402
from mnist_lit.photos.pictures import Array, UnreadableError, open_picture  # noqa: E402


def main(options: argparse.Namespace) -> None:
    """Print a table of the digits read, and write it into predictions.csv in the current folder."""
    checkpoint = find_checkpoint(options.ckpt_path) if options.ckpt_path else project_path(REFERENCE)
    model, _ = load_classifier(checkpoint, options.trust)
    digits, failed = load_digits(options.pictures, options.invert)
    for file, reason in failed.items():
        print(f"mnist-lit: error: {file}: {reason}.", file=sys.stderr)
    if digits:
        rows = classify(model, digits)
        print(markdown_table([[title.replace("_", " ") for title in rows[0]], *rows[1:]]))
        table = io.StringIO(newline="")
        csv.writer(table).writerows(rows)
        write_atomically(Path("predictions.csv"), table.getvalue().encode())
        if options.show:
            _contact_sheet(list(digits.values()), rows[1:]).savefig("predictions.png", dpi=100)
        print("Saved predictions.csv" + " and predictions.png" * options.show)
    if failed:
        raise SystemExit(1)


def load_digits(names: list[str], invert: bool | None = None) -> tuple[dict[str, Array], dict[str, str]]:
    """Load the digits of many pictures.

    Args:
        names: Files, folders (the files directly in them) or glob patterns.
        invert: As in `photo_to_digit`.

    Returns:
        By file: the digits in MNIST's form, uint8 (28, 28), and for pictures that could not be read the reason.
    """
    digits: dict[str, Array] = {}
    failed: dict[str, str] = {}
    for name in names:
        path = expand(name)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        else:
            files = [path] if path.is_file() else sorted(_glob(path))
        if not files:
            failed[name] = "no files in this folder" if path.is_dir() else "no such file"
        for file in files:
            try:
                digits[str(file)] = photo_to_digit(open_picture(file), invert)
            except UnreadableError as error:
                failed[str(file)] = str(error)
    return digits, failed


def _glob(path: Path) -> list[Path]:
    """The files that a pattern matches; brackets in the name of an existing folder are not part of the pattern."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    names = glob.glob(str(path.relative_to(folder)), root_dir=folder, recursive=True)  # noqa: PTH207  skips hidden files
    return [folder / name for name in names]


def classify(model: DigitClassifier, digits: dict[str, Array]) -> list[list[str]]:
    """The rows of a table: by file, the two most likely digits and their probabilities.

    Args:
        model: The classifier, in evaluation mode.
        digits: By file, the digit in MNIST's form, uint8 (28, 28).
    """
    images = torch.from_numpy(np.stack(list(digits.values())))[:, None]  # (N, 1, 28, 28)
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in torch.split(images, 500)])  # (N, 10)
    confidences, classes = logits.softmax(dim=1).topk(2)  # (N, 2) each
    rows = [["file", "digit", "confidence", "second_guess", "second_confidence"]]
    for file, (first, second), (p1, p2) in zip(digits, classes.tolist(), confidences.tolist(), strict=True):
        rows.append([file, str(first), f"{p1:.4f}", str(second), f"{p2:.4f}"])
    return rows


def _contact_sheet(images: list[Array], rows: list[list[str]]) -> Figure:
    """Draw the images that the network sees, each uint8 (28, 28), titled with file, digit and confidence."""
    columns = min(len(images), 8)
    lines = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.3 * columns, 1.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels:
        panel.axis("off")
    for panel, image, (file, digit, confidence, *_) in zip(panels, images, rows, strict=False):
        panel.imshow(image, cmap="gray", vmin=0, vmax=255)
        name = Path(file).name.replace("$", r"\$")  # not TeX
        panel.set_title(f"{name[:16]}\n{digit} ({float(confidence):.0%})", fontsize="small")
    return figure
