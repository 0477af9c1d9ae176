"""What the real TensorBoard serves of a run."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from helpers.tensorboard import Server
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from mnist_lit.backbones import DS_CNN_V1
from mnist_lit.callbacks.figures import Filters, PrecisionRecall, WorstErrors, _stages
from mnist_lit.classifier import DigitClassifier

Main = Callable[[str], None]


def test_tensorboard_shows_the_run(main: Main) -> None:
    main("fit --data.watch_test=true --trainer.max_epochs=3 --trainer.log_every_n_steps=2")
    main("test --ckpt_path last")
    run = "ds_cnn_v1/version_0"
    with Server() as server:
        tags = server.wait("scalars/tags", lambda tags: "test/digit_9_accuracy" in tags.get(run, {}))
        assert list(tags) == [run]
        curves = {f"{split}/{kind}" for split in ("train", "val", "test") for kind in ("accuracy", "loss")}
        assert curves | {"lr-AdamW"} <= set(tags[run])
        assert "hp_metric" not in tags[run]

        def points(tag: str) -> list[list[float]]:
            answer: list[list[float]] = server.get(f"scalars/scalars?run={run}&tag={tag}")
            return [[step, value] for _, step, value in answer]

        steps = [4, 9, 14]  # the last of each epoch's five, counted from 0
        assert [step for step, _ in points("train/accuracy")] == steps
        assert [step for step, _ in points("val/accuracy")] == steps
        test = points("test/accuracy")
        assert [step for step, _ in test] in (steps, [*steps, 14])  # the last point is the test's own
        assert len(points("lr-AdamW")) >= 7

        layout = server.wait("custom_scalars/layout", bool)
        (chart,) = (category["chart"][0] for category in layout["category"] if category["title"] == "accuracy")
        assert chart["multiline"]["tag"] == ["train/accuracy", "val/accuracy", "test/accuracy"]

        (experiment,) = [server.get("hparams/experiment", {})]
        assert {info["name"] for info in experiment["hparamInfos"]} >= {"Model", "Parameters", "Seed", "lr", "epochs"}
        metrics = [info["name"] for info in experiment["metricInfos"]]
        assert [metric["tag"] for metric in metrics] == ["val/accuracy", "test/accuracy"]
        request = {
            "colParams": [{"metric": metric} for metric in metrics],
            "startIndex": 0,
            "sliceSize": 10,
            "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN", "STATUS_FAILURE"],
        }
        (group,) = server.get("hparams/session_groups", request)["sessionGroups"]
        assert group["hparams"]["Parameters"] == 5_226
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert values == {"val/accuracy": points("val/accuracy")[-1][1], "test/accuracy": test[-1][1]}

        drawn = {"train/images", "filters/first_convolution", "test/confusion_matrix", "test/most_confidently_misread"}
        assert drawn <= server.get("images/tags")[run].keys()
        filters = server.get(f"images/images?run={run}&tag=filters/first_convolution&sample=0")
        assert [one["step"] for one in filters] == [0, 15]  # before and after
        assert sorted(server.get("pr_curves/tags")[run]) == [f"test/digit_{digit}" for digit in range(10)]
        (curve,) = server.get(f"pr_curves/pr_curves?run={run}&tag=test/digit_3")[run]
        assert max(curve["recall"]) == 1
        assert curve["true_positives"][0] == 10  # of 100 test images
        (card,) = server.get(f"text/text?run={run}&tag=run/text_summary")
        for fact in ("DS_CNN_V1", "5,226", "multiply-adds", "250", "torch"):
            assert fact in card["text"]
        assert "block1" in str(server.get(f"graphs/graph?run={run}"))


def test_a_resumed_run_draws_no_filters_as_those_before_training(tmp_path: Path) -> None:
    trainer = Trainer(logger=TensorBoardLogger(tmp_path), accelerator="cpu", enable_checkpointing=False)
    trainer.ckpt_path = "last.ckpt"
    Filters().on_fit_start(trainer, DigitClassifier(DS_CNN_V1()))
    assert not list(tmp_path.rglob("events*"))
    trainer.ckpt_path = None
    Filters().on_fit_start(trainer, DigitClassifier(DS_CNN_V1()))
    assert list(tmp_path.rglob("events*"))


class _Shaken(nn.Module):
    """An augmentation that draws from every generator."""

    def forward(self, images: Tensor) -> Tensor:
        return images + random.random() * np.random.random() * torch.rand(1)  # noqa: NPY002


def test_a_picture_of_the_augmentation_draws_no_random_numbers_of_the_run() -> None:
    model = DigitClassifier(DS_CNN_V1(), augment=_Shaken())

    def drawn() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    seed_everything(1)
    expected = drawn()
    seed_everything(1)
    _stages(model, torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    assert drawn() == expected


def test_of_a_test_only_what_is_shown_is_kept(tmp_path: Path) -> None:
    trainer = Trainer(logger=TensorBoardLogger(tmp_path), accelerator="cpu", enable_checkpointing=False)
    images, labels = torch.zeros(100, 1, 28, 28, dtype=torch.uint8), torch.arange(100) % 10
    logits = 9 * nn.functional.one_hot(labels, 10).float()
    logits[3] = -logits[3]
    model = DigitClassifier(DS_CNN_V1())
    for callback, kept in ((WorstErrors(), 784 + 3), (PrecisionRecall(), 1100)):
        callback.on_test_start(trainer, model)
        callback.on_test_batch_end(trainer, model, logits, (images, labels), 0)
        assert sum(part.numel() for part in callback.batches[0]) == kept
