"""What a run shows of itself in TensorBoard beside its curves: a small callback a thing."""

import warnings
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.utils import make_grid

from mnist_lit.callbacks.checkpointing import random_states, set_random_states
from mnist_lit.callbacks.processes import gathered
from mnist_lit.callbacks.record import hyper_parameters, tensorboard
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.experiments.report import describe_environment, markdown, multiply_adds

PICTURED = 12
"""Training images whose way to the network is pictured."""

WORST = 36
"""Test images that are pictured, of those that were misread, the most confident ones."""


def pictures() -> list[Callback]:
    """A callback for each thing that is shown."""
    return [RunCard(), NetworkInput(), Filters(), ConfusionMatrix(), WorstErrors(), PrecisionRecall()]


class RunCard(Callback):
    """A text: the network, the recipe, the data and the hardware."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        logger, data = tensorboard(trainer), getattr(trainer, "datamodule", None)
        if logger is None or not isinstance(pl_module, DigitClassifier):
            return
        facts = hyper_parameters(trainer, pl_module) | {"multiply-adds an image": multiply_adds(pl_module)}
        if isinstance(data, MNISTDataModule):
            facts |= {f"{split} images": count for split, count in data.record()["images"].items()}
        facts["hardware and versions"] = describe_environment(pl_module.device)
        rows = [[name, f"{value:,}" if isinstance(value, int) else str(value)] for name, value in facts.items()]
        logger.experiment.add_text("run", markdown([["", "this run"], *rows]))


class NetworkInput(Callback):
    """Training images as they are, as the network is given them and, if there is one, after the augmentation."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them."""
        logger, data = tensorboard(trainer), getattr(trainer, "datamodule", None)
        if logger and isinstance(pl_module, DigitClassifier) and isinstance(data, MNISTDataModule):
            logger.experiment.add_figure("train/images", _stages(pl_module, data.splits["train"].images[:PICTURED]))


class Filters(Callback):
    """The filters of the first convolution, before and after the training, black for the lowest weight of each."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw those that training begins with, and not those that a resumed run goes on with."""
        if trainer.ckpt_path is None:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw those that training ends with."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, model: LightningModule) -> None:
        logger = tensorboard(trainer)
        first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
        if logger is None or first is None:
            return
        weights = first.weight.detach()[:, :1].cpu()  # (width, 1, 3, 3)
        large = weights.repeat_interleave(40, dim=2).repeat_interleave(40, dim=3)
        grid = make_grid(large, nrow=6, padding=8, normalize=True, scale_each=True, pad_value=0.5)
        logger.experiment.add_image("filters/first_convolution", grid, trainer.global_step)


class ConfusionMatrix(Callback):
    """How often each digit of the test set was read as each."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw it."""
        logger = tensorboard(trainer)
        if logger is None or not isinstance(pl_module, DigitClassifier):
            return
        with warnings.catch_warnings(action="ignore"):  # numpy's, of how matplotlib reads torchmetrics' tensor
            figure, _ = pl_module.metrics.confusion.plot(cmap="Blues")
        figure.gca().set(xlabel="read as", ylabel="digit", title="Test images")
        logger.experiment.add_figure("test/confusion_matrix", figure, pl_module.last_step)


class _Tested(Callback, ABC):
    """Keeps what the test gives, for what is shown of it at its end."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
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
        """Keep what is needed of a batch."""
        if trainer.logger and isinstance(outputs, Tensor):
            images, labels = batch
            kept = self.needed(images, labels, outputs.detach().float().softmax(dim=1))
            self.batches.append(tuple(part.cpu() for part in kept))

    @abstractmethod
    def needed(self, images: Tensor, labels: Tensor, probabilities: Tensor) -> tuple[Tensor, ...]:
        """What is needed of images (N, 1, 28, 28), labels (N,) and probabilities (N, 10)."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was needed of the whole test, of all processes."""
        batches = [batch for share in gathered(self.batches) for batch in share]
        self.batches = []
        logger = tensorboard(trainer)
        if logger and batches and isinstance(pl_module, DigitClassifier):
            self.draw(logger, [torch.cat(part) for part in zip(*batches, strict=True)], pl_module.last_step)

    @abstractmethod
    def draw(self, logger: TensorBoardLogger, tested: list[Tensor], step: int) -> None:
        """Draw it into the log, at a training step."""


class WorstErrors(_Tested):
    """The test images that were misread most confidently."""

    def needed(self, images: Tensor, labels: Tensor, probabilities: Tensor) -> tuple[Tensor, ...]:
        """Those that were misread, their labels, what they were read as and how confidently."""
        confidences, guesses = probabilities.max(dim=1)
        wrong = guesses != labels
        return images[wrong], labels[wrong], guesses[wrong], confidences[wrong]

    def draw(self, logger: TensorBoardLogger, tested: list[Tensor], step: int) -> None:
        """Draw them, with the truth and what was read."""
        images, labels, guesses, confidences = tested
        worst = confidences.argsort(descending=True)[:WORST]
        figure = Figure(figsize=(6.4, 7.2), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        axes.set_title(f"{len(worst)} of {len(images)} misread: digit → read as, confidence")
        mosaic = np.ones((6 * 38, 6 * 34))
        for place, index in enumerate(worst.tolist()):
            top, left = place // 6 * 38, place % 6 * 34
            mosaic[top : top + 28, left : left + 28] = images[index, 0] / 255
            text = f"{labels[index]} → {guesses[index]}, {confidences[index]:.0%}"
            axes.text(left + 14, top + 29, text, ha="center", va="top", fontsize=10)  # shown at half its size
        axes.imshow(mosaic, cmap="gray", vmin=0, vmax=1)
        logger.experiment.add_figure("test/most_confidently_misread", figure, step)


class PrecisionRecall(_Tested):
    """For each digit, how many of the test images read as it are it, by how many of its images are found."""

    def needed(self, images: Tensor, labels: Tensor, probabilities: Tensor) -> tuple[Tensor, ...]:
        """Labels and probabilities."""
        return labels, probabilities

    def draw(self, logger: TensorBoardLogger, tested: list[Tensor], step: int) -> None:
        """Write the curves."""
        labels, probabilities = tested
        for digit in range(10):
            found = labels == digit, probabilities[:, digit]
            logger.experiment.add_pr_curve(f"test/digit_{digit}", *found, global_step=step)


@torch.no_grad()
def _stages(model: DigitClassifier, images: Tensor) -> Figure:
    """A picture of images (N, 1, 28, 28), a column each, as they go from the data to the backbone."""
    stages = {"MNIST": images, "network's input": model.preprocess(images)}
    if model.augment:
        before = random_states()  # what is drawn for a picture changes no run
        augmented = model.augment(model.preprocess.prepare(images))
        set_random_states(before)
        stages["network's input in training, augmented"] = model.preprocess.normalise(augmented)
    figure = Figure(figsize=(len(images), len(stages) + 0.5), layout="constrained")
    for axes, (name, stage) in zip(figure.subplots(len(stages)), stages.items(), strict=True):
        axes.imshow(torch.cat(list(stage.squeeze(1)), dim=1).float().cpu().numpy(), cmap="gray")
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, loc="left", fontsize="medium")
    return figure
