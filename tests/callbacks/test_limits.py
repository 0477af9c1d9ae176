"""Limits of a run: what it says about them, and what they do to its schedule."""

from pathlib import Path

import pytest
from helpers.commands import LAST, RUN, Main, error_line, names

from mnist_lit import cli
from mnist_lit.checkpoints.io import load


def test_end_before_max_steps_is_said(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --trainer.max_steps=1000")
    assert "--trainer.max_epochs 2 ends this run after 10 steps, before --trainer.max_steps 1000" in (
        capsys.readouterr().out
    )
    main("fit --trainer.max_steps=10")
    main("fit --trainer.max_steps=7 --trainer.max_epochs=-1")
    assert "ends this run" not in capsys.readouterr().out


@pytest.mark.parametrize("limit", ["limit_val_batches=0", "max_steps=4", "check_val_every_n_epoch=3"])
def test_missing_validation_is_said(main: Main, capsys: pytest.CaptureFixture[str], limit: str) -> None:
    main(f"fit --trainer.{limit}")
    out, err = capsys.readouterr()
    assert "This run has no validation, and so no best.ckpt.\n" in out
    assert "monitored key" not in err
    assert names(RUN / "checkpoints") == ["last.ckpt"]


def test_plateau_counts_validations_not_epochs(main: Main) -> None:
    options = "--model.schedule=plateau --model.lr=1e-7"  # the accuracy does not rise
    main(f"fit {options} --trainer.max_epochs=4 --trainer.check_val_every_n_epoch=2")
    assert load(LAST)["lr_schedulers"][0]["_last_lr"] == [0.5e-7]


def test_time_limit_says_how_to_train_on(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --data.batch_size=1 --trainer.max_epochs=1000 --trainer.max_time=00:00:00:01")
    steps = load(LAST)["global_step"]
    printed = capsys.readouterr().out
    assert f"The time limit has ended this run after {steps} steps, in the state of last.ckpt." in printed
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*.*")}
    with pytest.raises(SystemExit, match=r"the time of this run is over: give a larger --trainer\.max_time"):
        cli.main(["fit", "--ckpt_path=last"])
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*.*")} == before
    cli.main(["fit", "--ckpt_path=last", "--trainer.max_time=00:00:00:02"])
    assert load(LAST)["global_step"] > steps


def test_refused_resume_leaves_no_new_folder(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --trainer.max_epochs=1")
    LAST.rename("elsewhere.ckpt")
    before = sorted(Path().rglob("*"))
    for option in ("--trainer.max_epochs=3", "--trainer.accumulate_grad_batches=2", "--model.lr=1"):
        error_line(main, f"fit --ckpt_path=elsewhere.ckpt --trainer.max_epochs=2 {option}", capsys)
        assert sorted(Path().rglob("*")) == before
