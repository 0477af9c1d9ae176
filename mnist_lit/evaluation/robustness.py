"""How accurate checkpoints stay on distorted test images, and how true their probabilities are."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from mnist_lit import UserError, files
from mnist_lit.checkpoints.io import LOGS, find
from mnist_lit.classifier import DigitClassifier, load_classifier
from mnist_lit.data.datamodule import EVAL_BATCH_SIZE, MNISTDataModule, read_test_images
from mnist_lit.experiments.report import describe_environment, markdown

BILINEAR = InterpolationMode.BILINEAR


class Robustness(TypedDict):
    """What was measured of one checkpoint."""

    model: str
    checkpoint: str
    calibration_error: float  # expected, 0 to 1, on the test images as they are, in 15 bins
    accuracies: dict[str, dict[str, float]]  # 0 to 1, by distortion and strength


def shift(images: Tensor, pixels: float) -> Tensor:
    """Images shifted by whole pixels, a quarter of them each to the right, left, down and up."""
    directions = ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels))
    parts = [TF.affine(images[i::4], 0, [x, y], 1, [0.0]) for i, (x, y) in enumerate(directions)]
    return _interleave(parts, images)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Images turned about their centre, one half each way."""
    parts = [TF.rotate(images[i::2], angle, BILINEAR) for i, angle in enumerate((degrees, -degrees))]
    return _interleave(parts, images)


def resize(images: Tensor, scale: float) -> Tensor:
    """Images whose content is scaled about their centre."""
    scaled: Tensor = TF.affine(images, 0, [0, 0], scale, [0.0], BILINEAR)
    return scaled


def add_noise(images: Tensor, deviation: float) -> Tensor:
    """Images with Gaussian noise of a standard deviation, as a share of white; the same noise each time."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    return (images + deviation * 255 * noise).clamp(0, 255)


def blur(images: Tensor, deviation: float) -> Tensor:
    """Images blurred by a Gaussian of a standard deviation in pixels."""
    blurred: Tensor = TF.gaussian_blur(images, [11, 11], [deviation, deviation])
    return blurred


def fade(images: Tensor, share: float) -> Tensor:
    """Images with a share of their contrast: white becomes grey on black."""
    return images * share


def thicken(images: Tensor, pixels: float) -> Tensor:
    """Images whose strokes are thicker by whole pixels, or thinner (below 0): grey dilation or erosion."""
    sign, width = (1 if pixels > 0 else -1), 2 * int(abs(pixels)) + 1
    fine = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    return F.avg_pool2d(sign * F.max_pool2d(sign * fine, width, stride=1, padding=width // 2), 2)


DISTORTIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], str, tuple[float, ...]]] = {
    "shift": (shift, "{:.0f} px", (1, 2, 3, 4)),
    "rotation": (rotate, "{:.0f}°", (5, 10, 15, 20, 25, 30)),
    "scale": (resize, "{:.1f}", (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)),
    "Gaussian noise": (add_noise, "{:.1f}", (0.1, 0.2, 0.3)),
    "blur": (blur, "{:.1f} px", (0.5, 1.0, 1.5)),
    "contrast": (fade, "{:.2f}", (0.75, 0.5, 0.25)),
    "strokes": (thicken, "{:+.0f} px", (-1, 1, 2)),
}
"""By name: the function of images (N, 1, 28, 28), float 0..255, and a strength; how that is written; its strengths."""


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit robustness` with its options.

    Raises:
        UserError: A checkpoint or the data cannot be read.
    """
    reference = sorted((Path(LOGS) / "reference").glob("ds_cnn_*/checkpoints/last.ckpt"))
    if options.trust and not options.checkpoints:
        raise UserError("Name the checkpoints before --trust, which takes all that follows it.")
    checkpoints = [find(name) for name in options.checkpoints] or reference
    if not checkpoints:
        raise UserError(f"Name a checkpoint: there is none below {LOGS}/reference here.")
    loaded = {path: load_classifier(path, options.trust) for path in checkpoints}
    trained_on = {path: given for path, (_, given) in loaded.items()}
    test = read_test_images(MNISTDataModule(options.source, options.data_dir), trained_on)
    measured = [measure(model, str(path), test.images, test.labels) for path, (model, _) in loaded.items()]
    folder = Path(LOGS) / "robustness"
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{table(measured)}\n{len(test):,} test images. {describe_environment(torch.device('cpu'))}\n"
    files.write(folder / "robustness.md", text.encode())
    files.write(folder / "robustness.json", (json.dumps(measured, indent=2) + "\n").encode())
    _plot(measured).savefig(folder / "robustness.png", dpi=100)
    print(f"{text}\n{folder}: robustness.md, robustness.json, robustness.png")


@torch.inference_mode()
def measure(model: DigitClassifier, name: str, images: Tensor, labels: Tensor) -> Robustness:
    """What the model makes of test images (N, 1, 28, 28) and their labels (N,), plain and distorted."""

    def read(batches: Tensor) -> Tensor:
        return torch.cat([model(batch) for batch in torch.split(batches, EVAL_BATCH_SIZE)]).softmax(dim=1)

    def accuracy(probabilities: Tensor) -> float:
        return (probabilities.argmax(dim=1) == labels).double().mean().item()

    plain = read(images)
    return {
        "model": type(model.backbone).__name__,
        "checkpoint": name,
        "calibration_error": multiclass_calibration_error(plain, labels, num_classes=10, n_bins=15).item(),
        "accuracies": {"none": {"": accuracy(plain)}}
        | {
            kind: {form.format(strength): accuracy(read(distort(images.float(), strength))) for strength in strengths}
            for kind, (distort, form, strengths) in DISTORTIONS.items()
        },
    }


def table(measured: list[Robustness]) -> str:
    """The accuracies as a Markdown table, a row a distortion and a strength, a column a checkpoint."""
    rows = [["distortion", "strength", *_names(measured)]]
    for kind, strengths in measured[0]["accuracies"].items():
        for strength in strengths:
            figures = [f"{100 * one['accuracies'][kind][strength]:.2f}" for one in measured]
            rows.append([kind, strength, *figures])
    errors = [f"{100 * one['calibration_error']:.2f}" for one in measured]
    rows.append(["expected calibration error", "points", *errors])
    return markdown(rows)


def _names(measured: list[Robustness]) -> list[str]:
    """The networks' names; with their files where two are of one network."""
    models = [one["model"] for one in measured]
    return models if len(set(models)) == len(models) else [f"{one['model']} {one['checkpoint']}" for one in measured]


def _plot(measured: list[Robustness]) -> Figure:
    figure = Figure(figsize=(13, 2.8), layout="constrained")
    panels = figure.subplots(1, len(DISTORTIONS), sharey=True)
    for axes, kind in zip(panels, DISTORTIONS, strict=True):
        for name, one in zip(_names(measured), measured, strict=True):
            accuracies = one["accuracies"][kind]
            axes.plot(list(accuracies), [100 * value for value in accuracies.values()], ".-", label=name)
        axes.tick_params(axis="x", rotation=60)
        axes.set_title(kind)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="test accuracy %")
    panels[0].legend(fontsize="small")
    return figure


def _interleave(parts: list[Tensor], images: Tensor) -> Tensor:
    """The images of which `parts[i]` holds every len(parts)-th from i on."""
    whole = torch.empty_like(images)
    for i, part in enumerate(parts):
        whole[i :: len(parts)] = part
    return whole
