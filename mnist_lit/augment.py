"""Random distortions of a batch of images, on its device, each image by its own draw."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_lit import UserError
from mnist_lit.preprocess import pixel_centers


class RandomAffineBatch(nn.Module):
    """Rotate, scale and shift each image of a batch about its centre by amounts drawn uniformly and independently.

    torchvision's `RandomAffine` draws once a batch; its `affine` with the same angle, scale and shift gives the same
    picture as this does (up to its rounding of shifts to whole pixels).

    Args:
        degrees: Largest rotation either way, in degrees, 0 or more.
        translate: Largest shift either way, as a fraction of the height and of the width, 0 or more.
        scale: Largest change of size either way, as a fraction below 1: 0.1 draws from 0.9 to 1.1.

    Raises:
        UserError: An amount is out of its bounds.
    """

    def __init__(self, degrees: float = 10.0, translate: float = 0.1, scale: float = 0.1) -> None:
        super().__init__()
        if degrees < 0 or translate < 0 or not 0 <= scale < 1:
            raise UserError(
                "RandomAffineBatch takes degrees and translate from 0 up and a scale from 0 to below 1, not "
                f"degrees {degrees}, translate {translate}, scale {scale}."
            )
        self.degrees = degrees
        self.translate = translate
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        """Distorted images, float (N, C, H, W), of images (N, C, H, W) of any dtype with a background of 0."""
        images = images.float()
        draws = torch.rand(4, len(images), device=images.device) * 2 - 1  # (4, N), -1..1
        return affine(
            images,
            angle=draws[0] * math.radians(self.degrees),
            scale=1 + draws[1] * self.scale,
            shift=draws[2:] * self.translate,
        )


def affine(images: Tensor, angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Images (N, C, H, W) turned clockwise by angle (N,) in radians, scaled by scale (N,), shifted by shift (2, N).

    The shift counts right and down, as fractions of the width and the height; it is applied last.
    """
    height, width = images.shape[-2:]
    right = pixel_centers(width, images.device)[None, None] - 2 * shift[0, :, None, None]  # (N, 1, W)
    down = pixel_centers(height, images.device)[None, :, None] - 2 * shift[1, :, None, None]  # (N, H, 1)
    cos, sin = (torch.cos(angle) / scale)[:, None, None], (torch.sin(angle) / scale)[:, None, None]
    ratio = height / width  # as each axis is stretched to -1..1
    # the inverse map: where in the input an output pixel looks; affine_grid gives the same in six times the time
    grid = torch.stack((cos * right + sin * ratio * down, cos * down - sin / ratio * right), dim=-1)  # (N, H, W, 2)
    return F.grid_sample(images, grid, align_corners=False)
