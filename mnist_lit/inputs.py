"""Images and weights from outside, in forms that torch would misread or refuse: check or adapt them."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from mnist_lit import UserError

CHECK_EVERY_S = 1.0
"""Seconds between two looks at the values of images on a GPU, each of which waits for the GPU."""


class ImageCheck:
    """Checks that images are a tensor (N, 1, 28, 28), and neither scaled to 0..1 nor normalized, the usual mistakes.

    Shapes are always checked. Values are checked only if the type is not uint8: of every batch on the CPU, and of the
    first one and then one per second on another device.
    """

    def __init__(self) -> None:
        self.checked_at = -math.inf

    def __call__(self, images: Any) -> None:
        """Check a batch.

        Raises:
            UserError: It has another form; the message names the right one.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1:] != (1, 28, 28):
            form = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UserError(
                f"Images must be a tensor (N, 1, 28, 28), gray, with pixels 0..255, white on black, not {form}."
            )
        if images.dtype == torch.uint8 or torch.compiler.is_compiling():
            return
        is_due = images.device.type == "cpu" or time.monotonic() > self.checked_at + CHECK_EVERY_S
        if not is_due or images.device.type == "meta" or not len(images):
            return
        self.checked_at = time.monotonic()
        peak = images.detach().float().abs().amax().item()
        if 0 < peak < 4:  # 1 after ToTensor, 2.8 after Normalize
            raise UserError(
                f"Pixels must be 0..255, and these {images.dtype} images have none above {peak:.2f}: leave out "
                "ToTensor and Normalize (PILToTensor gives uint8), or multiply images 0..1 by 255."
            )


def ignore_compilation(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let weights be loaded from a compiled module, or into one: torch.compile (2.15) puts `_orig_mod.` into names.

    Args:
        module: The module that loads them.
        state_dict: The weights by name; the names are changed to those of the module.
        prefix: As torch gives it to hooks; not empty if the whole module is compiled.
    """
    if prefix:
        return
    ours = {plain_name(name): name for name in module.state_dict()}
    for name in list(state_dict):
        state_dict[ours.get(plain_name(name), name)] = state_dict.pop(name)


def plain_name(name: str) -> str:
    """The name of a weight, whether or not its module is compiled."""
    return name.replace("_orig_mod.", "")
