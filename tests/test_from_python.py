"""The classifier, the data module and the datasets in a script or notebook, without the command line."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bare import fit, loader, trainer
from helpers.commands import Main, accuracy, equal_weights, error_line
from helpers.processes import FULL, finish, launch
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader, Subset, random_split

from mnist_lit import UserError
from mnist_lit.backbones import DS_CNN_V2
from mnist_lit.callbacks.prepared import PreparedImages
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.run.restore import load_classifier

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, for example of few workers


@pytest.fixture
def data(tiny_mnist: Path) -> MNISTDataModule:
    module = MNISTDataModule(data_dir=str(tiny_mnist), val_size=50, batch_size=50)
    module.setup("fit")
    module.setup("test")
    return module


def classifier(**options: Any) -> DigitClassifier:
    seed_everything(0, verbose=False)
    return DigitClassifier(DS_CNN_V2(dilation=2), image_size=16, deskew=True, **options)


def test_bare_trainer_fits_tests_and_predicts(data: MNISTDataModule) -> None:
    model = classifier()
    fitted = fit(model, data)
    assert {"accuracy/train", "accuracy/val", "loss/train", "loss/val"} <= fitted.callback_metrics.keys()
    (tested,) = fitted.test(model, datamodule=data, verbose=False)
    predicted: Any = fitted.predict(model, datamodule=data)
    is_right = torch.cat(predicted).argmax(1) == data.splits["test"].labels
    assert tested["accuracy/test"] == pytest.approx(is_right.float().mean().item())
    without_labels: Any = fitted.predict(model, DataLoader(data.splits["test"].images, batch_size=2))  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat(without_labels), torch.cat(predicted))


def test_datasets_work_in_any_data_loader(data: MNISTDataModule) -> None:
    train = data.splits["train"]
    first, second = random_split(train, [200, 50])
    for dataset in (train, data.train_dataloader().dataset, Subset(train, range(100)), first, second):
        for shuffle in (False, True):
            images, labels = next(iter(DataLoader(dataset, batch_size=32, shuffle=shuffle)))
            assert (images.shape, images.dtype) == ((32, 1, 28, 28), torch.uint8)
            assert (labels.shape, labels.dtype) == ((32,), torch.int64)
    images, labels = next(iter(DataLoader(train, batch_size=32)))
    assert torch.equal(images, train.images[:32])
    assert torch.equal(labels, train.labels[:32])
    assert torch.equal(train[5][0], train.images[5])
    fit(classifier(), DataLoader(first, batch_size=32, shuffle=True), DataLoader(second, batch_size=32))


class OwnLoader(MNISTDataModule):
    """A data module whose training loader is torch's own."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.splits["train"], batch_size=50)


def test_all_loaders_get_the_same_preprocessing(data: MNISTDataModule, tiny_mnist: Path) -> None:
    train = data.splits["train"]
    own = OwnLoader(data_dir=str(tiny_mnist), val_size=50)
    trained = []
    for loaders, callbacks in (
        (DataLoader(train, batch_size=50), []),
        (loader(train.images, train.labels, 50), []),
        (loader(train.images.float(), train.labels, 50), []),
        (own, []),
        (own, [PreparedImages()]),
    ):
        model = classifier()
        fit(model, loaders, callbacks=callbacks)
        trained.append(model.state_dict())
    assert all(equal_weights(trained[0], other) for other in trained[1:])


@pytest.mark.parametrize("backbone", [None, DS_CNN_V2, "V2"])
def test_missing_network_is_one_line(backbone: Any) -> None:
    with pytest.raises(UserError, match=r"needs a network, such as backbone=DS_CNN_V2\(\), not [^\n]*$"):
        DigitClassifier(backbone)


def test_checkpoint_of_a_python_model(data: MNISTDataModule, main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    fitted = fit(model, data, max_epochs=4)
    fitted.save_checkpoint("mine.ckpt")
    (expected,) = fitted.test(model, datamodule=data, verbose=False)

    with pytest.raises(UserError, match=r"load_from_checkpoint\(path, backbone=\.\.\.\)"):
        DigitClassifier.load_from_checkpoint("mine.ckpt")
    for weights_only in (None, True, False):
        loaded = DigitClassifier.load_from_checkpoint(
            "mine.ckpt", weights_only=weights_only, backbone=DS_CNN_V2(dilation=2)
        )
        (tested,) = trainer().test(loaded, datamodule=data, verbose=False)
        assert tested == expected
    (tested,) = trainer().test(classifier(), datamodule=data, ckpt_path="mine.ckpt", weights_only=True, verbose=False)
    assert tested == expected

    for command in ("test", "validate", "predict", "fit"):
        message = error_line(main, f"{command} --ckpt_path mine.ckpt", capsys)
        assert "add --model.backbone" in message
    with pytest.raises(UserError, match="load_from_checkpoint"):
        load_classifier("mine.ckpt")
    capsys.readouterr()
    main("test --ckpt_path mine.ckpt --model.backbone=DS_CNN_V2 --model.backbone.dilation=2 --data.val_size=50")
    assert accuracy(capsys.readouterr().out) == pytest.approx(expected["accuracy/test"])


def test_checkpoint_of_a_compiled_network_loads_everywhere(
    data: MNISTDataModule, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier()
    model.backbone = torch.compile(model.backbone, backend="eager")  # type: ignore[assignment]
    fitted = fit(model, data)
    fitted.save_checkpoint("compiled.ckpt")
    (expected,) = fitted.test(model, datamodule=data, ckpt_path="compiled.ckpt", verbose=False)
    plain = DigitClassifier.load_from_checkpoint("compiled.ckpt", backbone=DS_CNN_V2(dilation=2))
    for given, path in ((plain, None), (classifier(), "compiled.ckpt")):
        (tested,) = trainer().test(given, datamodule=data, ckpt_path=path, verbose=False)
        assert tested == pytest.approx(expected)
    capsys.readouterr()
    main("test --ckpt_path compiled.ckpt --model.backbone=DS_CNN_V2 --model.backbone.dilation=2 --data.val_size=50")
    assert accuracy(capsys.readouterr().out) == pytest.approx(expected["accuracy/test"])


SCRIPT = """
from lightning.pytorch import Trainer, seed_everything
from mnist_lit.backbones import DS_CNN_V2
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule

if __name__ == "__main__":
    seed_everything(0)
    data, model = MNISTDataModule("sample"), DigitClassifier(DS_CNN_V2(), image_size=16)
    quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", devices=2, strategy="STRATEGY", max_epochs=1, **quiet)
    trainer.fit(model, datamodule=data)
    (tested,) = trainer.test(model, datamodule=data, verbose=False)
    trainer.predict(model, datamodule=data, return_predictions=False)
    (alone,) = Trainer(accelerator="cpu", **quiet).test(model, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        print("same:", tested == alone)
"""


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="imports torch three times more")
@pytest.mark.parametrize("strategy", ["ddp", "ddp_notebook"])
def test_bare_trainer_uses_two_processes(strategy: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.replace("STRATEGY", strategy))
    process = launch([sys.executable, "-W", "ignore", "script.py"], tmp_path)
    assert finish(process, 200) == 0, (tmp_path / "err").read_text()
    assert "same: True" in (tmp_path / "out").read_text()
