"""Batches of images: their order, and their shares for several processes."""

import pytest

from mnist_lit import UserError
from mnist_lit.data.batches import DistributedBatchSampler


@pytest.mark.parametrize(("images", "batch_size"), [(10_000, 500), (55_000, 128), (1_001, 500), (7, 1), (6, 4)])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_image_is_in_one_share_and_no_process_waits(images: int, batch_size: int, processes: int) -> None:
    def shares(seed: int | None) -> list[list[list[int]]]:
        samplers = [DistributedBatchSampler(images, batch_size, processes, rank, seed) for rank in range(processes)]
        batches = [list(sampler) for sampler in samplers]
        assert [len(sampler) for sampler in samplers] == [len(share) for share in batches]
        assert sorted(image for share in batches for batch in share for image in batch) == list(range(images))
        return batches

    trained = shares(seed=0)
    assert len({len(share) for share in trained}) == 1
    sizes = [len(batch) for share in trained for batch in share]
    assert max(sizes) <= max(batch_size, 2)
    assert max(sizes) - min(sizes) <= 1

    evaluated = shares(seed=None)
    assert all(evaluated)
    alone = [list(range(images)[first : first + batch_size]) for first in range(0, images, batch_size)]
    if len(alone) >= processes:
        assert sorted(batch for share in evaluated for batch in share) == alone


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int | None, epoch: int) -> list[list[int]]:
        share = DistributedBatchSampler(100, 10, 2, 1, seed)
        share.set_epoch(epoch)
        return list(share)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(9, 1)
    assert order(None, 1) == order(None, 2)


def test_more_processes_than_images_are_refused() -> None:
    with pytest.raises(UserError, match="3 processes cannot share 2 images"):
        DistributedBatchSampler(2, 10, 3, 0)
