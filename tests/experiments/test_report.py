import re

import pytest

from mnist_lit.backbones import DS_CNN_V2
from mnist_lit.classifier import DigitClassifier
from mnist_lit.describe import multiply_adds
from mnist_lit.experiments import report
from mnist_lit.experiments.runs import Result


def result(recipe: str, seed: int, test_accuracy: float) -> Result:
    return {
        "recipe": recipe,
        "model": "DS_CNN_V2",
        "seed": seed,
        "parameters": 4_070,
        "multiply_adds": 258_328,
        "epochs": 15,
        "train_images": 55_000,
        "val_accuracy": 0.99,
        "test_accuracy": test_accuracy,
        "test_images": 10_000,
        "seconds": 60.0,
        "environment": "",
    }


def test_table_counts_seeds_where_some_are_missing() -> None:
    results = [result("all", seed, 0.99 + seed / 1_000) for seed in range(3)]
    results += [result("two", seed, 0.99) for seed in range(2)]
    results.append(result("one", 0, 0.985))
    head, _, *rows = report.table(results).splitlines()
    assert "test, mean ± sd of 3 seeds" in head
    cells = [row.split("|")[-3].strip() for row in rows]
    assert cells == ["99.10 ± 0.10", "99.00 ± 0.00 (2)", "98.50 (1)"]


def test_table_of_single_runs_has_no_deviation() -> None:
    assert "±" not in report.table([result("ds_cnn_v2", 42, 0.99)])


def test_label_leaves_out_a_recipe_named_as_its_model() -> None:
    labels = [re.split(r" *\|", report.table([result(name, 42, 0.99)]).splitlines()[2])[1].strip()
              for name in ("ds_cnn_v2", "ds_cnn_v2, model.deskew=false", "wide")]  # fmt: skip
    assert labels == ["DS_CNN_V2", "DS_CNN_V2, model.deskew=false", "DS_CNN_V2 (wide)"]


@pytest.mark.parametrize(
    ("accuracy", "images", "low", "high"), [(0.9749, 10_000, 0.97165, 0.97779), (1.0, 500, 0.99238, 1.0)]
)
def test_wilson_interval(accuracy: float, images: int, low: float, high: float) -> None:
    assert report.wilson(accuracy, images) == pytest.approx((low, high), abs=2e-5)


@pytest.mark.parametrize("size", [28, 16])
def test_multiply_adds_equal_count_by_hand(size: int) -> None:
    by_hand = size**2 * 14 * 9 + (size // 2) ** 2 * 28 * 14 * 9 + 28 * 10
    assert multiply_adds(DigitClassifier(DS_CNN_V2(), image_size=size, deskew=True)) == by_hand
