"""What Lightning and torch say or do at every run, and nobody needs."""

import contextlib
import ctypes
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.profilers import PassThroughProfiler

HUSHED = (
    "LightningCLI's args parameter",  # `main` takes its arguments from the command line and from `compare` alike
    "The '.*' does not have many workers",  # whole batches are indexed in memory: workers would only slow that down
    "The number of training batches",  # nothing is logged in a step but the learning rate
    "Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its folder
    "The dirpath has changed from",  # nor does it keep the best score
    "Be aware that when using `ckpt_path`, callbacks",  # a test keeps no checkpoints
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # within Lightning
    "It is recommended to use `self.log\\(",  # of what all processes have reduced to one number already
    "You are using a custom batch sampler",  # for predictions, of which it leaves out none
    "You called `self.log\\(.*no logger",  # the user asked for none, or the command needs none
)
"""Warnings that tell a user nothing to act on, as regular expressions of how they start."""

CHATTER = (
    "Tip: For seamless",
    "TPU available",
    "Your model can run with static graph",
    "Loading `train_dataloader` to",
    "Restoring states from the checkpoint",
)
"""What Lightning tells at every run, and nobody needs."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt: of how many bytes on it hands free memory back, or asks the system for each piece."""

if not torch.cuda.is_available():
    # Lightning (2.6.6) sets this, and AdamW then looks for a GPU's driver on the disk at every step (torch 2.15)
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)

# what --trainer.deterministic fills with NaN, before it is written to, takes up to a tenth of a step
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

if sys.platform == "linux":
    # glibc hands the memory of large tensors back to the system and has it fetched anew, page by page, at every step
    libc = ctypes.CDLL(None)
    # musl has no mallopt; an old glibc refuses 64 MiB, and goes on as before
    if hasattr(libc, "mallopt") and libc.mallopt(M_MMAP_THRESHOLD, 1 << 26):
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 28)

for name in ("utilities.rank_zero", "trainer.connectors.signal_connector"):
    logging.getLogger(f"lightning.pytorch.{name}").addFilter(
        lambda record: not any(text in record.getMessage() for text in CHATTER)
    )


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without the warnings that tell a user nothing to act on, nor a traceback of what is told without."""
    before = threading.excepthook

    def tell(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):  # TensorBoard's thread hands these on to the run
            before(args)

    threading.excepthook = tell
    try:
        with warnings.catch_warnings():
            for start in HUSHED:
                warnings.filterwarnings("ignore", start)
            yield
    finally:
        threading.excepthook = before


class Unprofiled(PassThroughProfiler):
    """Profiles nothing, in no time: Lightning's (2.6.6) runs a generator for each of the 70 hooks of a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """A context that does nothing."""
        return _NOTHING


_NOTHING = nullcontext()


HOOKS_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def drop_idle_hooks(model: LightningModule, callbacks: Sequence[Callback]) -> None:
    """Hide from Lightning the hooks of a step that do nothing: it (2.6.6) calls all of them, about 50 a step."""
    for base, parts in ((LightningModule, [model]), (Callback, callbacks)):
        for part, hook in product(parts, HOOKS_OF_A_STEP):
            if getattr(type(part), hook) is getattr(base, hook) and hook not in vars(part):  # as LambdaCallback's are
                setattr(part, hook, None)  # which it passes over
