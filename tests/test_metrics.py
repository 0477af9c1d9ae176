import pytest
import torch
from torch import Tensor, nn

from mnist_lit import metrics
from mnist_lit.metrics import BufferedMetrics, CrossEntropy, StageMetrics


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Logits (1000, 10) and labels (1000,)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1000, 10, generator=generator), torch.randint(10, (1000,), generator=generator)


def test_figures_equal_torch(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    measured = StageMetrics("val")
    measured.update(logits, labels)
    figures = measured.compute()
    assert figures.keys() == {"accuracy/val", "loss/val"}
    assert figures["accuracy/val"] == (logits.argmax(1) == labels).float().mean()
    torch.testing.assert_close(figures["loss/val"], nn.functional.cross_entropy(logits, labels))


def test_recall_of_each_digit_is_its_accuracy(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    measured = StageMetrics("test", per_digit=True)
    measured.update(logits, labels)
    figures = measured.compute()
    for digit in range(10):
        is_digit = labels == digit
        assert figures[f"recall/{digit}"] == (logits[is_digit].argmax(1) == digit).float().mean()


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_cross_entropy_does_not_depend_on_the_batch_size(batch: tuple[Tensor, Tensor], batch_size: int) -> None:
    whole, parts = CrossEntropy(), CrossEntropy()
    whole.update(*batch)
    for logits, labels in zip(*(torch.split(tensor, batch_size) for tensor in batch), strict=True):
        parts.update(logits, labels)
    assert torch.equal(whole.compute(), parts.compute())


def test_buffered_metrics_equal_immediate_ones(batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRIC_BUFFER_STEPS", 3)
    immediate, buffered = StageMetrics("train"), BufferedMetrics("train")
    for logits, labels in zip(*(torch.split(tensor, 130) for tensor in batch), strict=True):  # 8 steps
        immediate.update(logits, labels)
        buffered.update(logits, labels)
    assert len(buffered.buffer) == 2
    assert buffered.compute() == immediate.compute()
    buffered.update(logits, labels)
    buffered.reset()
    assert not buffered.buffer
