"""Preprocessing equals its definition, pixel by pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from mnist_lit import UserError
from mnist_lit.preprocess import SPREAD, Preprocess, Straighten


def strokes(slant: float = 0.0, shift: int = 0) -> Tensor:
    """A soft vertical bar (1, 1, 28, 28), sheared by `slant` columns a row and shifted by `shift` px right and down."""
    row, column = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    distance = column - 13.5 - shift - slant * (row - 13.5 - shift)
    inside = (row - 13.5 - shift).abs() < 6
    return (torch.exp(-(distance**2) / 2) * inside)[None, None]


def moments(image: Tensor) -> tuple[float, float, float, float, float]:
    """Mean column and row, slant, standard deviation of column (without the slant) and of row, by plain loops."""
    pixels = [(x, y, float(image[y, x])) for y in range(28) for x in range(28)]
    mass = sum(value for _, _, value in pixels)
    mean_x = sum(x * value for x, _, value in pixels) / mass
    mean_y = sum(y * value for _, y, value in pixels) / mass
    covariance = sum((x - mean_x) * (y - mean_y) * value for x, y, value in pixels) / mass
    variance_y = sum((y - mean_y) ** 2 * value for _, y, value in pixels) / mass
    slant = covariance / variance_y
    variance_x = sum((x - mean_x - slant * (y - mean_y)) ** 2 * value for x, y, value in pixels) / mass
    return mean_x, mean_y, slant, variance_x**0.5, variance_y**0.5


def slow_straighten(image: Tensor, deskew: bool, center: bool, rescale: bool, square_ink: bool) -> Tensor:
    """The definition by plain loops, with bilinear interpolation and black pixels outside of the image."""
    mean_x, mean_y, slant, deviation_x, deviation_y = moments(image**2 if square_ink else image)
    slant = slant if deskew else 0.0
    zoom_x = zoom_y = 1.0
    if rescale:
        zoom_x, zoom_y = ((deviation / (14 * SPREAD)) ** 0.5 for deviation in (deviation_x, deviation_y))
    target_x, target_y = (13.5, 13.5) if center else (mean_x, mean_y)
    padded = np.pad(image.numpy(), 60)
    result = torch.zeros(28, 28)
    for y in range(28):
        for x in range(28):
            down, right = zoom_y * (y - target_y), zoom_x * (x - target_x)
            from_y, from_x = mean_y + down, mean_x + right + slant * down
            row, column = int(np.floor(from_y)), int(np.floor(from_x))
            lower, later = from_y - row, from_x - column
            corner = padded[row + 60 : row + 62, column + 60 : column + 62]
            result[y, x] = float((corner * np.outer([1 - lower, lower], [1 - later, later])).sum())
    return result


@pytest.mark.parametrize(
    ("deskew", "center", "rescale"),
    [(True, False, False), (False, True, False), (True, True, False), (True, False, True), (True, True, True)],
)
@pytest.mark.parametrize("square_ink", [False, True])
def test_straighten_equals_its_definition(deskew: bool, center: bool, rescale: bool, square_ink: bool) -> None:
    images = torch.cat([strokes(0.4, 2), strokes(-0.6), strokes(0.2, -3), strokes(0.1).transpose(2, 3)])
    straight = Straighten(deskew, center, rescale, square_ink)(images)
    for image, result in zip(images[:, 0], straight[:, 0], strict=True):
        expected = slow_straighten(image, deskew, center, rescale, square_ink)
        torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)


def test_rescaled_digit_is_halfway_to_the_common_spread() -> None:
    ring = ((torch.arange(28.0) - 13.5) ** 2 + 4 * (torch.arange(28.0)[:, None] - 13.5) ** 2).sqrt() / 9
    image = torch.exp(-((ring - 1) ** 2) * 8)[None, None]
    *_, deviation_x, deviation_y = moments(image[0, 0])
    *_, rescaled_x, rescaled_y = moments(Straighten(deskew=False, center=True, rescale=True)(image)[0, 0])
    assert rescaled_x == pytest.approx((deviation_x * 14 * SPREAD) ** 0.5, rel=0.02)
    assert rescaled_y == pytest.approx((deviation_y * 14 * SPREAD) ** 0.5, rel=0.02)


def test_slanted_stroke_becomes_upright_and_centered() -> None:
    mean_x, mean_y, slant, *_ = moments(Straighten(True, True, False)(strokes(0.5, 3))[0, 0])
    assert (mean_x, mean_y) == pytest.approx((13.5, 13.5), abs=0.1)
    assert slant == pytest.approx(0, abs=0.02)


def test_blank_image_stays_blank() -> None:
    preprocess = Preprocess(18, contrast=True, threshold=0.1, deskew=True, center=True, rescale=True, square_ink=True)
    assert torch.equal(preprocess.prepare(torch.zeros(2, 1, 28, 28)), torch.zeros(2, 1, 18, 18))


def slow_clean(image: list[int], contrast: bool, threshold: float) -> list[float]:
    """The definition, pixel by pixel, of an image 0..255."""
    white = max(image) or 255 if contrast else 255
    return [max(value / white - threshold, 0) / (1 - threshold) for value in image]


@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.9])
def test_cleaning_equals_its_definition(contrast: bool, threshold: float) -> None:
    pixels = torch.randint(256, (4, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    pixels = pixels * torch.tensor([1, 0.3, 1 / 255, 0])[:, None, None, None]  # bright, faint, fainter, blank
    pixels = pixels.to(torch.uint8)
    result = Preprocess(28, contrast=contrast, threshold=threshold).prepare(pixels)
    expected = [slow_clean(image.flatten().tolist(), contrast, threshold) for image in pixels]
    torch.testing.assert_close(result.flatten(1), torch.tensor(expected), atol=1e-6, rtol=0)


def test_contrast_and_noise_below_the_threshold_change_nothing() -> None:
    preprocess = Preprocess(18, contrast=True, threshold=0.2, deskew=True, center=True, rescale=True)
    image = torch.where(strokes(0.3) > 0.2, strokes(0.3), 0.0) * 255
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) * 0.15 * image.max()
    noisy = torch.where(image > 0, image, noise)
    torch.testing.assert_close(preprocess(noisy * 0.25), preprocess(image), atol=1e-4, rtol=0)


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_threshold_out_of_range_is_an_error(threshold: float) -> None:
    with pytest.raises(UserError, match="threshold must be from 0 to below 1"):
        Preprocess(18, threshold=threshold)


def test_pixels_are_scaled_and_normalized() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 28, 28)
    result = Preprocess(28)(images)
    expected = (torch.tensor([0, 0.2, 1]) - 0.1307) / 0.3081
    torch.testing.assert_close(result[:, 0, 5, 5], expected)


@pytest.mark.parametrize("image_size", [8, 14, 16, 40])
def test_resizing_is_antialiased_bilinear(image_size: int) -> None:
    images = torch.rand(3, 1, 28, 28) * 255
    result = Preprocess(image_size)(images)
    size = (image_size, image_size)
    expected = F.interpolate(images / 255, size, mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(result, (expected - 0.1307) / 0.3081, atol=1e-5, rtol=0)


def test_weight_averaging_does_not_change_preprocessing() -> None:
    preprocess = Preprocess(18, rescale=True)
    averaged = AveragedModel(preprocess, avg_fn=get_ema_avg_fn(), use_buffers=True)  # type: ignore[no-untyped-call]
    for _ in range(50):
        averaged.update_parameters(preprocess)
    images = torch.randint(256, (20, 1, 28, 28))
    assert torch.equal(averaged(images), preprocess(images))


def test_preprocessing_can_be_exported() -> None:
    images = (torch.cat([strokes(0.3), strokes(-0.3, 2)]) * 255).to(torch.uint8)
    preprocess = Preprocess(16, contrast=True, threshold=0.1, deskew=True, center=True, rescale=True, square_ink=True)
    dynamic = {"images": {0: torch.export.Dim("n")}}
    exported = torch.export.export(preprocess, (images,), dynamic_shapes=dynamic).module()
    torch.testing.assert_close(exported(images[:1].repeat(5, 1, 1, 1)), preprocess(images[:1]).repeat(5, 1, 1, 1))
