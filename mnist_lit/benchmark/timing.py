"""Callbacks that measure a fit."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lit.callbacks.checkpointing import saved_checkpoint

TURN = 40
"""Steps per turn of the fit and of the plain loop: a quarter of a second, in which a machine's speed hardly changes."""

TARGETS = (97.49, 99.0, 99.2)
"""Validation accuracies in % until which a fit is timed; the first was published for DS_CNN_V1, on the test set."""


def now() -> float:
    """Seconds, after the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class EpochTimer(Callback):
    """Time each epoch of a fit, and a plain loop that makes as many steps, alternating with it.

    An epoch lasts until the next one starts, so it includes the logs and checkpoints that are written at its end.

    Args:
        plain_loop: Function of the Trainer that returns an iterator of the plain loop's steps; None for no plain loop.
        clock: Function that returns the time in seconds.
    """

    def __init__(
        self, plain_loop: Callable[[Trainer], Iterator[None]] | None = None, clock: Callable[[], float] = now
    ) -> None:
        self.plain_loop = plain_loop
        self.clock = clock
        self.plain_steps: Iterator[None] | None = None
        self.epochs: list[dict[str, float]] = []
        """By epoch, the seconds of the fit, of its validation and of the plain loop."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.epochs:
            self._lap("fit")
        elif self.plain_loop:
            self.plain_steps = self.plain_loop(trainer)
        self.epochs.append({"fit": 0.0, "validation": 0.0, "plain": 0.0})
        self.last = self.clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = batch_idx + 1
        if self.plain_steps and (steps % TURN == 0 or steps == trainer.num_training_batches):
            self._lap("fit")
            for _ in range(batch_idx % TURN + 1):
                next(self.plain_steps)
            self._lap("plain")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap("fit")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap("validation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap("fit")

    def _lap(self, name: str) -> None:
        """Add the seconds since the last lap to the epoch's."""
        if self.epochs:  # not in the sanity check before the first epoch
            start, self.last = self.last, self.clock()
            self.epochs[-1][name] += self.last - start


class FitClock(Callback):
    """Save how long a fit takes, and its peak memory, as JSON.

    Args:
        path: File to write.
        start: Time at which the process was started, in seconds since 1970.
    """

    def __init__(self, path: str, start: float) -> None:
        self.path = path
        self.start = start
        self.first_step: float | None = None
        self.reached_s: dict[str, float] = {}
        """By target, seconds from the first step to the end of the first validation that passes it."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.first_step = self.first_step or time.time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.first_step is None:  # the sanity check
            return
        for target in TARGETS:
            if 100 * trainer.callback_metrics["accuracy/val"] > target:
                self.reached_s.setdefault(str(target), time.time() - self.first_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.first_step
        record = {
            "first_step_s": self.first_step - self.start,
            "fit_s": time.time() - self.first_step,
            "epochs": trainer.current_epoch,
            "reached_s": self.reached_s,
            "peak_memory_gb": _peak_memory_gb(),
        }
        Path(self.path).write_text(json.dumps(record))


class CopyCheckpoint(Callback):
    """Copy the checkpoint of the first epoch when the second one starts, so that a fit can be resumed from there.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            last = saved_checkpoint(trainer)
            assert last
            shutil.copy(last, self.path)


def _peak_memory_gb() -> float | None:
    """Peak memory of this process, on Linux; `resource.getrusage` may include the memory of the parent process."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 / 1e9 if found else None
