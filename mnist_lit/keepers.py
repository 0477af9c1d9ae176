"""What a run keeps, so that it can end anywhere and go on as if it had not: callbacks."""

import functools
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

LOOKED_AT_ONCE = 20
"""Training steps on a GPU of which one's loss is looked at."""


def keepers() -> list[Callback]:
    """Keepers of the best checkpoint and of the last epoch's.

    Two, because Lightning's `save_last` (2.6.6) saves only when the best one changes.
    """
    # in a folder that is used twice, the files are the newer run's
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = Keeper(filename="best", monitor="val/accuracy", mode="max", **options)
    return [best, Keeper(filename="last", **options)]


class RandomState(Callback):
    """Lets a resumed run draw the random numbers that the uninterrupted one would have drawn.

    Lightning's checkpoints (2.6.6) hold no state of the generators. To be deleted when they do.
    """

    at_setup: dict[str, Any] | None = None
    """The states before the first step, for Lightning draws when it makes an iterator, before it restores a run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the states."""
        self.at_setup = _random_states()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the states noted that are."""
        self.at_setup = None

    def state_dict(self) -> dict[str, Any]:
        """The states of the generators: torch's, which shuffle, distort and drop out, Python's and numpy's."""
        return self.at_setup or _random_states()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the generators, as many as there were."""
        torch.set_rng_state(state_dict["cpu"].cpu())
        if len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["cuda"]])
        if "python" in state_dict:  # not in the first checkpoints of this project
            random.setstate(state_dict["python"])
            kind, keys, *rest = state_dict["numpy"]
            np.random.set_state((kind, keys.numpy(), *rest))  # noqa: NPY002, what seed_everything seeds


def _random_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys), *rest),
    }


class DivergedError(UserError):
    """The loss or a weight is no longer a finite number."""


class DivergenceStop(Callback):
    """Ends a run whose loss or weights are no longer finite, before they reach a checkpoint.

    Lightning's `EarlyStopping(check_finite=True)` (2.6.6) waits for the epoch's end, after the checkpoint.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of each step; on a GPU, which that would wait for, of some, as NaN stays.

        Raises:
            DivergedError: It is not finite.
        """
        looks = pl_module.device.type == "cpu" or trainer.global_step % LOOKED_AT_ONCE == 0
        if looks and not torch.isfinite(outputs["loss"]):
            raise self._error(trainer, f"The loss became {outputs['loss'].item()}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at the weights.

        Raises:
            DivergedError: They are not finite.
        """
        if not all(torch.isfinite(tensor).all() for tensor in pl_module.state_dict().values()):
            raise self._error(trainer, "A weight became infinite or NaN")

    @staticmethod
    def _error(trainer: Trainer, what: str) -> DivergedError:
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
