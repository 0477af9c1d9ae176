"""What is measured while Trainer fits, validates and tests."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix


class MeanLoss(MeanMetric):
    """The mean of images' losses, in float32 the same however the images are dealt to batches and processes."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")  # any other looks for NaN, and so waits for the GPU, each step

    def compute(self) -> Tensor:
        """The mean, as float32."""
        return super().compute().float()


class Metrics(nn.Module):
    """The metrics of each stage, on the classifier's device."""

    def __init__(self) -> None:
        super().__init__()
        self.fit = _loss_and_accuracy("train")
        self.validate = _loss_and_accuracy("val")
        self.test = _loss_and_accuracy("test")
        self.watch = _loss_and_accuracy("test")  # the test set after an epoch of training (`--data.watch_test`)
        self.confusion = MulticlassConfusionMatrix(10, validate_args=False)

    def setup(self, device: torch.device) -> None:
        """Add up losses in float64, where there is one: Apple's GPUs have none."""
        if device.type != "mps":
            for metrics in (self.fit, self.validate, self.test, self.watch):
                metrics["loss"].set_dtype(torch.float64)


def _loss_and_accuracy(split: Literal["train", "val", "test"]) -> MetricCollection:
    """Logged as `split/loss` and `split/accuracy`."""
    return MetricCollection(
        {
            "loss": MeanLoss(),
            # micro: correct images over all images; torchmetrics' default averages over the digits
            "accuracy": MulticlassAccuracy(10, average="micro", validate_args=False),
        },
        prefix=f"{split}/",
        compute_groups=False,  # no state to share
    )


def measure(metrics: MetricCollection, logits: Tensor, labels: Tensor) -> None:
    """Add the cross-entropy and the accuracy of logits (N, 10) and labels (N,) to the metrics."""
    # an image's each, as MeanMetric (1.9) forgets the weights of means where it does not look for NaN
    metrics.update(value=F.cross_entropy(logits, labels, reduction="none"), preds=logits, target=labels)
