"""Preprocessing: raw pixels to the input of a backbone, deterministic, without trained parameters, exportable."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_lit import UserError

MEAN, STD = 0.1307, 0.3081
"""Mean and standard deviation of the pixels of MNIST's 60,000 training images, scaled to 0..1."""

DIGIT_SIZE = 28
"""Height and width in pixels of MNIST's images."""

SPREAD = 0.57
"""Standard deviation of the ink, in x and in y, that rescaling does not change; 1 is half the image's side."""


def pixel_centers(size: int, device: torch.device) -> Tensor:
    """Centers of the pixels along an axis, (size,), in the coordinates of affine_grid: the image spans -1..1."""
    return (torch.arange(size, dtype=torch.float32, device=device) * 2 + 1) / size - 1


class Straighten(nn.Module):
    """Deskew, center and rescale each digit by the moments of its ink, in one resampling.

    A digit slanted by s columns per row has covariance(x, y) / variance(y) = s, so the image is sheared back by s about
    its center of mass (deslanting: LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998, section
    III.A). Rescaling goes only halfway to a common size, so a 1 stays narrower than a 0 (moment normalization: Liu et
    al., Handwritten digit recognition: investigation of normalization and feature extraction techniques, 2004).

    Args:
        deskew: Shear the digit upright.
        center: Move the center of mass to the middle of the image.
        rescale: Replace the ink's standard deviations in x and in y by their geometric means with `SPREAD`.
        square_ink: Weigh each pixel by the square of its ink in all moments, so that gray noise hardly counts.
    """

    def __init__(self, deskew: bool, center: bool, rescale: bool, square_ink: bool = False) -> None:
        super().__init__()
        self.square_ink = square_ink
        self.deskew = deskew
        self.center = center
        self.rescale = rescale

    def forward(self, images: Tensor) -> Tensor:
        """Straighten float images (N, 1, H, W) with background 0; a blank image stays blank."""
        height, width = images.shape[-2:]
        x, y = pixel_centers(width, images.device), pixel_centers(height, images.device)
        ink = images.square() if self.square_ink else images
        # of each row, the sums of the ink, of ink * x and of ink * x², in one pass over the pixels: (N, 1, H) each
        rows, rows_x, rows_xx = (ink @ torch.stack((torch.ones_like(x), x, x.square()), dim=-1)).unbind(-1)
        mass = rows.sum(-1, keepdim=True).clamp(min=1e-6)  # (N, 1, 1), like all moments
        mean_x = rows_x.sum(-1, keepdim=True) / mass
        mean_y = (rows * y).sum(-1, keepdim=True) / mass
        deviation = y - mean_y  # (N, 1, H)
        variance_y = ((rows * deviation.square()).sum(-1, keepdim=True) / mass).clamp(min=1e-6)
        covariance = (rows_x * deviation).sum(-1, keepdim=True) / mass
        slant = covariance / variance_y if self.deskew else torch.zeros_like(mean_x)
        zoom_x = zoom_y = torch.ones_like(mean_x)
        if self.rescale:
            variance_x = rows_xx.sum(-1, keepdim=True) / mass - mean_x.square() - slant * covariance  # after the shear
            zoom_x, zoom_y = (
                variance.clamp(min=1e-3).sqrt().div(SPREAD).sqrt() for variance in (variance_x, variance_y)
            )
        # the inverse map: where in the input each output pixel samples; affine_grid takes six times as long
        # the place of the center of mass in the output
        center_x, center_y = (0.0, 0.0) if self.center else (mean_x, mean_y)
        offset_y = zoom_y * (y - center_y)  # (N, 1, H)
        offset_x = zoom_x * (x - center_x)  # (N, 1, W)
        from_y = mean_y + offset_y
        from_x = (mean_x + slant * offset_y).transpose(1, 2) + offset_x  # (N, H, W)
        grid = torch.stack((from_x, from_y.transpose(1, 2).expand_as(from_x)), dim=-1)
        return F.grid_sample(images, grid, align_corners=False)


