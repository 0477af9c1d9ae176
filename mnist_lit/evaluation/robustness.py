"""`mnist-lit robustness`: accuracy of checkpoints on distorted images, and their calibration error."""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
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
from mnist_lit.checkpoints.find import find_checkpoint
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.batches import DigitDataset
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.describe import describe_environment, markdown_table
from mnist_lit.evaluation.images import in_batches, load_test_images, load_val_images
from mnist_lit.files import LOGS
from mnist_lit.run.restore import load_classifier

BILINEAR = InterpolationMode.BILINEAR


class Robustness(TypedDict):
    """Measurements of one checkpoint."""

    model: str
    checkpoint: str
    calibration_error: float  # expected calibration error, 0 to 1, undistorted images, 15 bins
    accuracies: dict[str, dict[str, float]]  # 0 to 1, by distortion and strength


def shift(images: Tensor, pixels: float) -> Tensor:
    """Shift every fourth image to the right, to the left, down and up by whole pixels."""
    shifted = torch.empty_like(images)
    for i, (x, y) in enumerate(((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels))):
        shifted[i::4] = TF.affine(images[i::4], 0, [x, y], 1, [0.0])
    return shifted


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate every other image counterclockwise, the rest clockwise."""
    rotated = torch.empty_like(images)
    for i, angle in enumerate((degrees, -degrees)):
        rotated[i::2] = TF.rotate(images[i::2], angle, BILINEAR)
    return rotated


def scale(images: Tensor, factor: float) -> Tensor:
    """Scale the content about the center of the image."""
    scaled: Tensor = TF.affine(images, 0, [0, 0], factor, [0.0], BILINEAR)
    return scaled


def add_noise(images: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise, the same at each call; its standard deviation is a fraction of white."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    return (images + deviation * 255 * noise).clamp(0, 255)


def blur(images: Tensor, deviation: float) -> Tensor:
    """Blur with a Gaussian kernel whose standard deviation is in pixels."""
    blurred: Tensor = TF.gaussian_blur(images, [11, 11], [deviation, deviation])
    return blurred


def thicken(images: Tensor, pixels: float) -> Tensor:
    """Make strokes thicker by whole pixels, or thinner if negative: grayscale dilation or erosion."""
    sign, width = (1 if pixels > 0 else -1), 2 * int(abs(pixels)) + 1
    fine = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    return F.avg_pool2d(sign * F.max_pool2d(sign * fine, width, stride=1, padding=width // 2), 2)


DISTORTIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], str, tuple[float, ...]]] = {
    "shift": (shift, "{:.0f} px", (1, 2, 3, 4)),
    "rotation": (rotate, "{:.0f}°", (5, 10, 15, 20, 25, 30)),
    "scale": (scale, "{:.1f}", (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)),
    "Gaussian noise": (add_noise, "{:.1f}", (0.1, 0.2, 0.3)),
    "blur": (blur, "{:.1f} px", (0.5, 1.0, 1.5)),
    "contrast": (torch.mul, "{:.2f}", (0.75, 0.5, 0.25)),  # the background is 0
    "strokes": (thicken, "{:+.0f} px", (-1, 1, 2)),
}
"""By name: function of images (N, 1, 28, 28), float 0..255, and a strength; format of the strength; strengths."""


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit robustness`.

    Raises:
        UserError: A checkpoint or the images cannot be read, or it was trained on them.
    """
    if options.trust and not options.checkpoints:
        raise UserError("Name the checkpoints before --trust, which takes all arguments after it.")
    checkpoints = [find_checkpoint(name) for name in options.checkpoints]
    checkpoints = checkpoints or sorted((Path(LOGS) / "reference").glob("ds_cnn_*/checkpoints/last.ckpt"))
    if not checkpoints:
        raise UserError(f"Name a checkpoint: there is none in {LOGS}/reference.")
    loaded = {path: load_classifier(path, options.trust) for path in checkpoints}
    trained_on = {path: data for path, (_, data) in loaded.items()}
    if options.split == "val":
        images = {path: load_val_images(data, options.data_dir) for path, data in trained_on.items()}
    else:
        test = load_test_images(MNISTDataModule(options.source, options.data_dir), trained_on)
        images = dict.fromkeys(loaded, test)
    measured = [measure(model, str(path), images[path]) for path, (model, _) in loaded.items()]
    if options.split == "val":
        measured = average(measured, [recipe_folder(path) for path in loaded])
        note = f"{sum(map(len, images.values())) // len(measured):,} held-out training images."
    else:
        note = f"{len(test):,} test images."
    folder = Path(LOGS) / "robustness"
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{table(measured)}\n{note} {describe_environment(torch.device('cpu'))}\n"
    files.write_atomically(folder / "robustness.md", text.encode())
    files.write_atomically(folder / "robustness.json", (json.dumps(measured, indent=2) + "\n").encode())
    files.save_figure(_plot(measured), folder / "robustness.png", dpi=100)
    print(f"{text}\n{folder}: robustness.md, robustness.json, robustness.png")


