"""Mistakes that the parser lets pass, and Lightning and torch answer with a traceback: told in one line."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry

from mnist_lit import UserError

_BOUNDS: dict[str, tuple[float, float, str]] = {
    "seed_everything": (0, 2**32 - 1, "from 0 to 4294967295"),
    "trainer.accumulate_grad_batches": (1, 2**31, "1 or more"),
    "trainer.check_val_every_n_epoch": (1, 2**31, "1 or more"),
    "trainer.gradient_clip_val": (0, float("inf"), "0 or more"),
    "trainer.log_every_n_steps": (0, 2**31, "0 or more"),
    "trainer.num_nodes": (1, 2**31, "1 or more"),
    "trainer.num_sanity_val_steps": (-1, 2**31, "-1 (all) or more"),
}
"""The numbers that Lightning (2.6.6) takes as they are, and fails on later."""


def check(options: Namespace) -> None:
    """Refuse what Lightning (2.6.6) would answer with a traceback, or without a word on the option.

    Raises:
        UserError: A number is out of its bounds, or the accelerator is not there.
    """
    for key, (low, high, told) in _BOUNDS.items():
        value = options[key]
        if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
            raise UserError(f"--{key} must be {told}, not {value}.")
    strategy = options.trainer.strategy
    if isinstance(strategy, str) and re.match("ddp_(spawn|fork|notebook)", strategy):
        raise UserError(f"--trainer.strategy {strategy} is for notebooks: give ddp.")
    accelerator = options.trainer.accelerator
    if isinstance(accelerator, str) and accelerator != "auto":
        names = sorted({*AcceleratorRegistry.available_accelerators(), "gpu"})
        if accelerator not in names:
            raise UserError(f"--trainer.accelerator takes auto or {' or '.join(names)}, not {accelerator}.")
        own = ("cuda", "mps") if accelerator == "gpu" else (accelerator,)
        if not any(AcceleratorRegistry[name]["accelerator"].is_available() for name in own):
            raise UserError(f"--trainer.accelerator {accelerator}: there is none here; give auto or cpu.")


def check_changed(command: str, begun: Namespace, options: Namespace, changed: list[str]) -> None:
    """Refuse options that are not a checkpoint's, where they may not be others.

    Args:
        command: What the checkpoint is for.
        begun: The options that its run had.
        options: Those that are to be.
        changed: Names of the options of the network and of the data that differ.

    Raises:
        UserError: A run would go on otherwise than it began, or be measured on images that it was trained on.
    """
    if command == "fit" and changed:
        raise UserError(
            f"A run goes on as it began, and {options.ckpt_path} was trained with another --{changed[0]}: leave that "
            "out, or start anew without --ckpt_path."
        )
    split = {"data.source", "data.val_size"} & set(changed)
    if split and (command == "validate" or (begun.data.source, options.data.source) == ("mnist", "sample")):
        raise UserError(
            f"With another --{min(split)} {command} would measure on images that {options.ckpt_path} was trained on."
        )


def check_unfinished(options: Namespace, checkpoint: dict[str, Any]) -> None:
    """Refuse to go on with a run that has made all its epochs or steps: Lightning (2.6.6) adds to its log, and ends.

    Raises:
        UserError: It has, or the checkpoint does not say how many it has made.
    """
    try:
        epochs = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{options.ckpt_path} cannot be resumed: it does not say how far it has come.") from error
    for made, wanted, unit in (
        (checkpoint["global_step"], options.trainer.max_steps, "steps"),
        (epochs, options.trainer.max_epochs, "epochs"),
    ):
        if wanted is not None and 0 < wanted <= made:
            longer = f"give a larger --trainer.max_{unit}"
            if options.model.schedule == "one_cycle":  # whose learning rate has come down to its end
                longer = "start anew with more of them, without --ckpt_path"
            raise UserError(f"{options.ckpt_path}: this run has made all its {made} {unit}; to train longer, {longer}.")


@contextlib.contextmanager
def restorable() -> Iterator[None]:
    """Tell in one line that a checkpoint holds no state that Lightning (2.6.6) can restore.

    Raises:
        UserError: It does not.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # optimisers, schedules, loops and callbacks raise whatever a state leads them to
        frames = traceback.extract_tb(error.__traceback__)
        if not any("checkpoint_connector" in frame.filename and "restore" in frame.name for frame in frames):
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"--ckpt_path: what that holds cannot be restored ({why}).") from error


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Tell what is raised within in one line, where it is a user's mistake.

    Raises:
        UserError: It is.
    """
    try:
        yield
    except MisconfigurationException as error:  # Lightning's word for what the user asked of the Trainer
        raise UserError(" ".join(str(error).split())) from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config: that is no text ({error}).") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            why = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0]).partition(". This")[0]
            raise UserError(f"Another process has ended, or cannot be reached: {why}") from error
        if "allocate memory" not in str(error) and not isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        less = "a smaller --data.batch_size or --model.image_size needs less"
        raise UserError(f"There is not enough memory: {less}.") from error
    except ValueError as error:
        causes = [line.strip(" -") for line in str(error).splitlines() if line.startswith("  - ")]
        if str(error).startswith("Does not validate") and causes:  # jsonargparse (4.53) wraps what a class refuses
            raise UserError(causes[0]) from error
        if "val_check_interval" in str(error):  # Lightning compares it to the batches when it has the data
            raise UserError(f"--trainer.{' '.join(str(error).split()).replace('`', '')}") from error
        raise
