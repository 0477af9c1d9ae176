"""Replay the network's training pass as CUDA graphs."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from mnist_lit.classifier import DigitClassifier, PreparedBatch


class CUDAGraphs(Callback):
    """Replay the backbone's forward and backward pass in training as CUDA graphs, instead of starting each kernel.

    On a GPU, a step of a small network takes as long as it takes Python to start its kernels. Batches of another size
    than the first one, such as the last of an epoch, and evaluation run as usual, with the same weights. Later changes
    of the network are ignored, so do not combine this with callbacks such as BackboneFinetuning.

    Source: Nguyen et al., Accelerating PyTorch with CUDA Graphs, 2021; `torch.cuda.make_graphed_callables`.
    """

    def __init__(self) -> None:
        self.was_tried = False
        self.graphed: nn.Module | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Capture the graphs before the first step, or print why they cannot be used."""
        if trainer.accumulate_grad_batches > 1:  # a GradientAccumulationScheduler may change it
            self.teardown(trainer, pl_module, "fit")
        if self.was_tried:
            return
        self.was_tried = True
        problem = _problem(trainer, pl_module)
        if problem is None:
            assert isinstance(pl_module, DigitClassifier)
            try:
                _capture(trainer, pl_module, batch)
                self.graphed = pl_module.backbone
            except Exception as error:  # any network may do anything that a graph cannot hold
                problem = " ".join(f"{type(pl_module.backbone).__name__} cannot be captured: {error}".split())
        if problem and trainer.is_global_zero:
            print(f"CUDA graphs are not used: {problem}.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.graphed is not None:
            del self.graphed.forward  # the class's method is visible again
            self.graphed = None


def _problem(trainer: Trainer, model: LightningModule) -> str | None:
    """Why a run cannot use CUDA graphs, or None."""
    if model.device.type != "cuda":
        return "the run is not on a GPU"
    if trainer.world_size > 1:
        return "DDP sends gradients between processes during the backward pass"
    if trainer.accumulate_grad_batches > 1:
        return "each replay overwrites the gradients that --trainer.accumulate_grad_batches would add up"
    return None if isinstance(model, DigitClassifier) else f"{type(model).__name__} is not a DigitClassifier"


def _capture(trainer: Trainer, model: DigitClassifier, batch: tuple[Tensor, Tensor]) -> None:
    """Let the backbone of a classifier replay CUDA graphs for batches of this size.

    Args:
        trainer: The Trainer, for its precision.
        model: The classifier, in training.
        batch: The first training batch.
    """
    backbone = model.backbone
    run_eagerly = backbone.forward
    saved = [buffer.clone() for buffer in backbone.buffers()]
    with torch.no_grad():
        prepared = batch[0] if isinstance(batch, PreparedBatch) else model.preprocess.prepare(batch[0])
        images = model.preprocess.normalize(prepared)
    devices = [images.device] if images.is_cuda else []
    try:  # capturing runs the network: neither BatchNorm's statistics nor the random numbers may change by it
        with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
            torch.cuda.make_graphed_callables(backbone, (images,))
    finally:
        with torch.no_grad():
            for buffer, value in zip(backbone.buffers(), saved, strict=True):
                buffer.copy_(value)
    replay = backbone.forward

    def forward(inputs: Tensor) -> Tensor:
        if inputs.shape == images.shape and backbone.training:
            logits: Tensor = replay(inputs).clone()  # the next replay overwrites them; the metrics read them later
        else:
            logits = run_eagerly(inputs)
        return logits

    backbone.forward = forward
