"""Whether an image is unlike the digits that a network was trained on."""

from torch import Tensor

SMALLEST_LOGIT = 1.8
"""Largest logit that 2 % of MNIST's training images do not reach, with the tracked DS_CNN_V3; 2.1 and 1.4 with V1, V2.

Probabilities say less: a letter has low logits for all digits, but often one that is far above the others.
"""


def is_unlike_digits(logits: Tensor) -> Tensor:
    """Whether each image is unlike MNIST's digits, bool (N,), from its logits (N, 10)."""
    return logits.amax(dim=1) < SMALLEST_LOGIT
