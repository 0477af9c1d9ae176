"""Load the images that a checkpoint is measured on, and run a network on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_lit import UserError
from mnist_lit.data.batches import DigitDataset
from mnist_lit.data.datamodule import EVAL_BATCH_SIZE, MNISTDataModule


def load_test_images(data: MNISTDataModule, trained_on: dict[Path, dict[str, Any]]) -> DigitDataset:
    """Load the test split of a data module, unless a checkpoint was trained on some of its images.

    Args:
        data: The data module.
        trained_on: By checkpoint file, the settings of the data module that it was trained with.

    Raises:
        UserError: The data cannot be read, or a checkpoint was trained on some of the images.
    """
    for path, settings in trained_on.items():
        if (settings.get("source"), data.source) == ("mnist", "sample"):
            raise UserError(
                f"With --data.source sample {path} would be measured on images that it was trained on: use "
                "--data.source mnist."
            )
    data.prepare_data()
    data.setup("test")
    return data.splits["test"]


def load_val_images(trained_on: dict[str, Any], data_dir: str) -> DigitDataset:
    """Load the validation split of the data module that a checkpoint was trained with.

    Raises:
        UserError: The data cannot be read.
    """
    data = MNISTDataModule(**trained_on, data_dir=data_dir)
    data.prepare_data()
    data.setup("validate")
    return data.splits["val"]


def in_batches(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Predictions (N, 10) for images (N, 1, 28, 28), computed batch by batch."""
    return torch.cat([predict(batch) for batch in torch.split(images, EVAL_BATCH_SIZE)])
