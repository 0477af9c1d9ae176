"""From raw pixels to the input of a backbone: deterministic, without trained parameters, and exportable."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = 0.1307, 0.3081
"""Mean and standard deviation of the pixels of MNIST's 60,000 training images, scaled to 0..1."""

DIGIT_SIZE = 28
"""Height and width in pixels of MNIST's images."""


SPREAD = 0.57
"""Standard deviation in x and in y of the ink that rescaling leaves as it is, in halves of the image's side."""


def pixel_centers(size: int, device: torch.device) -> Tensor:
    """Centres of the pixels along an axis (size,), in the coordinates of affine_grid: the image spans -1..1."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1


class Straighten(nn.Module):
    """Deskew each digit by its moments, centre it, rescale it, or several of them, in one resampling.

    With the ink as a mass distribution, a digit slanted by s columns a row has covariance(x, y) / variance(y) = s. The
    image is sheared back by s about its centre of mass (deslanting: LeCun et al., Gradient-Based Learning Applied to
    Document Recognition, 1998, section III.A). That centre goes to the middle, and the spread of the ink in x and in y
    half the way to a common one, so that a 1 stays narrower than a 0 (moment normalisation: Liu et al., Handwritten
    digit recognition: investigation of normalization and feature extraction techniques, 2004).

    Args:
        deskew: Shear the digit upright.
        center: Move the centre of mass to the middle of the image.
        rescale: Replace the standard deviations of the ink in x and in y by their geometric means with `SPREAD`.
    """

    def __init__(self, deskew: bool, center: bool, rescale: bool) -> None:
        super().__init__()
        self.deskew = deskew
        self.center = center
        self.rescale = rescale

    def forward(self, images: Tensor) -> Tensor:
        """Straightened images (N, 1, H, W), of float images (N, 1, H, W) with a background of 0; a blank one stays."""
        height, width = images.shape[-2:]
        x, y = pixel_centers(width, images.device), pixel_centers(height, images.device)
        # of each row, the mass and the mass times x and x squared, in one pass over the pixels: (N, 1, H) each
        rows, rows_x, rows_xx = (images @ torch.stack((torch.ones_like(x), x, x.square()), dim=-1)).unbind(-1)
        mass = rows.sum(-1).clamp(min=1e-6)  # (N, 1)
        mean_x, mean_y = rows_x.sum(-1) / mass, (rows * y).sum(-1) / mass
        deviation = y - mean_y[..., None]  # (N, 1, H)
        variance_y = ((rows * deviation.square()).sum(-1) / mass).clamp(min=1e-6)
        covariance = (rows_x * deviation).sum(-1) / mass
        slant = covariance / variance_y if self.deskew else torch.zeros_like(mean_x)
        zoom_x = zoom_y = torch.ones_like(mean_x)
        if self.rescale:
            variance_x = rows_xx.sum(-1) / mass - mean_x.square() - slant * covariance  # once it is sheared
            zoom_x, zoom_y = (
                variance.clamp(min=1e-3).sqrt().div(SPREAD).sqrt() for variance in (variance_x, variance_y)
            )
        # where in the input each pixel of the output looks; affine_grid gives the same in six times the time
        kept = 0 if self.center else 1  # whether the centre of mass stays where it is
        offset_y = zoom_y[..., None] * (y - kept * mean_y[..., None])  # (N, 1, H)
        offset_x = zoom_x[..., None] * (x - kept * mean_x[..., None])  # (N, 1, W)
        from_y = mean_y[..., None] + offset_y
        from_x = (mean_x[..., None] + slant[..., None] * offset_y).transpose(1, 2) + offset_x  # (N, H, W)
        grid = torch.stack((from_x, from_y.transpose(1, 2).expand_as(from_x)), dim=-1)
        return F.grid_sample(images, grid, align_corners=False)


class Preprocess(nn.Module):
    """Scale to 0..1, straighten, resize, normalise.

    Args:
        image_size: Height and width in pixels of the result.
        deskew: Shear each digit upright by its moments.
        center: Move each digit's centre of mass to the middle.
        rescale: Bring each digit half the way to a common spread in x and in y.
    """

    def __init__(self, image_size: int, deskew: bool = False, center: bool = False, rescale: bool = False) -> None:
        super().__init__()
        self.image_size = image_size
        any_of_them = deskew or center or rescale
        self.straighten = Straighten(deskew, center, rescale) if any_of_them else nn.Identity()
        # antialiased resizing is linear, so the same matrix resizes rows and columns, in a third of the time
        columns = torch.eye(DIGIT_SIZE)[None, None]  # (1, 1, 28, 28)
        resize = F.interpolate(columns, (image_size, DIGIT_SIZE), mode="bilinear", align_corners=False, antialias=True)
        # no buffer: weight averaging would average it too, and let its last bits drift, which no checkpoint holds
        self.resize = resize[0, 0]  # (image_size, 28)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Change the matrix's device or type as that of weights and buffers."""
        self.resize = fn(self.resize)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        """The backbone's input: float (N, 1, image_size, image_size), of pixels 0..255 (N, 1, 28, 28), any dtype."""
        return self.normalise(self.prepare(images))

    def prepare(self, images: Tensor) -> Tensor:
        """Images straightened and resized, float 0..1 (N, 1, image_size, image_size), of pixels 0..255 (N, 1, 28, 28).

        What distorts images at random comes after this, which would undo it, and before the normalisation, which gives
        the background another value than 0.
        """
        images = self.straighten(images.float() / 255)
        return self.resize @ images @ self.resize.T if self.image_size != DIGIT_SIZE else images

    def normalise(self, images: Tensor) -> Tensor:
        """Images (N, 1, H, W) of values 0..1, with MNIST's mean subtracted and by its standard deviation divided."""
        return (images - MEAN) / STD
