"""Checkpoints: what a run keeps, and how one is found and read again."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from mnist_lit import UserError


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

    def state_dict(self) -> dict[str, Any]:
        """The states of torch's generators, which shuffle, distort and drop out."""
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the generators, as many as there were."""
        torch.set_rng_state(state_dict["cpu"].cpu())
        if len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["cuda"]])


class Keeper(ModelCheckpoint):
    """Remembers its files by their names, so that a checkpoint can be moved and tells nothing of the machine.

    Lightning's (2.6.6) remembers absolute paths, and forgets the best score where the folder's path is not spelled as
    when it was saved: the next epoch's checkpoint then replaces a better one.
    """

    @functools.cached_property
    def state_key(self) -> str:
        """Lightning's (2.6.6), which writes it anew for each hook of each step."""
        return super().state_key

    def state_dict(self) -> dict[str, Any]:
        """The state, with names for paths."""
        return _with_paths(super().state_dict(), lambda path: Path(path).name) | {"dirpath": None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state as that of this folder."""
        folder = Path(self.dirpath or "")
        state = _with_paths(state_dict, lambda path: str(folder / Path(path).name))
        super().load_state_dict(state | {"dirpath": self.dirpath})


def _with_paths(state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A ModelCheckpoint's state with each path changed."""
    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    kept = {change(path): score for path, score in state["best_k_models"].items()}
    return state | {name: change(state[name]) if state[name] else "" for name in names} | {"best_k_models": kept}


def project_path(path: str) -> Path:
    """A file that comes with the project: in the package if it is installed, else in the checkout."""
    package = Path(__file__).parent
    return package / path if (package / path).exists() else package.parent / path


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, read so that nothing but tensors and plain values is let in."""
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise UserError(f"{path} is not a checkpoint: damaged, or more than weights and plain values.") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "global_step"} <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint that mnist-lit has saved.")
    return checkpoint


def newest(name: str, logs: Path, without: set[Path], backbone: str | None) -> Path:
    """The newest `name`.ckpt of a run below `logs`.

    Args:
        name: "last" or "best".
        logs: Folder of runs.
        without: Folders below it that are passed over.
        backbone: Import path of the network that the run must be of, if it matters.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    found = [file for file in logs.glob(f"**/checkpoints/{name}.ckpt") if not without & set(file.parents)]
    for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True):
        theirs = load(file).get("hyper_parameters", {}).get("backbone", {}).get("class_path")
        if backbone in (None, theirs):
            return file
    of = f" of {backbone.rpartition('.')[2]}" if backbone else ""
    raise UserError(f"--ckpt_path {name}: no run{of} below {logs} has kept one. Run mnist-lit fit first.")
