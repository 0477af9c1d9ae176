"""The limits of a run: steps, epochs, time and validations."""

import math

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from mnist_lit import UserError


class Limits(Callback):
    """Report what a run will not do because of its limits, and where a time limit has ended it."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report before the first step.

        Raises:
            UserError: The schedule needs validations, and there will be none; or it needs to know the number of steps.
        """
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        changes_steps = any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)
        if changes_steps and any(isinstance(schedule, OneCycleLR) for schedule in schedules):
            raise UserError(
                "GradientAccumulationScheduler changes the number of steps, which --model.schedule one_cycle must know "
                "before: use --model.schedule plateau, or --trainer.accumulate_grad_batches."
            )
        trainer.fit_loop.setup_data()  # else Lightning (2.6.6) may not know the number of batches yet
        steps = trainer.estimated_stepping_batches
        is_validated = trainer.enable_validation and steps_to_validation(trainer) <= steps
        if not is_validated and any(isinstance(schedule, ReduceLROnPlateau) for schedule in schedules):
            raise UserError(
                "--model.schedule plateau needs validations, and this run has none: check --trainer.max_steps, "
                "--trainer.limit_val_batches and --trainer.check_val_every_n_epoch."
            )
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not is_validated:
            print("This run has no validation, and so no best.ckpt.")
        if trainer.max_steps > steps:
            print(
                f"--trainer.max_epochs {trainer.max_epochs} ends this run after {steps} steps, before "
                f"--trainer.max_steps {trainer.max_steps}: for more steps, add --trainer.max_epochs -1."
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        left = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
        if trainer.is_global_zero and any(time is not None and time <= 0 for time in left):
            print(
                f"The time limit has ended this run after {trainer.global_step} steps, in the state of last.ckpt. To "
                "train on, resume it with a larger --trainer.max_time: that starts with a new epoch."
            )


def steps_to_validation(trainer: Trainer) -> float:
    """Optimizer steps before the first validation."""
    epochs, last = (trainer.check_val_every_n_epoch or 1) - 1, float(trainer.val_check_batch or math.inf)
    if not math.isfinite(last) or (epochs and not math.isfinite(trainer.num_training_batches)):
        return math.inf
    # each epoch ends with a step
    whole = epochs and epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return whole + math.ceil(last / trainer.accumulate_grad_batches)
