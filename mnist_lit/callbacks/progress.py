"""The progress bar."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, without the version number, which leaves less space for metrics.

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

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
