"""Settings that make each training step faster.

Each one must save at least 2 % of a step of a recipe, on an idle or on a busy machine.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.profilers import PassThroughProfiler

from mnist_lit.classifier import DigitClassifier
from mnist_lit.describe import multiply_adds

SMALL_STEP = 100_000_000
"""Multiply-adds of a training batch, forward, below which several threads gain little or nothing."""


@contextlib.contextmanager
def limit_threads(model: DigitClassifier, batch_size: int) -> Iterator[None]:
    """Compute small steps in one thread, unless OMP_NUM_THREADS is set.

    Threads wait for each other dozens of times per step. On two cores, a step of a recipe took 0.9 to 1.1 times as
    long with two threads as with one, and beside another busy program 3 to 5 times (benchmark/README.md).
    """
    threads = torch.get_num_threads()
    # a network that cannot compute a blank image fails later, where that is reported
    with contextlib.suppress(Exception):
        if "OMP_NUM_THREADS" not in os.environ and multiply_adds(model) * batch_size < SMALL_STEP:
            torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def skip_nan_fill() -> None:
    """Do not let `--trainer.deterministic` fill new memory with NaN first; saves 4 % of a step (torch 2.15)."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of returning it to Linux and clearing new pages in each step.

    Without it, a step of 128 images has up to 110 page faults, 3 % of its time; 2,048 images train a third slower.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    mmap_threshold, trim_threshold = -3, -1  # parameters of mallopt (glibc's malloc.h)
    # musl has no mallopt; an old glibc refuses 64 MiB
    if hasattr(libc, "mallopt") and libc.mallopt(mmap_threshold, 1 << 26):
        libc.mallopt(trim_threshold, 1 << 28)


class NoProfiler(PassThroughProfiler):
    """Skip the generator that Lightning (2.6.6) runs for each of the 70 hooks of a step; saves 2 % of a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return _NULL_CONTEXT


_NULL_CONTEXT = nullcontext()
