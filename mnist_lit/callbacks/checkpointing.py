"""Save the last and the best epoch of a run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mnist_lit import UserError


class RunCheckpoint(ModelCheckpoint):
    """Save `<name>.ckpt` at the end of an epoch, in a run that can be moved and resumed.

    A checkpoint stores the names of its files, not their absolute paths. Lightning (2.6.6) stores paths, and loses the
    best score if the folder is later spelled differently: the next epoch would then replace a better one.

    Args:
        name: "last" saves every epoch and also the state before the first step; any other name needs `monitor`.
        monitor: The metric whose highest value is saved.
    """

    def __init__(self, name: str, monitor: str | None = None) -> None:
        # a folder that is used twice holds the files of the newer run
        options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        super().__init__(filename=name, monitor=monitor, mode="max" if monitor else "min", **options)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.format_checkpoint_name({}))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state before the first step, so that a run can be resumed from its start, and check the disk.

        Raises:
            UserError: The disk has no space for the checkpoints.
        """
        if self.monitor is not None or trainer.ckpt_path is not None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self.path
        trainer.save_checkpoint(path, weights_only=False)
        if not trainer.is_global_zero:
            return
        # three times the size once the optimizer has its moments; two checkpoints, and a third while it is written
        free, needed = shutil.disk_usage(path.parent).free, 9 * path.stat().st_size
        if free < needed:
            path.unlink()
            raise UserError(f"{path.parent} has {free:,} bytes of free space; the checkpoints need {needed:,}.")

    def state_dict(self) -> dict[str, Any]:
        return _map_paths(super().state_dict(), lambda path: Path(path).name) | {"dirpath": None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = Path(self.dirpath or "")
        state = _map_paths(state_dict, lambda path: str(folder / Path(path).name))
        super().load_state_dict(state | {"dirpath": self.dirpath})
        self.current_score = state["current_score"]  # Lightning (2.6.6) does not restore it


def saved_checkpoint(trainer: Trainer) -> Path | None:
    """The file that continues a run: `last.ckpt`, or else a file of the user's own callbacks; None if there is none."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    last = [callback.path for callback in callbacks if isinstance(callback, RunCheckpoint) and not callback.monitor]
    others = [Path(callback.last_model_path or callback.best_model_path) for callback in callbacks]
    saved = next(filter(Path.is_file, [*last, *others]), None)
    return saved.relative_to(Path.cwd()) if saved and saved.is_relative_to(Path.cwd()) else saved


def _map_paths(state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A ModelCheckpoint's state with a function applied to each path."""
    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    best = {change(path): score for path, score in state["best_k_models"].items()}
    return state | {name: change(state[name]) if state[name] else "" for name in names} | {"best_k_models": best}
