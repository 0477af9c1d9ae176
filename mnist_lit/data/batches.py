"""Images in memory, read in whole batches, and their distribution to several processes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mnist_lit import UserError

Batch = tuple[Tensor, Tensor]
"""Images (N, 1, H, W) and labels, int64 (N,)."""


class DigitDataset(Dataset[Batch]):
    """Images (N, 1, H, W) and labels (N,) in memory; one index operation reads a whole batch."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of these indices; torch's DataLoader prefers this method to `__getitem__`."""
        index = torch.from_numpy(np.array(indices))  # a quarter of the time of torch.tensor
        if self.labels.is_cuda:  # pinned memory is copied asynchronously
            index = index.pin_memory()
        index = index.to(self.labels.device, non_blocking=True)
        return self.images.index_select(0, index), self.labels.index_select(0, index)  # faster than `[index]`


def batch_loader(
    dataset: DigitDataset, batch_size: int, shuffle: bool, processes: int = 1, rank: int = 0, seed: int = 0
) -> DataLoader[Batch]:
    """A DataLoader of whole batches, or of the share of one of several processes.

    Args:
        dataset: The images and labels.
        batch_size: Images per batch, in each process.
        shuffle: Whether each epoch has a random order.
        processes: Number of processes that share the images.
        rank: Number of this process, from 0.
        seed: Seed of the order if several processes share the images; a single process uses torch's generator.

    Raises:
        UserError: There are fewer images than processes.
    """
    # torch draws a seed for each pass even without shuffling: not from the generator that training uses
    options: dict[str, Any] = {"collate_fn": _identity, "generator": None if shuffle else torch.Generator()}
    if processes == 1:
        return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, **options)  # named: Lightning copies it
    sampler = DistributedBatchSampler(len(dataset), batch_size, processes, rank, seed if shuffle else None)
    return DataLoader(dataset, batch_sampler=sampler, **options)


def _identity(batch: Batch) -> Batch:
    return batch  # `__getitems__` returns collated batches


class DistributedBatchSampler(Sampler[list[int]]):
    """Batches of one process's share, where each image belongs to the share of exactly one process.

    torch's DistributedSampler repeats images until all shares have the same size, so some would count twice.

    In training, all processes need the same number of batches, or they would wait for each other forever: the sizes of
    their batches differ by at most one image. In evaluation, the batches of a single process are distributed, because
    the last bits of a network's output may depend on the batch that an image is in.

    Args:
        images: Number of images.
        batch_size: Images per batch.
        processes: Number of processes.
        rank: Number of this process, from 0.
        seed: Seed of the random order, combined with the epoch's number; None evaluates in the given order.

    Raises:
        UserError: There are fewer images than processes.
    """

    def __init__(self, images: int, batch_size: int, processes: int, rank: int, seed: int | None = None) -> None:
        if images < processes:
            raise UserError(f"{processes} processes cannot share {images} images: use fewer --trainer.devices.")
        self.images = images
        self.batch_size = batch_size
        self.processes = processes
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self.sampler = self  # Lightning calls `batch_sampler.sampler.set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch's number, which selects the order; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.seed is None:
            return len(self._evaluation_batches())
        return min(-(-self.images // (self.batch_size * self.processes)), self.images // self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        if self.seed is None:
            batches = self._evaluation_batches()
        else:
            order = torch.randperm(self.images, generator=torch.Generator().manual_seed(self.seed + self.epoch))
            batches = order[self.rank :: self.processes].tensor_split(len(self))
        for batch in batches:
            yield batch.tolist()

    def _evaluation_batches(self) -> tuple[Tensor, ...]:
        order = torch.arange(self.images)
        batches: tuple[Tensor, ...] = order.split(self.batch_size)  # type: ignore[no-untyped-call]
        if len(batches) < self.processes:
            batches = order.tensor_split(self.processes)
        return batches[self.rank :: self.processes]
