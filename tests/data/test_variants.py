from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.data.variants import add_variants

STROKES = {
    1: [(14, 4), (14, 23)],
    4: [(9, 4), (7, 14), (20, 14)],
    7: [(8, 4), (20, 4), (12, 23)],
    9: [(18, 9), (17, 23)],
}


def drawn(digit: int) -> Tensor:
    image = Image.new("L", (28, 28))
    draw = ImageDraw.Draw(image)
    draw.line(STROKES[digit], fill=255, width=2)
    if digit == 9:
        draw.ellipse((9, 4, 19, 14), outline=255, width=2)
    return torch.from_numpy(np.array(image))


def test_strokes_are_added_to_a_share_of_1_7_and_9_only() -> None:
    labels = torch.tensor([1, 4, 7, 9]).repeat_interleave(200)
    images = torch.stack([drawn(digit) for digit in labels.tolist()])[:, None]
    varied = add_variants(images, labels, share=0.3)
    assert torch.equal(varied, add_variants(images, labels, share=0.3))
    assert varied.dtype == torch.uint8
    assert (varied >= images).all()
    is_changed = (varied != images).flatten(1).any(dim=1)
    share = {digit: is_changed[labels == digit].float().mean().item() for digit in STROKES}
    assert share.pop(4) == 0
    assert all(0.2 < value < 0.4 for value in share.values()), share


def test_variants_are_the_known_ones() -> None:
    parts = {1: (slice(4, 23), slice(4, 13)), 7: (slice(12, 18), slice(8, 24)), 9: (slice(18, 28), slice(4, 14))}
    for digit, (rows, columns) in parts.items():  # left of a 1, across a 7, left of the tail of a 9
        images = drawn(digit)[None, None].repeat(100, 1, 1, 1)
        varied = add_variants(images, torch.full((100,), digit), share=1)
        added = (varied.int() - images.int())[:, 0, rows, columns].amax(dim=(1, 2))
        assert (added > 100).float().mean() > 0.2, digit


def test_validation_images_stay_as_they_are(tiny_mnist: Path) -> None:
    plain, varied = (MNISTDataModule(data_dir=str(tiny_mnist), val_size=50, variants=share) for share in (0, 1))
    for stage, differs in (("fit", True), ("validate", False)):
        for data in (plain, varied):
            data.setup(stage)
        assert torch.equal(plain.splits["val"].images, varied.splits["val"].images)
        assert torch.equal(plain.splits["train"].labels, varied.splits["train"].labels)
        assert torch.equal(plain.splits["train"].images, varied.splits["train"].images) != differs
