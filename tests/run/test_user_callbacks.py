"""Callbacks of Lightning that change the training, or do what the project's own callbacks do."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import LAST, RUN, SMALL, Main, equal_weights, names, weights
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.tuner.tuning import Tuner

from mnist_lit import cli
from mnist_lit.checkpoints.io import load
from mnist_lit.run.lightning_cli import run

TRUST = ["--trust", "helpers.user_code"]
NESTED = "{epoch}-{accuracy/val:.1f}"


def recipe(*callbacks: str, **options: Any) -> str:
    """A recipe with callbacks, the first of which has these options."""
    listed = [{"class_path": name, "init_args": {} if number else options} for number, name in enumerate(callbacks)]
    Path("callbacks.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": listed}}))
    return "fit --config=callbacks.yaml"


def interrupt_and_resume(main: Main, line: str) -> None:
    """Start a run that presses Ctrl-C in its second epoch, and resume it."""
    with pytest.raises(SystemExit, match="130"):
        main(line)
    cli.main(["fit", "--ckpt_path", "last", *TRUST])


@pytest.mark.parametrize("start", [0.3, 0.8], ids=["before the interruption", "after it"])
def test_weight_averaging_runs_and_resumes(main: Main, start: float) -> None:
    averaging = {"swa_lrs": 0.01, "swa_epoch_start": start}
    interrupt = "helpers.user_code.Interrupt"
    interrupt_and_resume(main, recipe("StochasticWeightAveraging", interrupt, **averaging) + " --trainer.max_epochs=4")
    assert load(LAST)["epoch"] == 4  # one more, for the statistics of BatchNorm
    main("test --ckpt_path last")


@pytest.mark.usefixtures("main")
def test_averaged_weights_are_in_the_last_checkpoint() -> None:
    options = ["--trainer.callbacks=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]
    fit = run(["fit", *SMALL, *options, "--trainer.max_epochs=3"])
    assert equal_weights(weights(LAST), fit.model.state_dict())


def test_found_batch_size_sets_the_schedule_and_is_kept(main: Main, caplog: pytest.LogCaptureFixture) -> None:
    found = recipe("BatchSizeFinder", "helpers.user_code.Interrupt", max_val=32)
    interrupt_and_resume(main, f"{found} --trainer.max_epochs=3")
    assert caplog.text.count("Finished batch size finder") == 1
    last = load(LAST)
    assert last["datamodule_hyper_parameters"]["batch_size"] == 32
    assert last["global_step"] == last["lr_schedulers"][0]["total_steps"] == 3 * 8  # of 250 images
    main("test --ckpt_path last")


@pytest.mark.parametrize("schedule", ["one_cycle", "plateau"])
def test_found_learning_rate_takes_effect(main: Main, schedule: str) -> None:
    short = "--data.batch_size=4 --trainer.max_epochs=1"
    main(f"fit --trainer.callbacks=LearningRateFinder {short} --model.schedule={schedule}")
    last = load(LAST)
    group = last["optimizer_states"][0]["param_groups"][0]
    assert last["hyper_parameters"]["lr"] != 0.02
    assert group.get("max_lr", group["lr"]) == last["hyper_parameters"]["lr"]
    assert not list(Path().glob(".lr_find*"))


@pytest.mark.usefixtures("main")
def test_tuner_scales_the_batch_size() -> None:
    fit = run(["fit", *SMALL, "--trainer.logger=false"])
    with warnings.catch_warnings(action="ignore"):  # Lightning's, for example of few batches
        found = Tuner(fit.trainer).scale_batch_size(fit.model, datamodule=fit.datamodule, max_trials=2)
    assert found == fit.datamodule.batch_size == 4


@pytest.mark.parametrize("shown", ["null", "true", "false"])
@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_own_progress_bar_replaces_the_projects(main: Main, shown: str, bar: type) -> None:
    del main
    fit = run(["fit", *SMALL, f"--trainer.callbacks={bar.__name__}", f"--trainer.enable_progress_bar={shown}"])
    assert type(fit.trainer.progress_bar_callback) is bar


def test_own_checkpoints_are_saved_beside_last_and_best(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    own = recipe(
        "ModelCheckpoint", "helpers.user_code.Interrupt", filename=NESTED, monitor="accuracy/val", save_top_k=-1
    )
    with pytest.raises(SystemExit, match="130"):
        main(own)
    assert f"mnist-lit fit --ckpt_path {LAST}" in capsys.readouterr().out
    (nested,) = (RUN / "checkpoints").glob("epoch=0-accuracy/val=*.ckpt")
    cli.main(["fit", "--ckpt_path", str(nested), *TRUST])  # it belongs to the run
    assert names(RUN.parent) == ["version_0"]
    assert names(RUN / "checkpoints")[-1:] == ["last.ckpt"]
    for name in ("last", "best", nested):
        main(f"predict --ckpt_path {name}")
        (RUN / "predictions.csv").unlink()


def test_interrupted_run_names_what_its_own_checkpoint_has_saved(
    main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    own = recipe("ModelCheckpoint", "helpers.user_code.Interrupt", dirpath="mine")
    with pytest.raises(SystemExit, match="130"):
        main(f"{own} --trainer.logger=false")
    assert f"mnist-lit fit --ckpt_path mine/epoch=0-step=5.ckpt {' '.join(TRUST)}" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_gradients_are_clipped_in_every_precision(main: Main, precision: str) -> None:
    main(f"fit --trainer.gradient_clip_val=1 --trainer.precision={precision} --trainer.max_epochs=1")
    assert all(tensor.isfinite().all() for tensor in weights(LAST).values())


def test_defaults_of_callbacks_are_saved(main: Main) -> None:
    interrupt_and_resume(main, recipe("Timer", "helpers.user_code.Interrupt"))
    saved = yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["callbacks"]
    assert saved[0]["init_args"]["interval"] == "step"
    assert torch.load(LAST, weights_only=True)["global_step"] == 10
