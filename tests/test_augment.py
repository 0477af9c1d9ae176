"""Random distortions of a batch."""

import math

import pytest
import torch
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.functional import affine as torchvision_affine

from mnist_lit import UserError
from mnist_lit.augment import RandomAffineBatch, affine


@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 32)])
def test_affine_equals_torchvision_for_each_image(height: int, width: int) -> None:
    images = torch.rand(4, 1, height, width)
    degrees, scale = [0.0, 10.0, -25.0, 7.0], [1.0, 0.8, 1.2, 1.0]
    right, down = [2, 0, -3, 1], [0, 4, 1, -2]  # torchvision shifts by whole pixels
    shift = torch.tensor([right, down]) / torch.tensor([[width], [height]])
    ours = affine(images, torch.tensor(degrees) * math.pi / 180, torch.tensor(scale), shift)
    for index in range(4):
        theirs = torchvision_affine(
            images[index],
            degrees[index],
            [right[index], down[index]],
            scale[index],
            [0.0, 0.0],
            InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(ours[index], theirs, atol=1e-4, rtol=0)


def test_amounts_of_zero_change_nothing() -> None:
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    result = RandomAffineBatch(degrees=0, translate=0, scale=0)(images)
    torch.testing.assert_close(result, images.float(), atol=1e-3, rtol=0)


def test_each_image_is_distorted_differently_and_a_seed_repeats_it() -> None:
    images = torch.zeros(3, 1, 28, 28)
    images[:, :, 8:20, 12:16] = 255
    torch.manual_seed(0)
    result = RandomAffineBatch()(images)
    assert not torch.equal(result[0], result[1])
    torch.manual_seed(0)
    assert torch.equal(RandomAffineBatch()(images), result)
    assert result.shape == images.shape
    assert result.max() <= 255.01


@pytest.mark.parametrize("options", [{"degrees": -1}, {"translate": -0.1}, {"scale": 1.0}])
def test_amount_out_of_bounds_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        RandomAffineBatch(**options)
