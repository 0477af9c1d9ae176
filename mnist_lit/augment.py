"""Random distortion of a batch of images on its device; each image gets its own random numbers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_lit import UserError
from mnist_lit.preprocess import pixel_centers


class RandomAffineBatch(nn.Module):
    """Rotate, scale and shift each image of a batch by amounts drawn uniformly and independently.

    torchvision's `RandomAffine` draws one set of amounts for the whole batch. For the same amounts, its `affine` gives
    the same image, except that it rounds shifts to whole pixels.

    Args:
        degrees: Largest rotation in either direction, in degrees, 0 or more.
        translate: Largest shift in either direction, as a fraction of the height and of the width, 0 or more.
        scale: Largest change of size, as a fraction below 1: 0.1 draws from 0.9 to 1.1.

    Raises:
        UserError: An amount is out of range.
    """

    def __init__(self, degrees: float = 10.0, translate: float = 0.1, scale: float = 0.1) -> None:
        super().__init__()
        if degrees < 0 or translate < 0 or not 0 <= scale < 1:
            raise UserError(
                "RandomAffineBatch needs degrees and translate of 0 or more and a scale from 0 to below 1, not "
                f"degrees {degrees}, translate {translate}, scale {scale}."
            )
        self.degrees = degrees
        self.translate = translate
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        """Distort images (N, C, H, W) of any dtype with background 0; the result is float32."""
        images = images.float()
        draws = torch.rand(4, len(images), dtype=torch.float32, device=images.device) * 2 - 1  # (4, N), -1..1
        return affine(
            images,
            angle=draws[0] * math.radians(self.degrees),
            scale=1 + draws[1] * self.scale,
            shift=draws[2:] * self.translate,
        )


def affine(images: Tensor, angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Rotate images (N, C, H, W) clockwise by angle (N,), in radians, scale them by scale (N,), shift by shift (2, N).

    The shift is right and down, as fractions of the width and the height; it is applied last.
    """
    height, width = images.shape[-2:]
    right = pixel_centers(width, images.device)[None, None] - 2 * shift[0, :, None, None]  # (N, 1, W)
    down = pixel_centers(height, images.device)[None, :, None] - 2 * shift[1, :, None, None]  # (N, H, 1)
    cos, sin = (torch.cos(angle) / scale)[:, None, None], (torch.sin(angle) / scale)[:, None, None]
    ratio = height / width  # both axes span -1..1
    # the inverse map: where in the input each output pixel samples; affine_grid takes six times as long
    grid = torch.stack((cos * right + sin * ratio * down, cos * down - sin / ratio * right), dim=-1)  # (N, H, W, 2)
    return F.grid_sample(images, grid, align_corners=False)
