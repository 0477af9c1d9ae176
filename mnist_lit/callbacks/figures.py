"""The pictures and texts of a run in TensorBoard."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchvision.utils import make_grid

from mnist_lit.callbacks.processes import gather_objects
from mnist_lit.callbacks.record import tensorboards
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.describe import describe_environment, markdown_table, multiply_adds, parameter_count

EXAMPLES = 5
"""Training images that are drawn before and after preprocessing."""

MISREAD = 12
"""Misread test images that are drawn, those with the highest confidence first."""

COLORS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}

WIDTH = 700
"""Width of a figure in pixels. A card of TensorBoard shows every second one, so text has at least 24 px."""


class FitFigures(Callback):
    """Draw the settings, the input of the network, the accuracy, and the first filters before and after training."""

    def __init__(self) -> None:
        self.examples: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, MNISTDataModule):  # another callback may replace the images by their prepared form
            step = max(1, len(data.splits["train"]) // EXAMPLES)  # the sample's images are sorted
            self.examples = data.splits["train"].images[::step][:EXAMPLES].clone()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in tensorboards(trainer):
            if isinstance(pl_module, DigitClassifier):
                logger.experiment.add_text("run", _settings_table(trainer, pl_module))
            if trainer.ckpt_path is None:  # a resumed run has drawn them
                _draw_filters(logger, pl_module, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.examples is not None and isinstance(pl_module, DigitClassifier):
            for logger in tensorboards(trainer):  # not before the first step, which would have to wait for it
                logger.experiment.add_figure("pictures/network_input", draw_preprocessing(pl_module, self.examples))
            self.examples = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in tensorboards(trainer):
            _draw_filters(logger, pl_module, trainer.global_step)
            _draw_accuracy(logger, is_tested=False)


class TestFigures(Callback):
    """Draw the accuracy, confusion matrix, misread images and precision-recall curves of the test set."""

    __test__ = False  # the name looks like a test class to pytest

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches: list[tuple[Tensor, ...]] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.logger and isinstance(outputs, Tensor):
            images, labels = batch
            probabilities = outputs.detach().float().softmax(dim=1)
            misread = images[probabilities.argmax(dim=1) != labels]  # all images would take too much memory
            self.batches.append((labels.cpu(), probabilities.cpu(), misread.cpu()))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = [batch for process in gather_objects(self.batches) for batch in process]
        self.batches = []
        if not batches:
            return
        for logger in tensorboards(trainer):
            labels, probabilities, images = (torch.cat(part) for part in zip(*batches, strict=True))
            step = getattr(logger, "step", None)
            _draw_accuracy(logger, is_tested=True)
            logger.experiment.add_figure("pictures/confusion_matrix", draw_confusion(labels, probabilities), step)
            logger.experiment.add_figure("pictures/misread", draw_misread(labels, probabilities, images), step)
            for digit in range(10):
                is_digit, probability = labels == digit, probabilities[:, digit]
                logger.experiment.add_pr_curve(f"precision_recall/{digit}", is_digit, probability, global_step=step)


def _settings_table(trainer: Trainer, model: DigitClassifier) -> str:
    """The network, its settings, the data and the hardware as a Markdown table."""
    facts: dict[str, Any] = {
        "model": type(model.backbone).__name__,
        "parameters": parameter_count(model),
        "multiply-adds (2 FLOPs each) per image": multiply_adds(model),
        "epochs": trainer.max_epochs,
    }
    for name, value in model.hparams.items():
        if isinstance(value, dict) and "class_path" in value:
            if name != "backbone":  # listed as the model above
                facts[name] = value["class_path"].rpartition(".")[2]
            facts |= {f"{name}.{key}": argument for key, argument in value.get("init_args", {}).items()}
        elif not name.startswith("_"):
            facts[name] = value
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, MNISTDataModule):
        facts |= {"source": data.source, "batch_size": data.batch_size}
        facts |= {f"{split} images": len(dataset) for split, dataset in data.splits.items()}
    facts["hardware and versions"] = describe_environment(model.device)
    return markdown_table([["", "this run"], *([name, _text(value)] for name, value in facts.items())])


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


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


def _draw_accuracy(logger: TensorBoardLogger, is_tested: bool) -> None:
    """Draw the accuracy curves in the run's log, if training has logged any."""
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    curves = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if tag.startswith("accuracy/")}
    if "accuracy/train" not in curves:
        return
    ends = [-1, *(event.step for event in curves["accuracy/train"])]  # of the epochs, from 0
    by_epoch = {
        tag.removeprefix("accuracy/"): [(np.interp(event.step, ends, range(len(ends))), event.value) for event in curve]
        for tag, curve in curves.items()
    }
    # not at one step: TensorBoard with --load_fast=false shows the first of several pictures there
    logger.experiment.add_figure("pictures/accuracy", draw_accuracy(by_epoch), ends[-1] + is_tested)


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


def _draw_filters(logger: TensorBoardLogger, model: LightningModule, step: int) -> None:
    """Draw the filters of the first convolution, each with its lowest weight black and its highest white."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        return
    weights = first.weight.detach()[:, :1].cpu()  # (width, 1, 3, 3)
    large = weights.repeat_interleave(40, dim=2).repeat_interleave(40, dim=3)
    grid = make_grid(large, nrow=6, padding=8, normalize=True, scale_each=True, pad_value=0.5)
    logger.experiment.add_image("pictures/filters", grid, step)


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
