"""The pictures and texts of a run in TensorBoard."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torchvision.utils import make_grid

from mnist_lit.callbacks.drawings import draw_accuracy, draw_confusion, draw_misread, draw_preprocessing
from mnist_lit.callbacks.processes import gather_objects
from mnist_lit.callbacks.record import tensorboards
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.describe import describe_environment, markdown_table, multiply_adds, parameter_count

EXAMPLES = 5
"""Training images that are drawn before and after preprocessing."""


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


def _draw_filters(logger: TensorBoardLogger, model: LightningModule, step: int) -> None:
    """Draw the filters of the first convolution, each with its lowest weight black and its highest white."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        return
    weights = first.weight.detach()[:, :1].cpu()  # (width, 1, 3, 3)
    large = weights.repeat_interleave(40, dim=2).repeat_interleave(40, dim=3)
    grid = make_grid(large, nrow=6, padding=8, normalize=True, scale_each=True, pad_value=0.5)
    logger.experiment.add_image("pictures/filters", grid, step)
