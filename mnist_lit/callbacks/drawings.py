"""Figures that show tensors of a run at the size of TensorBoard's cards; `figures.py` decides when."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from mnist_lit.classifier import DigitClassifier

MISREAD = 12
"""Misread test images that are drawn, those with the highest confidence first."""

COLORS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}

WIDTH = 700
"""Width of a figure in pixels. A card of TensorBoard shows every second one, so text has at least 24 px."""


def _figure(height: int) -> Figure:
    """An empty figure in whose texts and lines a point is a pixel."""
    return Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")


@torch.no_grad()
def draw_preprocessing(model: DigitClassifier, images: Tensor) -> Figure:
    """Images (N, 1, 28, 28) in columns: raw, as the network's input and, if there is an augmentation, augmented."""
    stages = {"MNIST": images, "network's input": model.preprocess(images)}
    if model.augment:
        with isolate_rng():  # the picture must not change the run
            augmented = model.augment(model.preprocess.prepare(images))
        stages["augmented, in training"] = model.preprocess.normalize(augmented)
    figure = _figure((WIDTH // len(images) + 50) * len(stages))
    for axes, (name, stage) in zip(figure.subplots(len(stages)), stages.items(), strict=True):
        axes.imshow(torch.cat(list(stage.squeeze(1)), dim=1).float().cpu().numpy(), cmap="gray")
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, loc="left", fontsize=32)
    return figure


def draw_accuracy(curves: dict[str, list[tuple[float, float]]]) -> Figure:
    """Accuracy by epoch: a color for each of "train", "val" and "test", whose points are (epoch, accuracy)."""
    figure = _figure(560)
    axes = figure.subplots()
    lowest, last = 100.0, 1.0
    for stage, color in COLORS.items():
        if points := curves.get(stage):
            epochs, accuracies = zip(*points, strict=True)
            percent = [100 * accuracy for accuracy in accuracies]
            line, size = ("*", 45) if len(points) == 1 else ("o-", 14)
            axes.plot(epochs, percent, line, color=color, lw=6, ms=size, label=f"{stage} {percent[-1]:.2f}")
            last = max(last, *epochs)
            # the first of many epochs is so low that the others would overlap
            lowest = min([lowest, *(percent if len(points) < 5 else percent[1:])])
    margin = 0.1 * (100 - lowest) + 0.01
    axes.set(xlim=(0, 1.05 * last), ylim=(lowest - margin, 100 + margin))
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=5)
    axes.tick_params(labelsize=32)
    axes.set_xlabel("epoch", fontsize=32)
    axes.set_ylabel("accuracy %", fontsize=32)
    axes.grid(lw=2)
    names: dict[str, Any] = dict.fromkeys(("handlelength", "handletextpad", "markerscale", "borderpad"), 0)
    names |= {"labelcolor": "linecolor", "columnspacing": 1, "frameon": False}
    figure.legend(loc="outside upper right", ncols=3, fontsize=34, **names)
    return figure


def draw_confusion(labels: Tensor, probabilities: Tensor) -> Figure:
    """The confusion matrix of labels (N,) and probabilities (N, 10): errors in red, zeros left out."""
    # not the metric's compute: it would wait for the other processes, which do not draw
    counts = multiclass_confusion_matrix(probabilities, labels, num_classes=10).numpy()
    errors = counts * (1 - np.eye(10, dtype=int))
    highest = max(errors.max(), 4)
    figure = _figure(760)
    axes = figure.subplots()
    axes.imshow(errors, cmap="Reds", vmin=0, vmax=highest)
    axes.imshow(np.ma.masked_where(np.eye(10) == 0, np.ones((10, 10))), cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*counts.nonzero(), strict=True):
        text = str(counts[row, column])
        is_dark = row == column or 2 * errors[row, column] > highest
        size = (40, 40, 32, 25, 20)[min(len(text), 5) - 1]  # a cell has 64 px
        color = "white" if is_dark else "black"
        axes.text(column, row, text, color=color, fontsize=size, ha="center", va="center_baseline")
    axes.set(xticks=range(10), yticks=range(10))
    axes.tick_params(length=0, labelsize=32)
    axes.set_xlabel("predicted", fontsize=32)
    axes.set_ylabel("true digit", fontsize=32)
    axes.set_title(f"{errors.sum():,} of {counts.sum():,} misread", fontsize=32)
    return figure


def draw_misread(labels: Tensor, probabilities: Tensor, images: Tensor) -> Figure:
    """The misread images with the highest confidence.

    Args:
        labels: Of all N images, (N,).
        probabilities: Of all N images, (N, 10).
        images: The M misread ones in the same order, uint8 (M, 1, 28, 28).
    """
    confidences, digits = probabilities.max(dim=1)
    wrong = digits != labels
    labels, digits, confidences = labels[wrong], digits[wrong], confidences[wrong]
    chosen = confidences.argsort(descending=True)[:MISREAD]
    figure = _figure(720)
    figure.suptitle(f"true→predicted: {len(chosen)} of {len(images)} misread", x=0.01, ha="left", fontsize=32)
    for place, index in enumerate(chosen.tolist(), start=1):
        axes = figure.add_subplot(3, 4, place)
        axes.set(xticks=[], yticks=[])
        axes.imshow(images[index, 0].numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{labels[index]}→{digits[index]} {confidences[index]:.0%}", fontsize=30)
    return figure
