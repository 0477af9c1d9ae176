"""Batches of images: their order, and their shares for several processes."""

import pytest
import torch

from mnist_lit import UserError
from mnist_lit.data.batches import DigitDataset, batch_loader

Batches = list[list[int]]


def share(images: int, batch_size: int, processes: int, rank: int, seed: int | None, epoch: int = 0) -> Batches:
    """The numbers of the images in the batches of one process; without a seed, those of an evaluation."""
    numbers = torch.arange(images)
    loader = batch_loader(DigitDataset(numbers, numbers), batch_size, seed is not None, processes, rank, seed or 0)
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    batches = [labels.tolist() for _, labels in loader]
    assert len(batches) == len(loader)
    return batches


@pytest.mark.parametrize(("images", "batch_size"), [(10_000, 500), (5_500, 128), (1_001, 500), (7, 1), (6, 4)])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_no_image_is_in_two_shares_and_no_process_waits(images: int, batch_size: int, processes: int) -> None:
    def shares(seed: int | None) -> tuple[list[Batches], list[int]]:
        batches = [share(images, batch_size, processes, rank, seed) for rank in range(processes)]
        return batches, sorted(image for part in batches for batch in part for image in batch)

    trained, used = shares(seed=0)
    assert len({tuple(map(len, part)) for part in trained}) == 1  # all processes take the same steps
    assert len(used) == len(set(used)) == images - images % processes

    evaluated, measured = shares(seed=None)
    assert measured == list(range(images))
    assert all(evaluated)
    alone = [list(range(images)[first : first + batch_size]) for first in range(0, images, batch_size)]
    if len(alone) >= processes:
        assert sorted(batch for part in evaluated for batch in part) == alone


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int | None, epoch: int) -> Batches:
        return share(100, 10, 2, 1, seed, epoch)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(9, 1)
    assert order(None, 1) == order(None, 2)


def test_more_processes_than_images_are_refused() -> None:
    with pytest.raises(UserError, match="3 processes cannot share 2 images"):
        share(2, 10, 3, 0, None)
