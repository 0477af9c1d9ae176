"""Make a resumed run equal the uninterrupted run, bit for bit."""

import random
import sys
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mnist_lit import UserError
from mnist_lit.callbacks.processes import gather_objects, world_size


class RandomState(Callback):
    """Save and restore the states of all random number generators; Lightning's checkpoints (2.6.6) hold none."""

    def __init__(self) -> None:
        self.rank = 0
        self.initial_states: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.rank = trainer.global_rank
        if self.rank > 0:  # each process augments and drops out differently
            torch.manual_seed(torch.initial_seed() + self.rank)
        # the checkpoint before the first step needs the states of this moment: Lightning draws random numbers for its
        # data loaders between here and the first step, and again when the run is resumed
        self.initial_states = random_states()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.initial_states = None  # from now on, save the current states

    def state_dict(self) -> dict[str, Any]:
        states = self.initial_states or random_states()
        return states if world_size() == 1 else {"processes": gather_objects(states)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        processes = state_dict.get("processes", [state_dict])
        if len(processes) == world_size():  # a different number of processes cannot repeat the run anyway
            set_random_states(processes[self.rank])


def random_states() -> dict[str, Any]:
    """The states of torch's, Python's and NumPy's generators in this process."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(keys, np.ndarray)
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),  # torch (2.15) cannot gather uint32
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Set the generators of this process; those of GPUs only if their number is the same."""
    torch.set_rng_state(states["cpu"].cpu())
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002, what seed_everything seeds


class PlateauStep(Callback):
    """Step ReduceLROnPlateau after each epoch with a validation.

    Before the checkpoint: Lightning (2.6.6) does it after, so that resuming skips a step.
    """

    def __init__(self) -> None:
        self.is_validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_validated = not trainer.sanity_checking

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.frequency = sys.maxsize  # epochs until Lightning's own step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            if self.is_validated and isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(trainer.callback_metrics[str(config.monitor)])
        self.is_validated = False


class ResumeGuard(Callback):
    """Refuse to resume a run whose learning rate schedule was made for another number of steps."""

    def __init__(self) -> None:
        self.saved: list[Any] = []

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint.get("lr_schedulers", [])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the steps of the new schedule with those of the saved one, before it replaces the new one.

        Raises:
            UserError: They differ.
        """
        for config, saved in zip(trainer.lr_scheduler_configs, self.saved, strict=False):
            steps = getattr(config.scheduler, "total_steps", None)
            planned = saved.get("total_steps", steps) if isinstance(saved, dict) else steps
            if planned != steps:
                raise UserError(
                    f"The learning rate schedule of this run was made for {planned} steps, but these options make "
                    f"{steps}: use the --trainer.max_epochs, --trainer.devices and data of the original run, or start "
                    "a new run without --ckpt_path."
                )
