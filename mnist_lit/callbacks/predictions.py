"""Write the predictions for the test images to a file."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from mnist_lit.callbacks.processes import gather_objects
from mnist_lit.files import write_atomically


class PredictionWriter(BasePredictionWriter):
    """Write `predictions.csv`: for each test image, the two most likely digits and their probabilities."""

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="epoch")
        self.path = folder / "predictions.csv"
        self.count = 0
        """Number of predictions that have been written."""

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Gather the probabilities (N, 10) of all processes and write them in the order of the images."""
        places = torch.tensor([place for loader in batch_indices for batch in loader for place in batch])
        parts = gather_objects((places, torch.cat(list(predictions)).cpu()))
        if not trainer.is_global_zero:
            return
        places, probabilities = (torch.cat(part) for part in zip(*parts, strict=True))
        confidences, digits = probabilities[places.argsort()].topk(2, dim=1)
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        writer.writerow(["image", "digit", "confidence", "second_guess", "second_confidence"])
        for image, ((digit, second), (confidence, second_confidence)) in enumerate(
            zip(digits.tolist(), confidences.tolist(), strict=True)
        ):
            writer.writerow([image, digit, f"{confidence:.4f}", second, f"{second_confidence:.4f}"])
        write_atomically(self.path, file.getvalue().encode())
        self.count = len(digits)
