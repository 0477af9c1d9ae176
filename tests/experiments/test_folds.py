"""Cross-validation: `mnist-lit compare --folds`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import WATCH_TEST, Main, accuracy, error_line, names
from helpers.runs import untimed

from mnist_lit.data import official
from mnist_lit.experiments.folds import paired_difference, table

FOLDER = Path("lightning_logs/compare/version_0")
RECIPE = (
    "model: {backbone: {class_path: mnist_lit.backbones.DS_CNN_V2}, image_size: 8, lr: 0.03}\ndata: {val_size: 60}\n"
)
COMPARE = "compare recipe.yaml --folds 2 --seeds 2 --change model.lr=0.003"


@pytest.fixture(autouse=True)
def recipe(main: Main) -> None:  # noqa: ARG001, which changes the folder
    Path("recipe.yaml").write_text(RECIPE)


def result(accuracy: float, **values: Any) -> dict[str, Any]:
    """Result of a run on a fold of 4 images."""
    wrong = list(range(round(4 * (1 - accuracy))))
    return {"model": "DS_CNN_V2", "parameters": 4_070, "seconds": 1, "val_cross_entropy": 0.5, "val_images": 4} | {
        "wrong": wrong,
        **values,
    }


def test_each_image_is_held_out_once_per_seed_and_the_test_set_is_not_read(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.delitem(official.OFFICIAL, "t10k-images-idx3-ubyte")
        main(COMPARE)
    results = json.loads((FOLDER / "results.json").read_text())
    assert [(run["recipe"], run["seed"], run["fold"]) for run in results] == [
        (recipe, seed, fold) for recipe in ("recipe", "recipe, model.lr=0.003") for seed in (42, 43) for fold in (0, 1)
    ]
    for run in results:
        assert (run["train_images"], run["val_images"]) == (150, 150)
        assert 1 - len(run["wrong"]) / 150 == pytest.approx(run["val_accuracy"])
    out = capsys.readouterr().out
    assert "recipe, seed 43, fold 1: " in out
    assert (FOLDER / "results.md").read_text() in out
    assert "300 held-out images, 2 seeds." in out
    shown = [float(line.split("|")[3]) for line in out.splitlines() if line.startswith("| DS_CNN_V2 (")]
    means = [sum(run["val_accuracy"] for run in runs) / 4 for runs in (results[:4], results[4:])]
    assert shown == pytest.approx([100 * mean for mean in means], abs=0.001)

    unfinished = FOLDER / "recipe/seed_43/fold_1"
    first = untimed(FOLDER / "results.json")
    (unfinished / "result.json").unlink()
    main(f"{COMPARE} --resume")
    assert untimed(FOLDER / "results.json") == first
    assert names(FOLDER.parent) == ["version_0"]

    capsys.readouterr()
    main(f"validate --ckpt_path {unfinished}/checkpoints/last.ckpt")  # the checkpoint knows its fold
    assert accuracy(capsys.readouterr().out) == pytest.approx(first[3]["val_accuracy"], abs=5e-5)
    line = f"validate --ckpt_path {unfinished}/checkpoints/last.ckpt --data.fold 0"
    assert "measure on images that" in error_line(main, line, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--folds 1", "takes a whole number of 2 or more, not 1"),
        ("--folds 400", "--data.folds 400 must be 1 or more, and less than 300"),
        (f"--folds 2 {WATCH_TEST}", "does not read the test set: leave out --watch_test"),
    ],
)
def test_impossible_folds_are_reported_before_training(
    main: Main, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_line(main, f"compare recipe.yaml {options}", capsys)
    assert not Path("lightning_logs").exists()


def test_difference_is_that_of_the_means_and_recipes_with_failed_runs_are_left_out() -> None:
    runs = [result(accuracy, recipe="a", seed=seed, fold=fold) for accuracy, seed, fold in ((1, 1, 0), (0.5, 1, 1))]
    runs += [result(0.75, recipe="b", seed=1, fold=fold) for fold in (0, 1)]
    runs += [result(0.75, recipe="c", seed=1, fold=0)]
    rows = [line.split("|")[1:-1] for line in table(runs, runs_per_recipe=2).splitlines()[2:4]]  # type: ignore[arg-type]
    assert [row[2].strip() for row in rows] == ["75.000", "75.000"]
    assert [row[4].partition("(")[0].strip() for row in rows] == ["", "+0.000"]
    assert "finished all" in table(runs[-1:], runs_per_recipe=2)  # type: ignore[arg-type]


def test_interval_covers_the_true_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    covered, trials, images, seeds = 0, 2_000, 3_000, 2
    for _ in range(trials):
        # the probability that a network of each recipe classifies an image correctly varies from image to image
        easy = torch.rand(images, generator=generator).pow(0.05)
        ours, theirs = easy.pow(0.8), easy
        outcomes = [torch.bernoulli(p.expand(seeds, -1), generator=generator).mean(0) for p in (ours, theirs)]
        mean, half = paired_difference(*outcomes)
        truth = 1 / (1 + 0.05 * 0.8) - 1 / (1 + 0.05)  # expectation of u^0.04 - u^0.05 for u uniform on 0..1
        covered += abs(mean - truth) <= half
    assert 0.93 <= covered / trials <= 0.97
