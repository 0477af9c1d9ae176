import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from mnist_lit import UserError
from mnist_lit.backbones import DS_CNN_V1, DS_CNN_V2
from mnist_lit.classifier import Batch, DigitClassifier, PreparedBatch


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    return torch.randint(0, 200, (20, 1, 28, 28), dtype=torch.uint8), torch.arange(20) % 10


class Brighten(nn.Module):
    """An augmentation with a visible effect."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.2


def test_only_training_augments(batch: Batch) -> None:
    plain = DigitClassifier(DS_CNN_V2()).eval()
    augmented = copy.deepcopy(plain)
    augmented.augment = Brighten()
    assert plain.training_step(batch, 0) != augmented.training_step(batch, 0)
    assert torch.equal(plain.predict_step(batch, 0), augmented.predict_step(batch, 0))
    assert torch.equal(plain.test_step(batch, 0), augmented.test_step(batch, 0))


def test_steps_update_the_metrics_of_their_stage(batch: Batch) -> None:
    model = DigitClassifier(DS_CNN_V2()).eval()
    logits = model(batch[0])
    expected = (logits.argmax(1) == batch[1]).float().mean(), nn.functional.cross_entropy(logits, batch[1])
    model.training_step(batch, 0)
    model.validation_step(batch, 0)
    model.test_step(batch, 0)
    for stage, metrics in (("train", model.train_metrics), ("val", model.val_metrics), ("test", model.test_metrics)):
        figures = metrics.compute()
        assert figures[f"accuracy/{stage}"] == expected[0]
        torch.testing.assert_close(figures[f"loss/{stage}"], expected[1])


def test_prepared_images_train_as_raw_ones(batch: Batch) -> None:
    model = DigitClassifier(DS_CNN_V2(), image_size=16, deskew=True).eval()
    images, labels = batch
    prepared = model.preprocess.prepare(images)
    assert torch.equal(model.training_step(batch, 0), model.training_step(PreparedBatch(prepared, labels), 0))


def test_hyperparameters_hold_no_modules() -> None:
    model = DigitClassifier(DS_CNN_V1(), Brighten(), lr=0.1)
    assert model.hparams["lr"] == 0.1
    assert model.hparams["backbone"] is model.hparams["augment"] is None


def test_image_size_below_8_is_refused() -> None:
    with pytest.raises(UserError, match=r"--model.image_size must be 8 or more, not 7"):
        DigitClassifier(DS_CNN_V1(), image_size=7)


def test_learning_rate_rises_to_its_peak_and_falls() -> None:
    model = DigitClassifier(DS_CNN_V1(), lr=0.1, warmup=0.2)
    model.trainer = Trainer(max_steps=100, logger=False, enable_checkpointing=False, accelerator="cpu")
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
