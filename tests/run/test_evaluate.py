"""validate, test and predict restore a checkpoint with all its options."""

import csv
import os
from pathlib import Path

import pytest
import torch
from helpers.commands import LAST, RUN, Main, accuracy, error_line, names

from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.run.lightning_cli import run
from mnist_lit.run.restore import load_classifier


@pytest.mark.usefixtures("main")
def test_reloaded_checkpoint_has_the_accuracy_that_fit_reported(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.image_size=16", "--data.val_size=50", "--data.batch_size=50", "--trainer.accelerator=cpu"]
    fit = run(["fit", *options, "--trainer.max_epochs=4", "--trainer.enable_progress_bar=false"])
    reported = fit.trainer.callback_metrics["accuracy/val"].item()
    capsys.readouterr()
    run(["validate", "--ckpt_path=last"])
    assert accuracy(capsys.readouterr().out) == pytest.approx(reported)
    assert reported > 0.2


def test_evaluation_needs_no_options_and_makes_no_folder(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --model.backbone=DS_CNN_V2 --model.backbone.dilation=2 --model.image_size=16 --model.deskew=true")
    run_folder = Path("lightning_logs/ds_cnn_v2/version_0")
    before = sorted(Path("lightning_logs").rglob("version_*"))
    config = (run_folder / "config.yaml").read_text()
    capsys.readouterr()
    main("validate --ckpt_path last")
    first = accuracy(capsys.readouterr().out)
    main(f"validate --ckpt_path {run_folder}/checkpoints/last.ckpt")
    assert accuracy(capsys.readouterr().out) == first
    main("test --ckpt_path best")
    main("predict --ckpt_path last")
    assert sorted(Path("lightning_logs").rglob("version_*")) == before
    assert (run_folder / "config.yaml").read_text() == config
    assert names() == ["data", "lightning_logs"]


def test_predictions_are_those_of_the_checkpoint(main: Main) -> None:
    main("fit")
    main("predict --ckpt_path last")
    with (RUN / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    model, _ = load_classifier(LAST)
    data = MNISTDataModule()
    data.setup("predict")
    probabilities = model(data.splits["test"].images).softmax(1)
    assert [int(row["digit"]) for row in rows] == probabilities.argmax(1).tolist()
    assert [float(row["confidence"]) for row in rows] == pytest.approx(probabilities.amax(1).tolist(), abs=1e-4)

    whole = (RUN / "predictions.csv").read_text()
    for option in ("--trainer.limit_predict_batches=1", "--model.image_size=16", "--trainer.fast_dev_run=true"):
        Path("predictions.csv").unlink(missing_ok=True)
        main(f"predict --ckpt_path last {option}")
        assert Path("predictions.csv").exists()
        assert (RUN / "predictions.csv").read_text() == whole


def test_last_and_best_name_the_newest_run_of_the_given_network(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit")
    main("fit --model.backbone=DS_CNN_V2")
    os.utime(LAST, (0, 0))
    capsys.readouterr()
    main("validate --ckpt_path last")
    assert "ds_cnn_v2/version_0/checkpoints/last.ckpt" in capsys.readouterr().out
    main("validate --ckpt_path last --model.backbone=DS_CNN_V1")
    assert str(LAST) in capsys.readouterr().out
    Path("data.yaml").write_text("data: {batch_size: 20}  # names no network\n")
    main("validate --ckpt_path best --config=data.yaml")
    assert "ds_cnn_v2/version_0/checkpoints/best.ckpt" in capsys.readouterr().out


def test_given_options_override_those_of_the_checkpoint(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --model.image_size=16")
    main(f"test --ckpt_path {LAST}")
    trained = accuracy(capsys.readouterr().out)
    logs = sorted(RUN.iterdir())
    main(f"test --ckpt_path {LAST} --model.image_size=8")
    assert accuracy(capsys.readouterr().out) != trained
    assert sorted(RUN.iterdir()) == logs  # the log holds results of the trained options only
    message = error_line(main, f"test --ckpt_path {LAST} --model.backbone=DS_CNN_V3", capsys)
    assert "another network" in message
    assert "DS_CNN_V3" in message
    assert "--model.lr" in error_line(main, f"fit --ckpt_path {LAST} --model.lr=0.5", capsys)


def test_checkpoint_is_not_evaluated_on_its_training_images(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --trainer.max_epochs=1")
    for line in ("fit --data.val_size=60", "validate --data.val_size=60", "test --data.source=sample"):
        command, option = line.split()
        assert option.partition("=")[0] in error_line(main, f"{command} --ckpt_path last {option}", capsys)


def test_checkpoint_of_another_version_is_reported(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --trainer.max_epochs=1")
    checkpoint = torch.load(LAST, weights_only=True)
    checkpoint["hyper_parameters"]["gone"] = 1
    checkpoint.pop("sealed", None)  # older versions saved no checksum
    torch.save(checkpoint, LAST)
    assert "--model.gone" in error_line(main, "test --ckpt_path last", capsys)
