"""What Lightning and torch say or do at every run, and nobody needs."""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator

import torch

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

if not torch.cuda.is_available():
    # Lightning (2.6.6) sets this, and AdamW then looks for a GPU's driver on the disk at every step (torch 2.15)
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)

# what --trainer.deterministic fills with NaN, before it is written to, takes up to a tenth of a step
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

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