class Clean(nn.Module):
    """Make faint ink as bright as any other, and remove what is darker than a threshold.

    Without this, the moments of `Straighten` count every gray pixel, so noise and low contrast mislead them.

    Args:
        contrast: Divide each image by its maximum.
        threshold: Soft threshold t, from 0 to below 1: max(x - t, 0) / (1 - t), which keeps 1 at 1 and has no step
            (Donoho, De-noising by soft-thresholding, 1995).
    """

    def __init__(self, contrast: bool, threshold: float) -> None:
        super().__init__()
        self.contrast = contrast
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        """Clean float images (N, 1, H, W) with values 0..1 and background 0; a blank image stays blank."""
        if self.contrast:
            images = images / images.amax(dim=(-2, -1), keepdim=True).clamp(min=1 / 255)
        return (images - self.threshold).clamp(min=0) / (1 - self.threshold) if self.threshold else images


class Preprocess(nn.Module):
    """Scale pixels to 0..1, clean, straighten, resize and normalize.

    Computes in float32 whatever the precision of the network, because moments need it; only the result has the type of
    the network's weights.

    Args:
        image_size: Height and width of the result in pixels, 8 or more.
        contrast: Divide each image by its brightest pixel.
        threshold: Soft threshold that removes noise, as a fraction of white from 0 to below 1.
        deskew: Shear each digit upright by its moments.
        center: Move each digit's center of mass to the middle.
        rescale: Scale each digit halfway to a common spread in x and in y.
        square_ink: Weigh each pixel by the square of its ink in these moments.

    Raises:
        UserError: The image size is below 8, or the threshold out of range.
    """

    like: Tensor
    """One value, whose type is that of the result: it changes with the weights."""

    def __init__(
        self,
        image_size: int,
        contrast: bool = False,
        threshold: float = 0.0,
        deskew: bool = False,
        center: bool = False,
        rescale: bool = False,
        square_ink: bool = False,
    ) -> None:
        super().__init__()
        if image_size < 8:
            raise UserError(f"--model.image_size must be 8 or more, not {image_size}.")
        if not 0 <= threshold < 1:
            raise UserError(f"--model.threshold must be from 0 to below 1, not {threshold}.")
        self.image_size = image_size
        self.clean = Clean(contrast, threshold)
        moves = deskew or center or rescale
        self.straighten = Straighten(deskew, center, rescale, square_ink) if moves else nn.Identity()
        # antialiased resizing is linear: one matrix for rows and columns takes a third of the time of interpolate
        columns = torch.eye(DIGIT_SIZE, dtype=torch.float32)[None, None]  # (1, 1, 28, 28)
        resize = F.interpolate(columns, (image_size, DIGIT_SIZE), mode="bilinear", align_corners=False, antialias=True)
        # not a buffer: weight averaging would average it, too, and change its last bits
        self.resize = resize[0, 0]  # (image_size, 28)
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels 0..255 (N, 1, 28, 28) of any dtype to the backbone's input, float (N, 1, image_size, image_size)."""
        return self.normalize(self.prepare(images))

    def prepare(self, images: Tensor) -> Tensor:
        """Clean, straighten and resize pixels 0..255 (N, 1, 28, 28) to float 0..1 (N, 1, image_size, image_size).

        Augment after this step, which would undo the augmentation, and before `normalize`, because the background must
        be 0.
        """
        if torch.is_autocast_enabled(images.device.type):
            with torch.autocast(images.device.type, enabled=False):
                return self.prepare(images)
        images = self.straighten(self.clean(images.float() / 255))
        if self.image_size == DIGIT_SIZE:
            return images
        resize = self.resize.to(images.device)
        return resize @ images @ resize.T

    def normalize(self, images: Tensor) -> Tensor:
        """Subtract MNIST's mean from images (N, 1, H, W) with values 0..1 and divide by its standard deviation."""
        return ((images - MEAN) / STD).to(self.like.dtype)
