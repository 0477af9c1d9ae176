"""The metrics of each stage."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall
from torchmetrics.wrappers import ClasswiseWrapper

METRIC_BUFFER_STEPS = 100
"""Training steps whose outputs are buffered and measured together: measuring each step alone costs 5 % of it."""


class CrossEntropy(Metric):
    """Mean cross-entropy over images, independent of how they are split into batches and processes."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # float64 makes the float32 result independent of the order of addition; Apple's GPUs have no float64
        dtype = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("total", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (N, 10) and labels (N,)."""
        self.total += F.cross_entropy(logits.float(), labels, reduction="none").to(self.total.dtype).sum()
        self.count += len(labels)

    def compute(self) -> Tensor:
        """The mean in nats, float32."""
        return (self.total / self.count).float()


class StageMetrics(MetricCollection):
    """Accuracy and mean cross-entropy of a stage, logged as `accuracy/<stage>` and `loss/<stage>`.

    Args:
        stage: "train", "val" or "test".
        per_digit: Also compute the recall of each digit, logged as `recall/0` to `recall/9`.
    """

    def __init__(self, stage: str, per_digit: bool = False) -> None:
        metrics: dict[str, Metric | MetricCollection] = {
            # "micro" is correct images / all images; torchmetrics' default averages the accuracies of the digits
            f"accuracy/{stage}": MulticlassAccuracy(10, average="micro", validate_args=False),
            f"loss/{stage}": CrossEntropy(),
        }
        if per_digit:
            recall = MulticlassRecall(10, average=None, validate_args=False)
            metrics["recall"] = ClasswiseWrapper(recall, prefix="recall/")
        super().__init__(metrics, compute_groups=False)  # the metrics share no state


class BufferedMetrics(StageMetrics):
    """Stage metrics that store the outputs of several steps and measure them together."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.buffer: list[tuple[Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Store the logits (N, 10) and labels (N,) of a step."""
        self.buffer.append((logits.detach().float(), labels))
        if len(self.buffer) == METRIC_BUFFER_STEPS:
            self._measure_buffer()

    def compute(self) -> dict[str, Tensor]:
        """The metrics of all steps since the last reset."""
        self._measure_buffer()
        return super().compute()

    def reset(self) -> None:
        """Forget all steps."""
        self.buffer.clear()
        super().reset()

    def _measure_buffer(self) -> None:
        if self.buffer:
            logits, labels = zip(*self.buffer, strict=True)
            super().update(torch.cat(logits), torch.cat(labels))
            self.buffer.clear()
