"""The metrics, augmentation and learning rates of a fit and a test by a bare Trainer."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.bare import trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mnist_lit.backbones import DS_CNN_V1, DS_CNN_V2
from mnist_lit.classifier import DigitClassifier


@pytest.fixture(autouse=True)
def ignore_warnings() -> Iterator[None]:
    with warnings.catch_warnings(action="ignore"):  # Lightning's, for example of few batches
        yield


def random_batches(*sizes: int) -> DataLoader[Any]:
    batches: Any = [(torch.randint(256, (size, 1, 28, 28)).byte(), torch.arange(size) % 10) for size in sizes]
    return DataLoader(batches, batch_size=None)


class CountCalls(nn.Module):
    """An augmentation that counts its batches."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images


def test_only_training_is_augmented() -> None:
    augment = CountCalls()
    model, batches = DigitClassifier(DS_CNN_V2(), augment), random_batches(20)
    trainer(max_epochs=3).fit(model, batches, batches)
    assert augment.calls == 3
    trainer().validate(model, batches, verbose=False)
    trainer().test(model, batches, verbose=False)
    trainer().predict(model, batches)
    assert augment.calls == 3


def test_test_metrics_are_means_over_all_images() -> None:
    torch.manual_seed(0)
    model = DigitClassifier(DS_CNN_V2())
    batches = random_batches(20, 10)
    for _ in range(2):  # the second test counts from zero
        (metrics,) = trainer().test(model, batches, verbose=False)
        images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        logits = model.eval()(images)
        is_right = (logits.argmax(1) == labels).float()
        assert metrics["accuracy/test"] == pytest.approx(is_right.mean().item())
        assert metrics["loss/test"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        for digit in range(10):
            assert metrics[f"recall/{digit}"] == pytest.approx(is_right[labels == digit].mean().item())


class Record(Callback):
    """Records each training step's loss, accuracy, number of images and learning rate."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float, int]] = []
        self.rates: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module.backbone, nn.Module)
        pl_module.backbone.register_forward_hook(self.store_logits)

    def store_logits(self, module: nn.Module, args: Any, logits: Tensor) -> None:
        self.logits = logits

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        _, labels = batch
        accuracy = (self.logits.argmax(1) == labels).float().mean().item()
        self.steps.append((outputs["loss"].item(), accuracy, len(labels)))


def test_training_metrics_are_means_over_the_images_of_an_epoch() -> None:
    torch.manual_seed(0)
    record = Record()
    batches = random_batches(*(2 + number % 5 for number in range(120)))
    fit = trainer(record, max_epochs=2)
    fit.fit(DigitClassifier(DS_CNN_V2()), batches)
    losses, accuracies, sizes = (torch.tensor(column) for column in zip(*record.steps[120:], strict=True))
    for tag, values in (("loss/train", losses), ("accuracy/train", accuracies)):
        expected = (values * sizes).sum() / sizes.sum()
        assert fit.callback_metrics[tag].item() == pytest.approx(expected.item(), rel=1e-5)


def test_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    record = Record()
    trainer(record, max_epochs=2).fit(DigitClassifier(DS_CNN_V1(), lr=0.1, warmup=0.2), random_batches(*[2] * 50))
    assert len(record.rates) == 100
    assert record.rates.index(max(record.rates)) == 19
    assert max(record.rates) == pytest.approx(0.1)
    assert record.rates[0] < 0.01
    assert record.rates[-1] < 1e-5
