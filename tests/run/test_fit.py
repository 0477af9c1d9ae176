"""`mnist-lit fit` with every recipe and with a user's own parts."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import CONFIGS, LAST, SMALL, WATCH_TEST, Main, accuracy, equal_weights, error_line, names, weights
from helpers.faults import meet
from helpers.processes import FULL, finish, start
from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lit.backbones import DS_CNN_V2
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.run.lightning_cli import run

PRESETS = ("debug", "overfit", "profile")
RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.stem not in PRESETS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_every_recipe_trains(main: Main, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"fit --config {recipe} --data.val_size=50 --trainer.accelerator=cpu")
    named = yaml.safe_load(recipe.read_text()).get("model", {}).get("backbone", {"class_path": "DS_CNN_V1"})
    run = Path("lightning_logs") / named["class_path"].rpartition(".")[2].lower() / "version_0"
    assert names(run / "checkpoints") == ["best.ckpt", "last.ckpt"]
    assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == 42
    record = json.loads((run / "data.json").read_text())["fit"]
    assert record["images"] == {"train": 250, "val": 50}
    assert record["versions"].keys() == {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"}
    printed = capsys.readouterr().out
    assert f"mnist-lit test --ckpt_path {run}/checkpoints/last.ckpt\n" in printed
    assert "tensorboard --logdir lightning_logs\n" in printed


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_added_to_a_recipe_and_both_are_found_by_name(
    preset: str, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    args = [*SMALL, f"--data.data_dir={tiny_mnist}"]
    args.remove("--trainer.max_epochs=2")
    trainer = run(["fit", *args, "-c", "ds_cnn_v2", f"--config={preset}"]).trainer
    assert names() == []  # no logs
    assert type(trainer.lightning_module.backbone).__name__ == "DS_CNN_V2"
    if preset == "debug":
        assert (trainer.global_step, int(trainer.num_val_batches[0])) == (1, 1)
    elif preset == "overfit":
        assert float(trainer.callback_metrics["accuracy/train"]) == 1
    else:
        assert "DigitClassifier.optimizer_step" in trainer.profiler.summary()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("main")
def test_a_file_comes_before_a_recipe_of_the_same_name() -> None:
    Path("debug").mkdir()  # a folder does not count
    assert run(["fit", *SMALL, "--config=debug"]).trainer.fast_dev_run  # type: ignore[attr-defined]
    Path("ds_cnn_v2").write_text("model: {lr: 0.5}")
    assert run(["fit", *SMALL, "--config=ds_cnn_v2", "--trainer.fast_dev_run=true"]).model.hparams["lr"] == 0.5


def test_same_seed_gives_same_weights(main: Main) -> None:
    for seed in (42, 42, 1):
        main(f"fit --model.augment=RandomAffineBatch --model.backbone.dropout=0.1 --seed_everything={seed}")
    runs = [weights(f"lightning_logs/ds_cnn_v1/version_{number}/checkpoints/last.ckpt") for number in range(3)]
    assert equal_weights(runs[0], runs[1])
    assert not equal_weights(runs[0], runs[2])


def test_watching_the_test_set_changes_no_weight(main: Main) -> None:
    main("fit --model.backbone.dropout=0.1")
    main(f"fit --model.backbone.dropout=0.1 {WATCH_TEST}")
    assert equal_weights(weights(LAST), weights("lightning_logs/ds_cnn_v1/version_1/checkpoints/last.ckpt"))
    monitor = "--trainer.callbacks=EarlyStopping --trainer.callbacks.monitor=accuracy/test"
    with pytest.raises(SystemExit, match=r"accuracy/test.* which is not available"):
        main(f"fit {WATCH_TEST} {monitor}")


def test_second_run_in_a_fixed_folder_replaces_the_checkpoints(main: Main) -> None:
    fixed = "--trainer.logger=TensorBoardLogger --trainer.logger.save_dir=runs --trainer.logger.version=0"
    checkpoints = Path("runs/lightning_logs/version_0/checkpoints")
    main(f"fit {fixed}")
    first = weights(checkpoints / "last.ckpt")
    main(f"fit {fixed} --seed_everything=1")
    assert names(checkpoints) == ["best.ckpt", "last.ckpt"]
    assert not equal_weights(first, weights(checkpoints / "last.ckpt"))


@pytest.mark.slow
def test_runs_that_start_together_get_a_folder_each(tiny_mnist: Path, tmp_path: Path) -> None:
    args, count = ["fit", *SMALL, f"--data.data_dir={tiny_mnist}"], 20 if FULL else 4
    processes = [start(tmp_path, args, partial(meet, count, tmp_path), name=str(rank)) for rank in range(count)]
    assert [finish(process) for process in processes] == [0] * count
    folders = {path.parent.parent.name for path in tmp_path.rglob("last.ckpt")}
    assert folders == {f"version_{number}" for number in range(count)}


@pytest.mark.parametrize("given", ["--trainer.limit_train_batches=1", "--config one.yaml"])
def test_one_training_batch_is_one_batch(main: Main, given: str) -> None:
    Path("one.yaml").write_text("trainer: {limit_train_batches: 1}\n")
    main(f"fit {given}")
    assert torch.load(LAST, weights_only=True)["global_step"] == 2


class SeenLabels(Callback):
    """Records the labels of each training batch."""

    def __init__(self) -> None:
        self.labels: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.labels.append(batch[1].tolist())


@pytest.mark.usefixtures("main")
def test_overfit_batches_repeats_the_first_batches() -> None:
    seen = SeenLabels()
    cli = run(["fit", *SMALL, "--trainer.overfit_batches=2"], callbacks=[seen])
    first = cli.datamodule.splits["train"].labels[:100].tolist()
    assert seen.labels == 2 * [first[:50], first[50:]]


@pytest.mark.parametrize("network", ["Flat --model.backbone.pixels=256", "Conv"])
def test_any_module_can_be_the_backbone(main: Main, capsys: pytest.CaptureFixture[str], network: str) -> None:
    main(f"fit --model.backbone=helpers.user_code.{network} --model.image_size=16")
    assert "--trust helpers.user_code" in error_line(main, "test --ckpt_path last", capsys)
    main("test --ckpt_path last --trust helpers.user_code")
    assert accuracy(capsys.readouterr().out) > 0.1


def test_fit_without_logger_writes_nothing(main: Main) -> None:
    main("fit --trainer.logger=false")
    assert names() == ["data"]


def test_failed_start_leaves_no_folder(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    Path("MNIST.yaml").write_text("data: {source: sample}\n")
    message = error_line(main, "fit --config=MNIST.yaml --data.data_dir=. --data.val_size=9999", capsys)
    assert "--data.val_size 9999" in message
    assert not list(Path("lightning_logs").rglob("version_*"))


def test_classifier_built_in_python_trains_and_reloads(main: Main) -> None:
    model = DigitClassifier(DS_CNN_V2(), image_size=16)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **options)
    with warnings.catch_warnings(action="ignore"):
        trainer.fit(model, MNISTDataModule(val_size=50, batch_size=50))
        trainer.save_checkpoint("mine.ckpt")
    loaded = DigitClassifier.load_from_checkpoint("mine.ckpt", backbone=DS_CNN_V2())
    assert loaded.preprocess.image_size == 16
    assert equal_weights(loaded.state_dict(), model.state_dict())
    main("test --ckpt_path mine.ckpt --model.backbone=DS_CNN_V2")
