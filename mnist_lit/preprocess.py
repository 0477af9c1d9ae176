"""From raw pixels to the input of a backbone: deterministic, without trained parameters, and exportable."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = 0.1307, 0.3081
"""Mean and standard deviation of the pixels of MNIST's 60,000 training images, scaled to 0..1."""


class Straighten(nn.Module):
    """Deskew each digit by its moments, or move its centre of mass to the image's centre, or both, in one resampling.

    With the ink as a mass distribution, a digit slanted by s columns a row has covariance(x, y) / variance(y) = s. The
    image is sheared back by s about its centre of mass (deslanting: LeCun et al., Gradient-Based Learning Applied to
    Document Recognition, 1998, section III.A).

    Args:
        deskew: Shear the digit upright.
        center: Move the centre of mass to the middle of the image.
    """

    def __init__(self, deskew: bool, center: bool) -> None:
        super().__init__()
        self.deskew = deskew
        self.center = center

    def forward(self, images: Tensor) -> Tensor:
        """Straightened images (N, 1, H, W), of float images (N, 1, H, W) with a background of 0; a blank one stays."""
        height, width = images.shape[-2:]
        # pixel centres in the normalised coordinates of affine_grid: the image spans -1..1
        x = (torch.arange(width, device=images.device) * 2 + 1) / width - 1
        y = (torch.arange(height, device=images.device) * 2 + 1) / height - 1
        weights = images / images.sum((-2, -1), keepdim=True).clamp(min=1e-6)  # (N, 1, H, W)
        columns, rows = weights.sum(-2), weights.sum(-1)  # (N, 1, W), (N, 1, H)
        mean_x, mean_y = (columns * x).sum(-1), (rows * y).sum(-1)  # (N, 1)
        deviation_y = y - mean_y[..., None]  # (N, 1, H)
        slant = torch.zeros_like(mean_x)
        if self.deskew:
            covariance = ((weights * x).sum(-1) * deviation_y).sum(-1)
            slant = covariance / (rows * deviation_y.square()).sum(-1).clamp(min=1e-6)
        # the output's (x, y) shows the input's (x + slant * y + shift_x, y + shift_y)
        if self.center:
            shift_x, shift_y = mean_x, mean_y
        else:
            shift_x, shift_y = -slant * mean_y, torch.zeros_like(mean_y)
        one, zero = torch.ones_like(slant), torch.zeros_like(slant)
        theta = torch.stack((one, slant, shift_x, zero, one, shift_y), dim=-1).view(-1, 2, 3)
        grid = F.affine_grid(theta, [images.shape[0], 1, height, width], align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class Preprocess(nn.Module):
    """Scale to 0..1, straighten, resize, normalise.

    Args:
        image_size: Height and width in pixels of the result.
        deskew: Shear each digit upright by its moments.
        center: Move each digit's centre of mass to the middle.
    """

    def __init__(self, image_size: int, deskew: bool, center: bool) -> None:
        super().__init__()
        self.image_size = image_size
        self.straighten = Straighten(deskew, center) if deskew or center else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """The backbone's input: float (N, 1, image_size, image_size), of pixels 0..255 (N, 1, H, W), any dtype."""
        images = self.straighten(images.float() / 255)
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return (images - MEAN) / STD
