"""Runs trained at once: `mnist-lit compare --together`."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.commands import WATCH_TEST, Main, accuracy, equal_weights, error_line, names, weights
from helpers.runs import curves, differences, untimed

from mnist_lit.checkpoints.io import load
from mnist_lit.classifier import DigitClassifier

FOLDER = Path("lightning_logs/compare/version_0")
RUN = FOLDER / "recipe" / "seed_42"
TAGS = [f"{kind}/{stage}" for kind in ("accuracy", "loss") for stage in ("train", "val")]
RECIPE = """\
model:
  backbone:
    class_path: mnist_lit.backbones.DS_CNN_V2
    init_args: {dilation: 2, activation: [relu, squared_relu]}
  image_size: 16
  contrast: true
  deskew: true
  lr: 0.03
trainer:
  callbacks:
    class_path: lightning.pytorch.callbacks.EMAWeightAveraging
    init_args: {decay: 0.9, update_every_n_steps: 4}
"""
COMPARE = "compare recipe.yaml --seeds 2 --data.batch_size 40"
"""7 steps per epoch, of which the last has 10 images."""


@pytest.fixture(autouse=True)
def recipe(main: Main) -> None:  # noqa: ARG001, which changes the folder
    Path("recipe.yaml").write_text(RECIPE)


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Networks in double precision, in which rounding is too small to hide a difference.

    The biases before a BatchNorm have no effect and no gradient; in single precision, AdamW scales up what rounding
    leaves of it.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_equal_runs(ours: Path, theirs: Path, tolerance: float = 1e-6) -> None:
    """Check that the weights, settings and curves of two runs are equal within rounding."""
    networks = (weights(run / "checkpoints/last.ckpt") for run in (ours, theirs))
    torch.testing.assert_close(*networks, rtol=tolerance, atol=tolerance)
    saved, theirs_saved = (load(run / "checkpoints/last.ckpt") for run in (ours, theirs))
    assert differences(saved, {key: theirs_saved[key] for key in saved} | {"state_dict": saved["state_dict"]}) == []
    assert (ours / "config.yaml").read_text() in (theirs / "config.yaml").read_text()
    for tag in TAGS:
        (steps, values), (their_steps, their_values) = (zip(*curves(run)[tag], strict=True) for run in (ours, theirs))
        assert steps == their_steps
        assert values == pytest.approx(their_values, abs=tolerance)


@pytest.mark.usefixtures("double_precision")
def test_networks_equal_their_own_runs_and_resume_works_both_ways(
    main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    main(f"{COMPARE} --together")
    assert "recipe: 2 runs together" in capsys.readouterr().out
    assert names(FOLDER) == ["accuracy.png", "plan.json", "recipe", "results.json", "results.md"]
    first = untimed(FOLDER / "results.json")
    assert [(run["recipe"], run["seed"]) for run in first] == [("recipe", 42), ("recipe", 43)]
    other = RUN.with_name("seed_43")
    assert not equal_weights(*(weights(run / "checkpoints/last.ckpt") for run in (RUN, other)))
    for seed, options in ((43, ""), (42, "--together")):
        shutil.move(RUN.with_name(f"seed_{seed}"), f"seed_{seed}")
        main(f"{COMPARE} --resume {options}")
        assert_equal_runs(Path(f"seed_{seed}"), RUN.with_name(f"seed_{seed}"))
        assert untimed(FOLDER / "results.json") == [
            run | {"val_accuracy": pytest.approx(run["val_accuracy"])} for run in first
        ]
    assert "recipe: 1 runs together" in capsys.readouterr().out
    assert names(FOLDER.parent) == ["version_0"]


@pytest.mark.usefixtures("double_precision")
def test_folds_are_trained_in_groups_of_equal_size(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    line = "compare recipe.yaml --folds 7 --trainer.max_epochs 1 --data.batch_size 100"
    main(f"{line} --together")
    out = capsys.readouterr().out
    assert [f"recipe: {count} runs together" in out for count in (1, 6)] == [True, True]
    results = json.loads((FOLDER / "results.json").read_text())
    assert [(run["fold"], run["val_images"]) for run in results] == [(fold, 43 - fold // 6) for fold in range(7)]

    for fold in (2, 6):
        shutil.move(RUN / f"fold_{fold}", f"fold_{fold}")
    finished = {path: path.stat().st_mtime_ns for path in RUN.glob("*/result.json")}
    main(f"{line} --resume")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    for run, fold in zip(json.loads((FOLDER / "results.json").read_text()), range(7), strict=True):
        assert run["val_cross_entropy"] == pytest.approx(results[fold]["val_cross_entropy"], abs=1e-6)
    for fold in (2, 6):
        assert_equal_runs(Path(f"fold_{fold}"), RUN / f"fold_{fold}")


@pytest.mark.usefixtures("double_precision")
def test_run_that_diverges_is_named_and_the_others_equal_their_own(
    main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = "{class_path: helpers.user_code.Fragile, init_args: {pixels: 64}}"
    Path("fragile.yaml").write_text(f"model: {{backbone: {backbone}, image_size: 8}}\n")
    line = "compare fragile.yaml --folds 2 --trust helpers.user_code --change model.lr=0.001"
    with pytest.raises(SystemExit):
        main(f"{line} --seeds 2 --together")
    printed = capsys.readouterr()
    assert "4 of 8 runs failed" in printed.out
    errors = [line for line in printed.err.splitlines() if "error" in line]
    failed = [f"{recipe}, seed 43, fold {fold}" for recipe in ("fragile", "fragile, model.lr=0.001") for fold in (0, 1)]
    for error, name in zip(errors, failed, strict=True):
        assert error.startswith(f"mnist-lit: error: {name}: The loss became ")
        assert " at step 1 (epoch 0): try a smaller --model.lr" in error

    main(line)
    for run in ("fragile", "fragile, model.lr=0.001"):
        for fold in ("fold_0", "fold_1"):
            ours, theirs = (FOLDER.with_name(f"version_{number}") / run / "seed_42" / fold for number in (0, 1))
            assert_equal_runs(ours, theirs)


def test_checkpoint_gives_the_accuracy_of_the_result(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("compare recipe.yaml --seeds 2 --together --trainer.max_epochs 1")
    for seed in (42, 43):
        run = RUN.with_name(f"seed_{seed}")
        result = json.loads((run / "result.json").read_text())
        last = run / "checkpoints/last.ckpt"
        for command, stage in (("test", "test"), ("validate", "val")):
            capsys.readouterr()
            main(f"{command} --ckpt_path {last}")
            assert accuracy(capsys.readouterr().out) == pytest.approx(result[f"{stage}_accuracy"], abs=5e-5)
    DigitClassifier.load_from_checkpoint(last)
    assert "holds only weights" in error_line(main, f"fit --ckpt_path {last}", capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--ray", "--ray and --together exclude each other: leave one out."),
        ("--model.backbone.dropout 0.1", "cannot train DS_CNN_V2: leave out --together"),
        ("--model.augment RandomAffineBatch", "RandomAffineBatch: leave out --together"),
        ("--model.schedule plateau", "--model.schedule plateau: leave out --together"),
        ("--trainer.callbacks Timer", "--trainer.callbacks lightning.pytorch.callbacks.Timer: leave out --together"),
        ("--trainer.gradient_clip_val 1", "--trainer.gradient_clip_val 1: leave out --together"),
        ("--trainer.precision bf16-mixed", "--trainer.precision bf16-mixed: leave out --together"),
        (WATCH_TEST, "--watch_test true: leave out --together"),
    ],
)
def test_impossible_recipes_are_refused_before_training(
    main: Main, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_line(main, f"compare recipe.yaml --together {options}", capsys)
    assert not Path("lightning_logs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
def test_a_hundred_steps_of_a_recipe_equal_those_of_its_own_runs(main: Main, official_mnist: str) -> None:
    line = f"compare ds_cnn_v2 --seeds 2 --data.data_dir {official_mnist} --data.val_size 1000 --data.batch_size 64"
    line += " --trainer.max_epochs 1 --trainer.limit_train_batches 100"
    main(f"{line} --together")
    main(line)
    for seed in (42, 43):
        ours, theirs = (FOLDER.with_name(f"version_{number}") / "ds_cnn_v2" / f"seed_{seed}" for number in (0, 1))
        assert_equal_runs(ours, theirs)
