"""A fit spends its time on training: images are prepared once, the bar reads few metrics, and threads do not wait."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import SMALL
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from mnist_lit.backbones import DS_CNN_V2
from mnist_lit.classifier import DigitClassifier
from mnist_lit.preprocess import Preprocess
from mnist_lit.run import overhead
from mnist_lit.run.lightning_cli import run

STEPS = 2 * 125


@pytest.fixture(scope="module")
def fit(tiny_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A fit of 250 steps: its data, the sizes of batches that it prepared, the steps at which its bar read metrics."""
    prepared: list[int] = []
    read_at: list[int] = []
    prepare, get_metrics = Preprocess.prepare, RichProgressBar.get_metrics

    def recording_prepare(self: Preprocess, images: Tensor) -> Tensor:
        prepared.append(len(images))
        return prepare(self, images)

    def recording_get_metrics(self: RichProgressBar, trainer: Trainer, pl_module: LightningModule) -> Any:
        read_at.append(trainer.global_step)
        return get_metrics(self, trainer, pl_module)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("speed"))
        patch.setattr(Preprocess, "prepare", recording_prepare)
        patch.setattr(RichProgressBar, "get_metrics", recording_get_metrics)
        options = [*SMALL, "--data.batch_size=2", "--model.image_size=16", "--model.deskew=true"]
        options += ["--trainer.enable_progress_bar=true", f"--data.data_dir={tiny_mnist}"]
        cli = run(["fit", *options])
        yield SimpleNamespace(data=cli.datamodule, prepared=prepared, read_at=read_at)


def test_training_images_are_prepared_once(fit: Any) -> None:
    # validation images are prepared in two epochs and before; a few images for the graph and the pictures
    assert 250 + 3 * 50 <= sum(fit.prepared) < 250 + 3 * 50 + 50
    images, _ = next(iter(fit.data.train_dataloader()))
    assert images.dtype == torch.uint8  # another network would get raw images from the same data module


def test_progress_bar_reads_metrics_a_few_times_only(fit: Any) -> None:
    assert STEPS in fit.read_at
    assert len(fit.read_at) < STEPS / 2


@pytest.mark.parametrize(("batch_size", "variable", "threads"), [(64, None, 1), (2048, None, 3), (64, "3", 3)])
def test_a_small_step_has_one_thread_unless_the_user_says_more(
    batch_size: int, variable: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with overhead.limit_threads(DigitClassifier(DS_CNN_V2(), image_size=18), batch_size):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
