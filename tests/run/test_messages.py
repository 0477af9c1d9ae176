"""The terminal shows results in words and percent, and no useless messages."""

import os
import re
import shlex
from pathlib import Path

import pytest
from helpers.commands import RUN, SMALL, Main, error_line
from rich.progress import BarColumn

from mnist_lit import cli
from mnist_lit.callbacks.progress import ProgressBar
from mnist_lit.command_parser import command_line
from mnist_lit.run.lightning_cli import run


def test_fit_ends_with_its_result(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --config ds_cnn_v2 --trainer.callbacks=null")
    run_folder = RUN.parent.with_name("ds_cnn_v2") / "version_0"
    result = rf"DS_CNN_V2: \d+\.\d\d % validation accuracy after 2 epochs in \d+ s; saved in {run_folder}"
    assert re.fullmatch(rf"{result}\nNext:\n(  .*\n)+", capsys.readouterr().out)


def test_fit_without_a_recipe_says_so(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    note = "No recipe: DS_CNN_V1 trains with the default of each option that is not given.\nRecipes: --config ds_cnn_v1"
    main("fit --model.schedule=plateau --trainer.max_epochs=1")
    assert note in capsys.readouterr().out
    cli.main(["fit", "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert note not in capsys.readouterr().out


def test_metrics_are_percentages_of_a_number_of_images(main: Main, capfd: pytest.CaptureFixture[str]) -> None:
    main("fit --trainer.max_epochs=1")
    capfd.readouterr()
    percent = r"\d+\.\d %"
    for command, stage, images in (("test", "test", "100 test"), ("validate", "val", "50 validation")):
        main(f"{command} --ckpt_path last --trainer.enable_progress_bar=false")
        printed = capfd.readouterr()
        assert printed.err == ""  # no seed, no devices: nothing is trained
        lines = printed.out.splitlines()
        assert re.fullmatch(rf"accuracy/{stage} +\d+\.\d\d % of {images} images", lines[1])
        assert re.fullmatch(rf"loss/{stage} +\d\.\d{{4}} \(cross-entropy\)", lines[2])
        assert (len(lines) == 5) == (command == "test")
    main("test --ckpt_path last --trainer.enable_progress_bar=false")
    *_, last, end = capfd.readouterr().out.splitlines()
    assert re.fullmatch(rf"recall +0: {percent} +1: {percent} .*", last)
    assert re.fullmatch(rf" +5: {percent} .* 9: {percent}", end)


@pytest.mark.usefixtures("main")
def test_progress_bar_counts_epochs_from_1_and_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    trainer = run(["fit", *SMALL, "--trainer.enable_progress_bar=true"]).trainer
    bar = trainer.progress_bar_callback
    assert isinstance(bar, ProgressBar)
    assert bar._get_train_description(0) == "Epoch 1/2 "
    metrics = bar.get_metrics(trainer, trainer.lightning_module)
    assert metrics.keys() == {"train", "val"}
    columns = bar.configure_columns(trainer)
    kinds = [type(column).__name__ for column in columns]
    assert kinds == ["TextColumn", "CustomBarColumn", "BatchesProcessedColumn", "CustomTimeColumn"]
    (width,) = (column.bar_width for column in columns if isinstance(column, BarColumn))
    shown = " ".join(f"{name}: {value}" for name, value in metrics.items())
    assert width is not None
    assert len(f"Epoch 15/15 {'-' * width} 859/859 0:00:00 • 0:00:00 {shown}") <= 80


def test_failed_fit_leaves_no_folder(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    error_line(main, "fit --data.val_size=5000", capsys)
    assert [path.name for path in Path().iterdir()] == ["data"]


def test_commands_are_quoted_for_the_shell_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["mnist-lit", "test", "--ckpt_path", "it's mine/last.ckpt"]
    assert shlex.split(command_line(words)) == words
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        line = command_line(words)
    assert line == 'mnist-lit test --ckpt_path "it\'s mine/last.ckpt"'
