import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lit.backbones import DS_CNN_V2
from mnist_lit.classifier import DigitClassifier
from mnist_lit.experiments import compare, report
from mnist_lit.run.lightning_cli import run

Main = Callable[[str], None]
FOLDER = Path("lightning_logs/compare/version_0")
RECIPE = "model: {backbone: {class_path: mnist_lit.backbones.DS_CNN_V2}, image_size: 16, lr: %s}\n"


@pytest.fixture
def recipes(tmp_path: Path) -> None:
    for name, lr in {"slow": 0.001, "quick": 0.03}.items():
        (tmp_path / f"{name}.yaml").write_text(RECIPE % lr)


def results() -> list[report.Result]:
    runs: list[report.Result] = json.loads((FOLDER / "results.json").read_text())
    return runs


@pytest.mark.usefixtures("recipes")
def test_recipes_and_seeds_are_trained_tested_and_compared(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("compare slow.yaml quick.yaml --seeds 2 --data.watch_test=true --seed_everything=42")
    assert [(result["recipe"], result["seed"]) for result in results()] == [
        ("slow", 42),
        ("slow", 43),
        ("quick", 42),
        ("quick", 43),
    ]
    for result in results():
        assert (result["model"], result["parameters"], result["epochs"]) == ("DS_CNN_V2", 4_070, 2)
        assert (result["train_images"], result["test_images"]) == (250, 100)
    table = (FOLDER / "results.md").read_text()
    assert table.splitlines()[2].startswith("| DS_CNN_V2 (slow)")
    assert "test, mean ± sd of 2 seeds" in table
    assert table in capsys.readouterr().out
    assert (FOLDER / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    checkpoint = FOLDER / "quick/seed_43/checkpoints/last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    # what compare reports is what the command line says of the same checkpoint
    main(f"test --ckpt_path={checkpoint}")
    (printed,) = re.findall(r"test/accuracy\W+([\d.]+)", capsys.readouterr().out)
    assert float(printed) == pytest.approx(results()[3]["test_accuracy"])


@pytest.mark.usefixtures("recipes")
def test_a_recipe_is_compared_with_changes_of_itself(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    v3 = "model.backbone=mnist_lit.backbones.DS_CNN_V3"
    given = ["--change", "model.image_size=8 model.deskew=true", "--change", v3]
    main(f"compare slow.yaml --trainer.max_epochs=1 {shlex.join(given)}")
    changes = ["", ", model.image_size=8, model.deskew=true", f", {v3}"]
    assert [result["recipe"] for result in results()] == [f"slow{change}" for change in changes]
    assert [result["parameters"] for result in results()] == [4_070, 4_070, 6_526]
    config = yaml.safe_load((FOLDER / f"slow{changes[1]}/seed_42/config.yaml").read_text())
    assert (config["model"]["image_size"], config["model"]["deskew"], config["model"]["lr"]) == (8, True, 0.001)
    assert "| DS_CNN_V2 (slow), model.image_size=8, model.deskew=true " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main("compare slow.yaml --change model.deskw=false")
    assert "model.deskw" in capsys.readouterr().err


@pytest.mark.usefixtures("recipes")
def test_resuming_repeats_nothing_that_is_finished(main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained: list[str] = []

    def interrupted_in_the_second(args: list[str], folder: Path | None = None, **options: Any) -> Any:
        cli = run(args, folder, **options)
        trained.append(f"{args[0]} {cli.model.lr}")
        if trained.count("fit 0.03") == 1 and trained[-1] == "fit 0.03":
            raise KeyboardInterrupt
        return cli

    monkeypatch.setattr(compare, "run", interrupted_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        main("compare slow.yaml quick.yaml")
    main("compare slow.yaml quick.yaml --resume")
    assert trained == ["fit 0.001", "test 0.001", "fit 0.03", "fit 0.03", "test 0.03"]
    assert [result["recipe"] for result in results()] == ["slow", "quick"]
    main("compare slow.yaml quick.yaml --resume")
    assert len(trained) == 5
    assert [path.name for path in FOLDER.parent.iterdir()] == ["version_0"]
    (tmp_path / "quick.yaml").write_text(RECIPE % 0.5)
    with pytest.raises(SystemExit, match=r"was begun by `mnist-lit compare slow\.yaml quick\.yaml"):
        main("compare slow.yaml quick.yaml --resume")
    main("compare slow.yaml quick.yaml")
    assert sorted(path.name for path in FOLDER.parent.iterdir()) == ["version_0", "version_1"]


@pytest.mark.usefixtures("recipes")
def test_a_run_that_fails_ends_no_other(main: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "wild.yaml").write_text(RECIPE % 1e30)
    compared = "compare wild.yaml slow.yaml --seeds 2 --trainer.max_epochs=1"
    with pytest.raises(SystemExit) as end:
        main(compared)
    assert end.value.code == 1
    printed = capsys.readouterr()
    told = [line for line in printed.err.splitlines() if "error" in line]
    assert [line.partition(": The loss became ")[0] for line in told] == [
        f"mnist-lit: error: wild, seed {seed}" for seed in (42, 43)
    ]
    assert "2 of 4 runs failed" in printed.out
    assert [(result["recipe"], result["seed"]) for result in results()] == [("slow", 42), ("slow", 43)]
    with pytest.raises(SystemExit):
        main(f"{compared} --resume")
    assert "error: wild, seed 43" in capsys.readouterr().err  # which was tried again


def test_the_table_tells_where_runs_are_missing(main: Main) -> None:
    main("compare --seeds 3 --trainer.max_epochs=1")
    rows = report.table(results()[:-2]).splitlines()
    assert "test, mean ± sd of 3 seeds" in rows[0]
    assert [re.findall(r"± [\d.]+( \(\d\))? ", row) for row in rows[2:]] == [[""], [""], []]
    assert re.search(r"\| [\d.]+ \(1\) +\|", rows[4])


def test_the_last_epoch_s_weights_of_the_three_networks_are_tested(main: Main) -> None:
    main("compare --trainer.max_epochs=3 --model.lr=1e-9 --seed_everything=7")  # whose first epoch is never bettered
    assert [(result["recipe"], result["seed"]) for result in results()] == [(f"ds_cnn_v{n}", 7) for n in (1, 2, 3)]
    run = FOLDER / "ds_cnn_v1/seed_7"
    epochs = [torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")]
    assert epochs == [0, 2]
    assert [event.step for event in EventAccumulator(str(run)).Reload().Scalars("test/accuracy")] == [14]


@pytest.mark.parametrize("size", [28, 16])
def test_multiply_adds_are_those_counted_by_hand(size: int) -> None:
    by_hand = size**2 * 14 * 9 + (size // 2) ** 2 * 28 * 14 * 9 + 28 * 10
    model = DigitClassifier(DS_CNN_V2(), image_size=size, deskew=True)
    assert report.multiply_adds(model) == by_hand


@pytest.mark.parametrize(
    ("accuracy", "images", "low", "high"), [(0.9749, 10_000, 0.97165, 0.97779), (1.0, 500, 0.99238, 1.0)]
)
def test_the_interval_is_wilson_s(accuracy: float, images: int, low: float, high: float) -> None:
    assert report.wilson(accuracy, images) == pytest.approx((low, high), abs=2e-5)
