"""Every precision trains, tests and reads: pixels take the type of the weights."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import LAST, Main, accuracy, weights
from lightning.pytorch import Trainer
from PIL import Image, ImageDraw

from mnist_lit.augment import RandomAffineBatch
from mnist_lit.backbones import DS_CNN_V2
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.preprocess import Preprocess

OPTIONS = "--model.image_size=16 --model.deskew=true --model.augment=RandomAffineBatch --watch_test=true"
TYPES = {"32-true": torch.float32, "64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true", "bf16-mixed"])
def test_precision_trains_tests_and_reads(main: Main, capsys: pytest.CaptureFixture[str], precision: str) -> None:
    short = "--trainer.max_epochs=1 --trainer.limit_train_batches=2"  # longer runs diverge with 16-true
    main(f"fit {OPTIONS} {short} --trainer.precision={precision}")
    (trained,) = {w.dtype for name, w in weights(LAST).items() if name.endswith("weight")}
    assert trained == TYPES.get(precision, torch.float32)
    capsys.readouterr()
    main(f"test --ckpt_path last --trainer.precision={precision}")
    as_trained = accuracy(capsys.readouterr().out)
    main("test --ckpt_path last")
    assert accuracy(capsys.readouterr().out) == pytest.approx(as_trained, abs=0.1)
    main(f"predict --ckpt_path last --trainer.precision={precision}")
    picture = Image.new("L", (100, 100), 255)
    ImageDraw.Draw(picture).line((50, 20, 50, 80), fill=0, width=8)
    picture.save("one.png")
    main("read one.png --ckpt_path last")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_converted_classifier_trains_and_classifies(tiny_mnist: Path, dtype: torch.dtype) -> None:
    model = DigitClassifier(DS_CNN_V2(), RandomAffineBatch(), image_size=16, deskew=True)
    convert = {torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "half"}[dtype]
    getattr(model, convert)()
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    assert model(images).dtype == dtype
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, fast_dev_run=True, **quiet)
    with warnings.catch_warnings(action="ignore"):  # Lightning's, for example of few batches
        trainer.fit(model, MNISTDataModule(data_dir=str(tiny_mnist), val_size=50, batch_size=50))
    assert model.float()(images).dtype == torch.float32


def test_preprocessing_computes_in_float32_whatever_the_precision() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 255, (9, 1, 28, 28), dtype=torch.uint8)
    preprocess = Preprocess(16, deskew=True, center=True, rescale=True)
    expected = preprocess(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(preprocess(images), expected)
    assert torch.equal(preprocess.double()(images), expected.double())
    assert torch.equal(preprocess.bfloat16()(images), expected.bfloat16())
    assert torch.equal(preprocess.float()(images), expected)
