"""From raw pixels to the input of a backbone: deterministic, without trained parameters, and exportable."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = 0.1307, 0.3081
"""Mean and standard deviation of the pixels of MNIST's 60,000 training images, scaled to 0..1."""

DIGIT_SIZE = 28
"""Height and width in pixels of MNIST's images."""


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
        # of each row, the mass and the mass times x, in one pass over the pixels: (N, 1, H) each
        rows, rows_x = (images @ torch.stack((torch.ones_like(x), x), dim=-1)).unbind(-1)
        mass = rows.sum(-1).clamp(min=1e-6)  # (N, 1)
        mean_x, mean_y = rows_x.sum(-1) / mass, (rows * y).sum(-1) / mass
        slant = torch.zeros_like(mean_x)
        if self.deskew:
            deviation = y - mean_y[..., None]  # (N, 1, H)
            slant = (rows_x * deviation).sum(-1) / (rows * deviation.square()).sum(-1).clamp(min=1e-6)
        # where in the input each pixel of the output looks; affine_grid gives the same in six times the time
        shift_x, shift_y = (mean_x, mean_y) if self.center else (-slant * mean_y, torch.zeros_like(mean_y))
        from_x = x + (slant * y + shift_x)[..., None]  # (N, H, W)
        from_y = (y + shift_y)[..., None].expand_as(from_x)
        return F.grid_sample(images, torch.stack((from_x, from_y), dim=-1), align_corners=False)


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
        # antialiased resizing is linear, so the same matrix resizes rows and columns, in a third of the time
        columns = torch.eye(DIGIT_SIZE)[None, None]  # (1, 1, 28, 28)
        resize = F.interpolate(columns, (image_size, DIGIT_SIZE), mode="bilinear", align_corners=False, antialias=True)
        self.register_buffer("resize", resize[0, 0], persistent=False)  # (image_size, 28)

    resize: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """The backbone's input: float (N, 1, image_size, image_size), of pixels 0..255 (N, 1, 28, 28), any dtype."""
        images = self.straighten(images.float() / 255)
        if self.image_size != DIGIT_SIZE:
            images = self.resize @ images @ self.resize.T
        return (images - MEAN) / STD
