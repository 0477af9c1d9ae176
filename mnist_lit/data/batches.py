"""Images in memory, read in whole batches, and their distribution to several processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from mnist_lit import UserError

Batch = tuple[Tensor, Tensor]
"""Images (N, 1, H, W) and labels, int64 (N,)."""

MakeBatch = Callable[[Iterable[Tensor]], Any]
"""Makes a batch, or a sample, of its images and labels."""


class Samples(Sequence[Batch]):
    """The samples of a batch that was read at once: `whole_batch` takes it, any other `collate_fn` the samples."""

    def __init__(self, batch: Batch, make: MakeBatch) -> None:
        self.batch: Batch = make(batch)
        self.make = make

    def __len__(self) -> int:
        return len(self.batch[1])

    def __getitem__(self, index: Any) -> Any:
        return self.make(part[index] for part in self.batch)


def whole_batch(samples: Samples) -> Batch:
    """The batch of the samples: a `collate_fn`."""
    return samples.batch


class DigitDataset(Dataset[Batch]):
    """Images (N, 1, H, W) and labels (N,) in memory; one index operation reads a whole batch."""

    def __init__(self, images: Tensor, labels: Tensor, make: MakeBatch = tuple) -> None:
        self.images = images
        self.labels = labels
        self.make = make

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        sample: Batch = self.make((self.images[index], self.labels[index]))
        return sample

    def __getitems__(self, indices: list[int]) -> Samples:
        """The samples of these indices; torch's DataLoader prefers this method to `__getitem__`."""
        index = torch.from_numpy(np.array(indices))  # a quarter of the time of torch.tensor
        index = index.to(self.labels.device, non_blocking=True)  # CUDA copies up to 64 kB without waiting
        # faster than `[index]`
        return Samples((self.images.index_select(0, index), self.labels.index_select(0, index)), self.make)


def batch_loader(
    dataset: DigitDataset, batch_size: int, shuffle: bool, processes: int = 1, rank: int = 0, seed: int = 0
) -> DataLoader[Batch]:
    """A DataLoader of whole batches, or of the share of one of several processes.

    In training, all shares have the same size, because processes wait for each other in each step: a few images at the
    end of an epoch's random order are left out. In evaluation, each image is in exactly one share.

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
    if len(dataset) < processes:
        raise UserError(f"{processes} processes cannot share {len(dataset)} images: use fewer --trainer.devices.")
    sampler: DistributedSampler[Any] | None = None
    if processes > 1:  # Lightning replaces no DistributedSampler
        sampler = (
            DistributedSampler(dataset, processes, rank, seed=seed, drop_last=True)
            if shuffle
            else EvaluationSampler(dataset, batch_size, processes, rank)
        )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle and sampler is None,
        sampler=sampler,
        collate_fn=whole_batch,  # type: ignore[arg-type]  # of what __getitems__ returns
        # torch draws a seed for each pass even without shuffling: not from the generator that training uses
        generator=None if shuffle else torch.Generator(),
    )


class EvaluationSampler(DistributedSampler[Any]):
    """The share of one process: whole batches, and each image in exactly one share.

    torch's DistributedSampler repeats images until all shares have the same size, so some would count twice. Here, the
    batches of a single process are distributed, because the last bits of a network's output may depend on the batch
    that an image is in.
    """

    def __init__(self, dataset: DigitDataset, batch_size: int, processes: int, rank: int) -> None:
        super().__init__(dataset, processes, rank, shuffle=False)
        order = torch.arange(len(dataset))
        batches = list(order.split(batch_size))  # type: ignore[no-untyped-call]
        if len(batches) < processes:
            batches = list(order.tensor_split(processes))
        self.indices = torch.cat(batches[rank::processes]).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
