"""The pictures and texts of a run in TensorBoard."""

import warnings
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchvision.utils import make_grid

from mnist_lit.callbacks.processes import gather_objects
from mnist_lit.callbacks.record import tensorboards
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.describe import describe_environment, markdown_table, multiply_adds, parameter_count

EXAMPLES = 12
"""Training images that are drawn before and after preprocessing."""

MISREAD = 36
"""Misread test images that are drawn, those with the highest confidence first."""


class FitFigures(Callback):
    """Draw the settings, the input of the network, and the first filters before and after training."""

    def __init__(self) -> None:
        self.examples: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, MNISTDataModule):  # another callback may replace the images by their prepared form
            self.examples = data.splits["train"].images[:EXAMPLES].clone()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, DigitClassifier):
            return
        for logger in tensorboards(trainer):
            logger.experiment.add_text("run", _settings_table(trainer, pl_module))
            if self.examples is not None:
                logger.experiment.add_figure("pictures/network_input", draw_preprocessing(pl_module, self.examples))
            if trainer.ckpt_path is None:  # a resumed run has drawn them
                _draw_filters(logger, pl_module, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in tensorboards(trainer):
            _draw_filters(logger, pl_module, trainer.global_step)


class TestFigures(Callback):
    """Draw the confusion matrix, the misread images and the precision-recall curves of the test set."""

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
        for logger in tensorboards(trainer) if batches else []:
            labels, probabilities, images = (torch.cat(part) for part in zip(*batches, strict=True))
            step = getattr(logger, "step", None)
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


@torch.no_grad()
def draw_preprocessing(model: DigitClassifier, images: Tensor) -> Figure:
    """Images (N, 1, 28, 28) in columns: raw, as the network's input and, if there is an augmentation, augmented."""
    stages = {"MNIST": images, "network's input": model.preprocess(images)}
    if model.augment:
        with isolate_rng():  # the picture must not change the run
            augmented = model.augment(model.preprocess.prepare(images))
        stages["network's input in training, augmented"] = model.preprocess.normalize(augmented)
    figure = Figure(figsize=(len(images), len(stages) + 0.5), layout="constrained")
    for axes, (name, stage) in zip(figure.subplots(len(stages)), stages.items(), strict=True):
        axes.imshow(torch.cat(list(stage.squeeze(1)), dim=1).float().cpu().numpy(), cmap="gray")
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, loc="left", fontsize="medium")
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
    """The confusion matrix of labels (N,) and probabilities (N, 10)."""
    # not the metric's compute: it would wait for the other processes, which do not draw
    counts = multiclass_confusion_matrix(probabilities, labels, num_classes=10)
    with warnings.catch_warnings(action="ignore"):  # NumPy's, about how matplotlib reads the tensor
        figure: Figure = MulticlassConfusionMatrix(10).plot(counts, cmap="Blues")[0]
    figure.gca().set(xlabel="predicted digit", ylabel="true digit", title="Test images")
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
    figure = Figure(figsize=(6.4, 7.2), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title(f"{len(chosen)} of {len(images)} misread: true digit → predicted, confidence")
    mosaic = np.ones((6 * 38, 6 * 34))
    for place, index in enumerate(chosen.tolist()):
        top, left = place // 6 * 38, place % 6 * 34
        mosaic[top : top + 28, left : left + 28] = images[index, 0] / 255
        text = f"{labels[index]} → {digits[index]}, {confidences[index]:.0%}"
        axes.text(left + 14, top + 29, text, ha="center", va="top", fontsize=10)
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=1)
    return figure
