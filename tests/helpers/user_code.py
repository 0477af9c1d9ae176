"""Networks, augmentations and callbacks of a user: tests name them on the command line."""

import math
import os
import random
import signal
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


class Flat(nn.Module):
    """A linear network."""

    def __init__(self, pixels: int, dropout: float = 0.5) -> None:
        super().__init__()
        assert dropout == 0.5  # not the default of the same argument of another network
        self.linear = nn.Linear(pixels, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


class Conv(nn.Module):
    """A network that calls `view` on its features, which fails if they are channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.linear = nn.Linear(4 * 14 * 14, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.conv(images).relu().view(len(images), -1))
        return logits


class Fragile(Flat):
    """A network that diverges if it is built with the seed 43."""

    def __init__(self, pixels: int) -> None:
        super().__init__(pixels)
        if torch.initial_seed() == 43:
            nn.init.constant_(self.linear.weight, math.inf)


class Noise(nn.Module):
    """An augmentation that draws random numbers from torch, numpy and Python."""

    def forward(self, images: Tensor) -> Tensor:
        return images + random.random() * np.random.random() * torch.rand(1)  # noqa: NPY002


class Interrupt(Callback):
    """Presses Ctrl-C in the second epoch of a run that is not resumed."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not trainer.ckpt_path and (trainer.current_epoch, batch_idx) == (1, 2):
            os.kill(os.getpid(), signal.SIGINT)


class Terminate(Callback):
    """Sends SIGTERM to its process, as a shutdown does."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
