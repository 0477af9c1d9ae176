"""Runs the real command line in processes of its own, that can be killed: forked, as to import torch takes seconds."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from mnist_lit import cli
from mnist_lit.callbacks.checkpointing import RandomState
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data import datamodule, official

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["mnist_lit.experiments.compare", "mnist_lit.evaluation.robustness", "tensorboard.compat", "pytest"]
)

Official = dict[str, official.OfficialFile]

FULL = os.environ.get("FAULTS") == "full"
"""Whether each fault is done as often as the README tells."""

FORBIDDEN = 77
"""Exit code of a process that the kernel has not let prepare its fault."""


def start(folder: Path, args: list[str], *setup: Callable[[], None]) -> ForkServerProcess:
    """Start a command in the folder, after what `setup` does, where `out` and `err` will hold what it prints."""
    return begin(_run, folder, official.OFFICIAL, args, setup)


def begin(target: Callable[..., None], *args: Any) -> ForkServerProcess:
    process = CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def finish(process: ForkServerProcess, timeout_s: float = 60) -> int:
    """The exit code; of a process that a signal has killed, the signal's number below 0."""
    process.join(timeout_s)
    if process.exitcode is None:
        kill(process)
        raise TimeoutError
    return process.exitcode


def kill(process: ForkServerProcess) -> None:
    """Kill a command, and what it has started, at once."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _run(
    folder: Path, files: dict[str, official.OfficialFile], args: list[str], setup: tuple[Callable[[], None]]
) -> None:
    os.setsid()  # so that what it starts is killed with it
    os.chdir(folder)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    torch.set_num_threads(1)
    official.OFFICIAL = files
    for change in setup:
        change()
    cli.main(args)


def load_in_workers() -> None:
    """Have two processes load the training batches."""
    one: Callable[..., DataLoader[Any]] = datamodule.MNISTDataModule.train_dataloader

    def two(self: datamodule.MNISTDataModule) -> DataLoader[Any]:
        loader = one(self)
        given: dict[str, Any] = {"collate_fn": loader.collate_fn, "num_workers": 2, "multiprocessing_context": "fork"}
        return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, **given)

    datamodule.MNISTDataModule.train_dataloader = two  # type: ignore[method-assign]


def slow_down() -> None:
    """Have a step take half a second, and the second one say that it begins."""
    datamodule.EVAL_BATCH_SIZE = 5

    def slowed(step: Callable[..., Any]) -> Callable[..., Any]:
        def slow(self: DigitClassifier, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
            if batch_idx == 1:
                Path("begun").touch()
            time.sleep(0.5)
            return step(self, batch, batch_idx)

        return slow

    for name in ("training_step", "validation_step", "test_step", "predict_step"):
        setattr(DigitClassifier, name, slowed(getattr(DigitClassifier, name)))


def at_epoch(epoch: int, fault: Callable[[], None]) -> None:
    """Have something happen when an epoch begins."""

    def on_train_epoch_start(_: Callback, trainer: Trainer, __: LightningModule) -> None:
        if trainer.current_epoch == epoch:
            fault()

    RandomState.on_train_epoch_start = on_train_epoch_start  # type: ignore[method-assign, assignment]


_LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: Any) -> None:
    """Call a function of the C library, or exit with FORBIDDEN."""
    if getattr(_LIBC, name)(*args):
        print(f"{name}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(FORBIDDEN)


def mount(folder: Path, size: str) -> None:
    """Put an empty file system of a size into a folder, for this process alone."""
    user, group = os.getuid(), os.getgid()
    call("unshare", 0x10000000 | 0x00020000)  # CLONE_NEWUSER, CLONE_NEWNS
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    call("mount", b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size}".encode())


def drop_capabilities() -> None:
    """Give up what lets root write where a user may not."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of what follows, and this process
    call("capset", header, (ctypes.c_uint32 * 6)())
