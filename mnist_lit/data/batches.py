"""Images in memory as batches: handed out whole, in an order drawn as one tensor, shared out to processes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, RandomSampler, Sampler

from mnist_lit import UserError

Batch = tuple[Tensor, Tensor]
"""Images, uint8 (N, 1, 28, 28), or in training float as they are prepared (N, 1, H, W), and labels, int64 (N,)."""


class DigitDataset(Dataset[Batch]):
    """Images (N, 1, 28, 28) and labels (N,) in memory, handed out in whole batches by one index operation each."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels
        self.prepared: Tensor | None = None
        """The images as a network's preprocessing prepares them, handed out in their place."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int] | Tensor) -> Batch:
        """What a DataLoader's fetcher calls, where it exists, with the indices of a batch."""
        # torch.tensor takes four times as long
        chosen = indices if isinstance(indices, Tensor) else torch.from_numpy(np.array(indices))
        if self.labels.is_cuda:  # pinned, so that the GPU is handed the indices without waiting for it
            chosen = chosen.pin_memory()
        chosen = chosen.to(self.labels.device, non_blocking=True)
        images = self.images if self.prepared is None else self.prepared
        return images.index_select(0, chosen), self.labels.index_select(0, chosen)  # two to five times as fast as []


def as_is(batch: Any) -> Any:
    """The collate function: `__getitems__` has put the batch together already."""
    return batch


class ShuffledBatches(BatchSampler):
    """torch's, which hands out the indices of a RandomSampler's batches as tensors (N,), in the same order.

    torch's own handle each image by itself, which takes a hundredth of a step.
    """

    def __iter__(self) -> Iterator[Any]:
        """The indices of each batch."""
        if not isinstance(self.sampler, RandomSampler):  # but the DistributedSampler that Lightning puts in its place
            return super().__iter__()
        return self._shuffled()

    def _shuffled(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
        order = torch.randperm(len(self.sampler), generator=generator)  # type: ignore[arg-type]
        yield from order.split(self.batch_size)  # type: ignore[no-untyped-call]


class DistributedBatchSampler(Sampler[list[int]]):
    """Batches of a process's share of the images: every image is in one process's share, once an epoch.

    torch's DistributedSampler repeats images until all shares are of one size, and so counts some twice.

    To train, each process has as many batches, or one would wait for the others for ever: an epoch's are of one size,
    give or take an image, up to `batch_size` (or 2 where that is 1). To evaluate, the same batches as a single process
    makes are dealt out, or smaller ones where there are not enough of them: what a network gives for an image may
    depend, in its last bits, on the batch that it is in.

    Args:
        images: How many there are.
        batch_size: Images a batch.
        processes: How many processes there are.
        rank: Number of this process, from 0.
        seed: To train: what the order of an epoch is drawn from, together with the epoch's number.

    Raises:
        UserError: There are fewer images than processes.
    """

    def __init__(self, images: int, batch_size: int, processes: int, rank: int, seed: int | None = None) -> None:
        if images < processes:
            raise UserError(f"{processes} processes cannot share {images} images: give fewer --trainer.devices.")
        self.images = images
        self.batch_size = batch_size
        self.processes = processes
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self.sampler = self  # where Lightning looks for what to tell the epoch to

    def __len__(self) -> int:
        if self.seed is None:
            of_all = max(-(-self.images // self.batch_size), self.processes)
            return len(range(self.rank, of_all, self.processes))
        return min(-(-self.images // (self.batch_size * self.processes)), self.images // self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        if self.seed is None:
            order = torch.arange(self.images)
            batches: Sequence[Tensor] = order.split(self.batch_size)  # type: ignore[no-untyped-call]
            if len(batches) < self.processes:
                batches = order.tensor_split(self.processes)
            batches = batches[self.rank :: self.processes]
        else:
            order = torch.randperm(self.images, generator=torch.Generator().manual_seed(self.seed + self.epoch))
            share: Tensor = order[self.rank :: self.processes]
            batches = share.tensor_split(len(self))
        for batch in batches:
            yield batch.tolist()

    def set_epoch(self, epoch: int) -> None:
        """Take the epoch's number, which Lightning tells before each."""
        self.epoch = epoch