@torch.inference_mode()
def measure(model: DigitClassifier, checkpoint: str, dataset: DigitDataset) -> Robustness:
    """Measure a checkpoint's classifier on images, undistorted and distorted."""
    images, labels = dataset.images, dataset.labels

    def accuracy(logits: Tensor) -> float:
        return (logits.argmax(dim=1) == labels).double().mean().item()

    logits = in_batches(model, images)
    return {
        "model": type(model.backbone).__name__,
        "checkpoint": checkpoint,
        "calibration_error": multiclass_calibration_error(logits.softmax(1), labels, num_classes=10, n_bins=15).item(),
        "accuracies": {"none": {"": accuracy(logits)}}
        | {
            name: {
                form.format(strength): accuracy(in_batches(model, distort(images.float(), strength)))
                for strength in strengths
            }
            for name, (distort, form, strengths) in DISTORTIONS.items()
        },
    }


def recipe_folder(checkpoint: Path) -> Path:
    """The run's folder, or that of all seeds and folds of its recipe in a comparison."""
    folder = checkpoint.parent.parent
    while folder.name.startswith(("seed_", "fold_")):
        folder = folder.parent
    return folder


def average(measured: list[Robustness], recipes: Sequence[Path]) -> list[Robustness]:
    """Average the measurements of the checkpoints of each recipe, such as those of all folds."""
    averaged: list[Robustness] = []
    for recipe in dict.fromkeys(recipes):
        equal = [one for one, other in zip(measured, recipes, strict=True) if other == recipe]
        averaged.append(
            {
                "model": equal[0]["model"],
                "checkpoint": str(recipe),
                "calibration_error": statistics.mean(other["calibration_error"] for other in equal),
                "accuracies": {
                    name: {
                        strength: statistics.mean(other["accuracies"][name][strength] for other in equal)
                        for strength in strengths
                    }
                    for name, strengths in equal[0]["accuracies"].items()
                },
            }
        )
    return averaged


def table(measured: list[Robustness]) -> str:
    """Markdown table of the accuracies in %: one row per distortion and strength, one column per checkpoint."""
    rows = [["distortion", "strength", *_labels(measured)]]
    for name, strengths in measured[0]["accuracies"].items():
        for strength in strengths:
            figures = [f"{100 * one['accuracies'][name][strength]:.2f}" for one in measured]
            rows.append([name, strength, *figures])
    errors = [f"{100 * one['calibration_error']:.2f}" for one in measured]
    return markdown_table([*rows, ["expected calibration error", "points", *errors]])


def _labels(measured: list[Robustness]) -> list[str]:
    """Names of the networks, followed by the checkpoint files if two checkpoints are of one network."""
    models = [one["model"] for one in measured]
    return models if len(set(models)) == len(models) else [f"{one['model']} {one['checkpoint']}" for one in measured]


def _plot(measured: list[Robustness]) -> Figure:
    """Accuracy by strength, one panel per distortion."""
    figure = Figure(figsize=(13, 2.8), layout="constrained")
    panels = figure.subplots(1, len(DISTORTIONS), sharey=True)
    for axes, name in zip(panels, DISTORTIONS, strict=True):
        for label, one in zip(_labels(measured), measured, strict=True):
            accuracies = one["accuracies"][name]
            axes.plot(list(accuracies), [100 * value for value in accuracies.values()], ".-", label=label)
        axes.tick_params(axis="x", rotation=60)
        axes.set_title(name)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="accuracy %")
    panels[0].legend(fontsize="small")
    return figure
