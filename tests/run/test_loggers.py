"""Loggers of a user: each gets every curve, and a resumed run continues their files."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from helpers.commands import RUN, Main, names
from helpers.runs import curves, picture_steps

from mnist_lit import cli

CSV, TENSORBOARD = Path("csv/lightning_logs/version_0"), Path("tb/lightning_logs/version_0")
CURVES = {f"{kind}/{stage}" for kind in ("accuracy", "loss") for stage in ("train", "val")}
TRUST = ["--trust", "helpers.user_code"]


def loggers(*folders: str) -> str:
    """A recipe with a CSVLogger for the folder `csv`, and TensorBoardLoggers for others."""
    listed = [
        {"class_path": "CSVLogger" if folder == "csv" else "TensorBoardLogger", "init_args": {"save_dir": folder}}
        for folder in folders
    ]
    Path("loggers.yaml").write_text(yaml.safe_dump({"trainer": {"logger": listed}}))
    return "fit --config=loggers.yaml --trainer.log_every_n_steps=2"


def rows() -> dict[str, list[tuple[int, float]]]:
    """The curves in the CSVLogger's file."""
    with (CSV / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    return {tag: [(int(row["step"]), float(row[tag])) for row in table if row[tag]] for tag in table[0]}


@pytest.mark.parametrize("order", [("csv", "tb", "more"), ("tb", "csv", "more")])
def test_every_logger_gets_every_curve_and_picture(
    main: Main, capsys: pytest.CaptureFixture[str], order: tuple[str, ...]
) -> None:
    main(loggers(*order))
    assert set(rows()) == CURVES | {"lr-AdamW", "epoch", "step"}
    for folder in (TENSORBOARD, Path("more/lightning_logs/version_0")):
        drawn = curves(folder)
        for tag, points in rows().items():
            if tag not in ("epoch", "step"):
                torch.testing.assert_close(torch.tensor(drawn[tag]), torch.tensor(points))
        assert picture_steps(folder, "pictures/filters") == [0, 10]
        assert picture_steps(folder, "pictures/network_input") == [0]
    printed = capsys.readouterr().out
    assert "tensorboard --logdir tb/lightning_logs\n" in printed
    assert "tensorboard --logdir more/lightning_logs\n" in printed
    assert f"--ckpt_path {order[0]}/lightning_logs/version_0/checkpoints/last.ckpt\n" in printed


@pytest.mark.parametrize("order", [("csv",), ("csv", "tb"), ("tb", "csv")])
def test_resumed_run_continues_the_files_of_its_loggers(main: Main, order: tuple[str, ...]) -> None:
    interrupted = f"{loggers(*order)} --trainer.max_epochs=3 --trainer.callbacks=helpers.user_code.Interrupt"
    with pytest.raises(SystemExit, match="130"):
        main(interrupted)
    last = Path(order[0]) / "lightning_logs/version_0/checkpoints/last.ckpt"
    cli.main(["fit", f"--ckpt_path={last}", *TRUST])
    assert [step for step, _ in rows()["accuracy/val"]] == [4, 9, 14]
    assert [step for step, _ in rows()["accuracy/train"]] == [4, 9, 14]
    for folder in order:
        assert names(f"{folder}/lightning_logs") == ["version_0"]
    if "tb" in order:
        assert [step for step, _ in curves(TENSORBOARD)["accuracy/train"]] == [4, 9, 14]
        assert picture_steps(TENSORBOARD, "pictures/filters") == [0, 15]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--trainer.logger=false", "This run saves no curves and no checkpoints.\n"),
        ("--trainer.logger=false --trainer.enable_checkpointing=true", "This run saves no curves.\n"),
        ("--trainer.enable_checkpointing=false", "This run saves no checkpoints.\n"),
    ],
)
def test_run_reports_what_it_does_not_save(
    main: Main, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    main(f"fit {options}")
    printed = capsys.readouterr().out
    assert message in printed
    assert ("tensorboard" in printed) == RUN.exists()
    assert ("mnist-lit test --ckpt_path checkpoints/last.ckpt" in printed) == Path("checkpoints/last.ckpt").exists()


def test_csv_log_alone_has_no_hint_at_tensorboard(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main(loggers("csv"))
    assert "tensorboard" not in capsys.readouterr().out
    assert {"config.yaml", "data.json", "checkpoints"} <= {*names(CSV)}
