"""What a run records beside its curves."""

import contextlib
import copy
import csv
import io
import json
import os
import shutil
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]
from matplotlib.figure import Figure
from torch import nn
from torch.utils.tensorboard.summary import hparams as hparams_summary

from mnist_lit import files
from mnist_lit.callbacks.processes import gathered
from mnist_lit.classifier import EXAMPLE, DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.experiments.report import markdown

CHARTS = {
    "accuracy": {"train, val and test": ["Multiline", ["train/accuracy", "val/accuracy", "test/accuracy"]]},
    "loss": {"train, val and test": ["Multiline", ["train/loss", "val/loss", "test/loss"]]},
}
"""TensorBoard's custom scalars: the curves of a run on one chart, beside a chart each."""


class RunLogger(TensorBoardLogger):
    """Lightning's, in a folder made for this run alone: of two that begin together, both may take one (2.6.6)."""

    @property
    def version(self) -> int | str:
        """The number N of the folder version_N."""
        if self._version is None:
            is_first = getattr(rank_zero_only, "rank", 0) == 0  # the others write nothing
            self._version = files.new_version(Path(self.root_dir)) if is_first else self._get_next_version()
        return self._version


class RunRecord(Callback):
    """Writes into the run's folder what its curves alone don't tell.

    For TensorBoard: charts that hold the training, validation and test curves together, a row of hyper-parameters with
    the final validation and test accuracy, and the graph of the network. And `data.json`: what each stage has read.

    Args:
        is_new: Whether the run's folder is made by this run, and not by an earlier one.
    """

    def __init__(self, is_new: bool) -> None:
        self.is_new = is_new

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the charts, the hyper-parameters and the graph."""
        self._record_data(trainer, "fit")
        logger = tensorboard(trainer)
        if logger is None or not isinstance(pl_module, DigitClassifier):
            return
        logger.experiment.add_custom_scalars(CHARTS)
        # TensorBoard fills these columns with the last point of the curves of the same names
        columns = {"val/accuracy": 0.0, "test/accuracy": 0.0}
        row = hparams_summary(hyper_parameters(trainer, pl_module), columns)  # type: ignore[no-untyped-call]
        for summary in row:
            logger.experiment.file_writer.add_summary(summary)
        network = OrderedDict(preprocess=pl_module.preprocess, backbone=pl_module.backbone)
        # a copy, so that tracing leaves the BatchNorm statistics and the mode as they are
        with warnings.catch_warnings(action="ignore"):  # torch's, of the tracer that TensorBoard uses
            logger.experiment.add_graph(copy.deepcopy(nn.Sequential(network)).eval(), EXAMPLE.to(pl_module.device))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down what was read."""
        self._record_data(trainer, "test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no folder of a run that failed before it kept anything."""
        logger = tensorboard(trainer)
        if self.is_new and logger and not trainer.global_step and not any(Path(logger.log_dir).rglob("*.ckpt")):
            with contextlib.suppress(OSError):  # of a full disk, as may be what has failed
                logger.finalize("failed")  # before Lightning does, which would write into the folder that is gone
            shutil.rmtree(logger.log_dir, ignore_errors=True)  # Lightning opens the log before it reads the data

    def _record_data(self, trainer: Trainer, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        logger = tensorboard(trainer)
        if logger is None or not isinstance(data, MNISTDataModule):
            return
        path = Path(logger.log_dir) / "data.json"
        record = json.loads(path.read_text()) if path.exists() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, (json.dumps(record | {stage: data.record()}, indent=2) + "\n").encode())


class ProgressBar(RichProgressBar):
    """Lightning's, without the number of the run, which takes the room of a figure.

    Lightning's (2.6.6) draws it `refresh_rate` times a second, but reads the figures beside it at every step: that
    costs a twentieth of a small step, and on a GPU waits for it. Here both are done as often.

    Args:
        refresh_rate: How many times a second it is drawn.
    """

    def __init__(self, refresh_rate: int) -> None:
        super().__init__(refresh_rate)
        self.drawn_at = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the bar, if the last time is long enough ago."""
        if time.monotonic() - self.drawn_at > 1 / self.refresh_rate or batch_idx + 1 == self.total_train_batches:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.drawn_at = time.monotonic()

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The figures beside the bar."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.csv`: by image, the two likeliest digits and their probabilities.

    An image is one of the test set, by its index, or a person's picture, by its file. Pictures are printed as a table
    too, and drawn into `predictions.png` if that is asked for.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="epoch")
        self.path = folder / "predictions.csv"

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write the probabilities' (N, 10) two largest, of the images of all processes."""
        places = torch.tensor([place for loader in batch_indices for batch in loader for place in batch])
        parts = gathered((places, torch.cat(list(predictions)).cpu()))
        if not trainer.is_global_zero:
            return
        places, probabilities = (torch.cat(part) for part in zip(*parts, strict=True))
        data = getattr(trainer, "datamodule", None)
        confidences, digits = probabilities[places.argsort()].topk(2, dim=1)
        # --trainer.limit_predict_batches may leave the last ones out
        pictures = data.pictures[: len(digits)] if isinstance(data, MNISTDataModule) else []
        images = pictures or map(str, range(len(digits)))
        rows = [["file" if pictures else "image", "digit", "confidence", "second_guess", "second_confidence"]]
        for image, (digit, second), (confidence, rest) in zip(
            images, digits.tolist(), confidences.tolist(), strict=True
        ):
            rows.append([image, str(digit), f"{confidence:.4f}", str(second), f"{rest:.4f}"])
        file = io.StringIO(newline="")
        csv.writer(file).writerows(rows)
        files.write(self.path, file.getvalue().encode())
        if pictures:
            print(markdown([[cell.replace("_", " ") for cell in rows[0]], *rows[1:]]))
        written = str(self.path)
        if isinstance(data, MNISTDataModule) and pictures and data.show:
            sheet = self.path.with_suffix(".png")
            _contact_sheet(data.splits["test"].images[: len(digits)], rows[1:]).savefig(sheet, dpi=100)
            written += f", {sheet}"
        print(f"{len(digits):,} prediction{'s' * (len(digits) != 1)}: {written}")


def _contact_sheet(images: torch.Tensor, rows: list[list[str]]) -> Figure:
    """What the network was given of each picture, (N, 1, 28, 28), with the file's name and the digit read."""
    columns = min(len(images), 8)
    lines = -(-len(images) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels:
        panel.axis("off")
    for panel, image, (file, digit, confidence, *_) in zip(panels, images, rows, strict=False):
        panel.imshow(image[0].cpu().numpy(), cmap="gray", vmin=0, vmax=255)
        name = Path(file).name.replace("$", r"\$")
        panel.set_title(f"{name[:16]}\n{digit} ({float(confidence):.0%})", fontsize="small")
    return figure


def tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    """The run's TensorBoard logger, on the one process that may write."""
    return trainer.logger if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger) else None


def hyper_parameters(trainer: Trainer, model: DigitClassifier) -> dict[str, Any]:
    """What a run was given, by name, in values that TensorBoard shows."""
    data = getattr(trainer, "datamodule", None)
    parameters: dict[str, Any] = {
        # capitals sort first, and TensorBoard shows no more than the first five
        "Model": type(model.backbone).__name__,
        "Parameters": model.parameter_count,
        "Seed": int(os.environ.get("PL_GLOBAL_SEED", -1)),
        "epochs": trainer.max_epochs,
        "batch_size": getattr(data, "batch_size", None),
        "source": getattr(data, "source", None),
    }
    for name, value in model.hparams.items():
        if isinstance(value, dict) and "class_path" in value:
            if name != "backbone":  # the model
                parameters[name] = value["class_path"].rpartition(".")[2]
            parameters |= {f"{name}.{key}": argument for key, argument in value.get("init_args", {}).items()}
        elif not name.startswith("_"):
            parameters[name] = value
    return {
        name: value if isinstance(value, bool | int | float | str | torch.Tensor) else str(value)
        for name, value in parameters.items()
    }
