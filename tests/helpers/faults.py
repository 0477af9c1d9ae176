"""Faults that a test causes in a process of its own: slow steps, failing disks, missing permissions."""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from mnist_lit import files
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data import datamodule

FORBIDDEN = 77
"""Exit code of a process that the kernel does not let prepare its fault."""

_LIBC = ctypes.CDLL(None, use_errno=True)


def load_in_workers() -> None:
    """Load training batches in two worker processes."""
    train_dataloader: Callable[..., DataLoader[Any]] = datamodule.MNISTDataModule.train_dataloader

    def with_workers(self: datamodule.MNISTDataModule) -> DataLoader[Any]:
        loader = train_dataloader(self)
        options: dict[str, Any] = {"collate_fn": loader.collate_fn, "num_workers": 2, "multiprocessing_context": "fork"}
        return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, **options)

    datamodule.MNISTDataModule.train_dataloader = with_workers  # type: ignore[method-assign]


def evaluate_in_small_batches() -> None:
    datamodule.EVAL_BATCH_SIZE = 5


def wait_briefly_for_locks() -> None:
    files.LOCK_TIMEOUT_S = 1


def meet(count: int, folder: Path) -> None:
    """Wait until `count` processes have called this function with the same folder."""
    (folder / f"ready{os.getpid()}").touch()
    while len(list(folder.glob("ready*"))) < count:
        time.sleep(0.01)


def stall() -> None:
    """Create the file `stalled` in the second step of each loop, and never finish that step."""
    evaluate_in_small_batches()

    def stalled(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: DigitClassifier, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
            if batch_idx == 1:
                Path("stalled").touch()
                time.sleep(3600)
            return step(self, batch, batch_idx)

        return run

    for name in ("training_step", "validation_step", "test_step", "predict_step"):
        setattr(DigitClassifier, name, stalled(getattr(DigitClassifier, name)))


def at_epoch(epoch: int, fault: Callable[[], None]) -> None:
    """Cause a fault when an epoch starts."""

    def on_train_epoch_start(self: Callback, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG001
        if trainer.current_epoch == epoch:
            fault()

    Callback.on_train_epoch_start = on_train_epoch_start  # type: ignore[method-assign]


def call(name: str, *args: Any) -> None:
    """Call a function of the C library; exit with FORBIDDEN if it fails."""
    if getattr(_LIBC, name)(*args):
        print(f"{name}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(FORBIDDEN)


def mount(folder: Path, size: str) -> None:
    """Mount an empty file system of a given size, for this process only."""
    user, group = os.getuid(), os.getgid()
    call("unshare", 0x10000000 | 0x00020000)  # CLONE_NEWUSER, CLONE_NEWNS
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    call("mount", b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size}".encode())


def drop_capabilities() -> None:
    """Drop the capabilities that let root write where other users may not."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    call("capset", header, (ctypes.c_uint32 * 6)())
