"""What a run keeps, so that it can end anywhere and go on as if it had not: callbacks."""

import functools
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mnist_lit import UserError
from mnist_lit.callbacks.processes import ASKED_EVERY, gathered, world_size


def keepers() -> list[Callback]:
    """Keepers of the best checkpoint and of the last epoch's.

    Two, because Lightning's `save_last` (2.6.6) saves only when the best one changes.
    """
    # in a folder that is used twice, the files are the newer run's
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = Keeper(filename="best", monitor="val/accuracy", mode="max", **options)
    both: list[Callback] = [best, Keeper(filename="last", **options)]
    for keeper in both:
        keeper.on_train_batch_end = None  # type: ignore[method-assign, assignment]  # which would find nothing to do
    return both


class RandomState(Callback):
    """Lets a resumed run draw the random numbers that the uninterrupted one would have drawn.

    Lightning's checkpoints (2.6.6) hold no state of the generators. To be deleted when they do.
    """

    at_setup: dict[str, Any] | None = None
    """The states before the first step, for Lightning draws when it makes an iterator, before it restores a run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the states, once each of several processes has one of its own: they distort and drop out differently."""
        self.rank = trainer.global_rank
        if self.rank > 0:
            torch.manual_seed(torch.initial_seed() + self.rank)
        self.at_setup = random_states()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the states noted that are."""
        self.at_setup = None

    def state_dict(self) -> dict[str, Any]:
        """The states of the generators, of each process: torch's, which shuffle and distort, Python's and numpy's."""
        own = self.at_setup or random_states()
        return own if world_size() == 1 else {"processes": gathered(own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set this process's generators."""
        of_all = state_dict.get("processes", [state_dict])
        if len(of_all) == world_size():  # else the run does not go on as it was
            set_random_states(of_all[self.rank])


def random_states() -> dict[str, Any]:
    """The states of this process's generators."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(keys, np.ndarray)
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),  # uint32 is not sent (torch 2.15)
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Set this process's generators, as far as the states are of as many GPUs as it has."""
    torch.set_rng_state(states["cpu"].cpu())
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    if "python" in states:  # not in the first checkpoints of this project
        random.setstate(states["python"])
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002, what seed_everything seeds


class DivergedError(UserError):
    """The loss or a weight is no longer a finite number."""


class DivergenceStop(Callback):
    """Ends a run whose loss or weights are no longer finite, in any of its processes, before they reach a checkpoint.

    Lightning's `EarlyStopping(check_finite=True)` (2.6.6) waits for the epoch's end, after the checkpoint.
    """

    every = 1
    """Batches of which one's loss is looked at."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at every loss; where that would wait for a GPU or other processes, at some, as NaN stays."""
        is_cheap = pl_module.device.type == "cpu" and trainer.world_size == 1
        self.every = 1 if is_cheap else ASKED_EVERY

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss.

        Raises:
            DivergedError: It is not finite.
        """
        if batch_idx % self.every == 0:
            is_finite = math.isfinite(outputs["loss"])
            if not trainer.strategy.reduce_boolean_decision(is_finite):
                loss = "infinite or NaN" if is_finite else outputs["loss"].item()
                raise self._error(trainer, f"The loss became {loss}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at the weights.

        Raises:
            DivergedError: They are not finite.
        """
        is_finite = all(torch.isfinite(tensor).all() for tensor in pl_module.state_dict().values())
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            raise self._error(trainer, "A weight became infinite or NaN")

    @staticmethod
    def _error(trainer: Trainer, what: str) -> DivergedError | SystemExit:
        if not trainer.is_global_zero:
            return SystemExit(1)  # the first process tells
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        return DivergedError(
            f"{what} at step {trainer.global_step} (epoch {trainer.current_epoch}), at a learning rate of {rate:.3g}: "
            "try a smaller --model.lr, or --trainer.gradient_clip_val 1. What was kept before is as it was."
        )


class Keeper(ModelCheckpoint):
    """Remembers its files by their names, so that a checkpoint can be moved and tells nothing of the machine.

    The keeper of the last epoch's also keeps the state before the first step: wherever a run is broken off, it goes on
    exactly from the last whole epoch.

    Lightning's (2.6.6) remembers absolute paths, and forgets the best score where the folder's path is not spelled as
    when it was saved: the next epoch's checkpoint then replaces a better one.
    """

    @functools.cached_property
    def state_key(self) -> str:
        """Lightning's (2.6.6), which writes it anew for each hook of each step."""
        return super().state_key

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the state before the first step, and see that there will be room.

        Raises:
            UserError: There is not.
        """
        if self.monitor is not None or trainer.ckpt_path is not None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(self.format_checkpoint_name({}))
        trainer.save_checkpoint(path, weights_only=False)
        if not trainer.is_global_zero:
            return
        # the optimiser's moments will make it three times as large; and there are two, and one being written
        free, needed = shutil.disk_usage(path.parent).free, 9 * path.stat().st_size
        if free < needed:
            path.unlink()
            raise UserError(f"{path.parent} has room for {free:,} bytes, and the checkpoints need {needed:,}.")

    def state_dict(self) -> dict[str, Any]:
        """The state, with names for paths."""
        return _with_paths(super().state_dict(), lambda path: Path(path).name) | {"dirpath": None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state as that of this folder."""
        folder = Path(self.dirpath or "")
        state = _with_paths(state_dict, lambda path: str(folder / Path(path).name))
        super().load_state_dict(state | {"dirpath": self.dirpath})
        self.current_score = state["current_score"]  # which Lightning's (2.6.6) forgets


def _with_paths(state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A ModelCheckpoint's state with each path changed."""
    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    kept = {change(path): score for path, score in state["best_k_models"].items()}
    return state | {name: change(state[name]) if state[name] else "" for name in names} | {"best_k_models": kept}
