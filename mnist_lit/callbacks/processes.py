"""Several processes that train one network: what they exchange, and how they end together."""

import contextlib
import time
from subprocess import Popen, TimeoutExpired
from typing import TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from mnist_lit import UserError

T = TypeVar("T")

CHECK_EVERY_STEPS = 20
"""Training steps between two checks that make this process wait for other processes or for a GPU."""

CHILD_TIMEOUT_S = 60
"""Seconds that the other processes of a run have to end after the first one."""


def world_size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather_objects(part: T) -> list[T]:
    """The objects of all processes, by rank, in each process; all processes must call this."""
    if world_size() == 1:
        return [part]
    parts: list[T] = [part] * world_size()
    distributed.all_gather_object(parts, part)
    return parts


def child_processes(trainer: Trainer) -> list[Popen[bytes]]:
    """The processes that Lightning has started for the other devices of this machine."""
    children: list[Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    return children


def wait_for_children(trainer: Trainer) -> None:
    """Wait until the processes that Lightning has started have ended, and kill those that do not."""
    children = child_processes(trainer)
    deadline = time.monotonic() + CHILD_TIMEOUT_S
    try:
        for child in children:
            with contextlib.suppress(TimeoutExpired):
                child.wait(max(deadline - time.monotonic(), 0))
    finally:
        for child in children:
            child.kill()  # does nothing if it has ended


class SyncProcesses(Callback):
    """Start, evaluate and end all processes of a run together.

    BatchNorm statistics differ between processes. Only evaluation uses them, so they are synchronized before it, not
    in each step as DDP does by default. If this process fails, its child processes are killed: Lightning (2.6.6) lets
    them wait for it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that all processes will do the same.

        Raises:
            UserError: `--ckpt_path last` is not the same file for all processes, or the options exclude each other.
        """
        if len(set(gather_objects(str(trainer.ckpt_path)))) > 1:
            raise UserError("Another run has just saved a checkpoint, so `last` is ambiguous: name the file.")
        if trainer.overfit_batches and trainer.world_size > 1:  # type: ignore[attr-defined]
            raise UserError("--trainer.overfit_batches needs a single process: leave out --trainer.devices.")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._send_buffers(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._send_buffers(pl_module)  # before the checkpoint, which holds those of the first process

    def _send_buffers(self, model: LightningModule) -> None:
        if world_size() > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        children = list(child_processes(trainer))
        child_processes(trainer).clear()  # else Lightning's thread that watches them kills this process, too
        for child in children:
            child.kill()
        for child in children:
            child.wait()
