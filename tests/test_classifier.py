import copy
import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from mnist_lit import UserError, classifier
from mnist_lit.backbones import DS_CNN_V1, DS_CNN_V2
from mnist_lit.classifier import DigitClassifier


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 7},
        {"lr": 0.0},
        {"lr": math.inf},
        {"weight_decay": -1.0},
        {"warmup": 1.0},
        {"warmup": -0.1},
    ],
)
def test_a_number_out_of_bounds_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"--model.{next(iter(options))} must be"):
        DigitClassifier(DS_CNN_V1(), **options)  # type: ignore[arg-type]


class Shift(nn.Module):
    """An augmentation that shows."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 0.2


def test_augmentation_is_for_training_alone() -> None:
    torch.manual_seed(0)
    batch = torch.randint(0, 200, (20, 1, 28, 28), dtype=torch.uint8), torch.arange(20) % 10
    plain = DigitClassifier(DS_CNN_V2()).eval()
    augmented = copy.deepcopy(plain)
    augmented.augment = Shift()
    assert plain.training_step(batch, 0) != augmented.training_step(batch, 0)
    assert torch.equal(plain.predict_step(batch, 0), augmented.predict_step(batch, 0))
    for model in (plain, augmented):
        model.test_step(batch, 0)
    ours, theirs = (model.metrics.test.compute() for model in (plain, augmented))
    assert ours == theirs
    assert ours["test/accuracy"] == (plain(batch[0]).argmax(1) == batch[1]).float().mean()
    expected = nn.functional.cross_entropy(plain(batch[0]), batch[1])
    torch.testing.assert_close(ours["test/loss"], expected)


def test_each_test_counts_anew() -> None:
    batch = torch.zeros(20, 1, 28, 28, dtype=torch.uint8), torch.arange(20) % 10
    model = DigitClassifier(DS_CNN_V2()).eval()
    for _ in range(2):
        model.on_test_epoch_start()
        model.test_step(batch, 0)
    assert model.metrics.confusion.compute().sum() == 20


def test_the_learning_rate_rises_to_its_peak_and_falls() -> None:
    model = DigitClassifier(DS_CNN_V1(), lr=0.1, warmup=0.2)
    trainer = Trainer(max_steps=100, logger=False, enable_checkpointing=False, accelerator="cpu")
    model.trainer = trainer
    configured: Any = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates.index(max(rates)) == 19
    assert max(rates) == pytest.approx(0.1)
    assert rates[0] < 0.01
    assert rates[-1] < 1e-5


def test_training_is_measured_in_groups_of_steps_as_it_would_be_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "MEASURED_AT_ONCE", 2)
    torch.manual_seed(0)
    model = DigitClassifier(DS_CNN_V2()).eval()
    batches = [
        (torch.randint(0, 256, (size, 1, 28, 28), dtype=torch.uint8), torch.arange(size)) for size in (10, 10, 4)
    ]
    losses = [model.training_step(batch, index).item() for index, batch in enumerate(batches)]
    assert len(model.outputs) == 1  # of the last step
    model._measure_outputs()
    measured = model.metrics.fit.compute()
    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    assert measured["train/accuracy"] == (model(images).argmax(1) == labels).float().mean()
    expected = sum(loss * len(batch[1]) for loss, batch in zip(losses, batches, strict=True)) / 24
    assert measured["train/loss"].item() == pytest.approx(expected)
    model.training_step(batches[0], 0)
    model.on_train_epoch_start()
    assert not model.outputs
