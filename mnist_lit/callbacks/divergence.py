"""End a run whose loss or weights are no longer finite."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lit import UserError
from mnist_lit.callbacks.processes import CHECK_EVERY_STEPS


class DivergedError(UserError):
    """The loss or a weight is no longer a finite number."""


class DivergenceStop(Callback):
    """End a run as soon as its loss is not finite, and never save weights that are not.

    Lightning's `EarlyStopping(check_finite=True)` (2.6.6) checks at the end of the epoch, after the checkpoint.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss.

        Raises:
            DivergedError: The loss is infinite or NaN.
        """
        # reading the loss waits for a GPU or for other processes; NaN does not go away until the next check
        waits = trainer.world_size > 1 or pl_module.device.type != "cpu"
        if waits and batch_idx % CHECK_EVERY_STEPS:
            return
        is_finite = math.isfinite(outputs["loss"])
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            value = "infinite or NaN" if is_finite else outputs["loss"].item()
            raise self._error(trainer, f"The loss became {value}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the weights.

        Raises:
            DivergedError: A weight is infinite or NaN.
        """
        is_finite = all(torch.isfinite(tensor).all() for tensor in pl_module.state_dict().values())
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            raise self._error(trainer, "A weight became infinite or NaN")

    @staticmethod
    def _error(trainer: Trainer, problem: str) -> DivergedError | SystemExit:
        if not trainer.is_global_zero:
            return SystemExit(1)  # the first process reports it
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        other = "--trainer.precision bf16-true" if trainer.precision == "16-true" else "--trainer.gradient_clip_val 1"
        return DivergedError(
            f"{problem} at step {trainer.global_step} (epoch {trainer.current_epoch}), learning rate {rate:.3g}: try a "
            f"smaller --model.lr, or {other}. Existing checkpoints are unchanged."
        )
