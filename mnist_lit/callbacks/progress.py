"""The progress bar."""

import shutil
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.progress import BarColumn, ProgressColumn


class ProgressBar(RichProgressBar):
    """Lightning's progress bar with epochs counted from 1, and with accuracies in percent that fit into 80 columns.

    Lightning (2.6.6) reads the metrics beside the bar at each step, although it draws the bar less often. That costs
    5 % of a small step, and waits for a GPU. Here both happen twice a second.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=2)  # times a second
        self.drawn_at = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_last = batch_idx + 1 == self.total_train_batches
        if is_last or time.monotonic() - self.drawn_at > 1 / self.refresh_rate:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.drawn_at = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_end(trainer, pl_module)  # again: Lightning logs the train metrics after this hook
        super().on_train_end(trainer, pl_module)

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        columns = super().configure_columns(trainer)
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = min(40, max(10, shutil.get_terminal_size().columns - 65))
        return [column for column in columns if not isinstance(column, ProcessingSpeedColumn)]

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        accuracies = [name for name in metrics if name.startswith("accuracy/")]
        shown = {name.removeprefix("accuracy/"): f"{100 * metrics.pop(name):.1f} %" for name in sorted(accuracies)}
        return shown | metrics

    def _get_train_description(self, current_epoch: int) -> str:  # there is no public way; a test looks at the result
        last = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}" + (f"/{last}" if last is not None and last > 0 else "")
        return text.ljust(len(self.validation_description))  # so that the bar stays in its place
