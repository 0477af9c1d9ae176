"""Folders with unusual names, deleted folders, and runs that belong to others."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import REFERENCE, RUN, Main, error_line, names
from lightning.pytorch import Callback, LightningModule, Trainer


def test_tilde_is_the_home_folder(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path.cwd() / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "recipe.yaml").write_text("model: {backbone: {class_path: DS_CNN_V2}}")
    main("fit --config=~/recipe.yaml --trainer.default_root_dir=~/mine --trainer.max_epochs=1")
    last = "~/mine/lightning_logs/ds_cnn_v2/version_0/checkpoints/last.ckpt"
    main(f"test --ckpt_path={last} --trainer.default_root_dir=~/mine")
    main(f"publish {last} ~/digits.safetensors")
    main("compare ~/recipe.yaml --trainer.default_root_dir=~/mine --trainer.max_epochs=1")
    assert names(home) == ["digits.safetensors", "mine", "recipe.yaml"]
    assert names(home / "mine" / "lightning_logs") == ["compare", "ds_cnn_v2"]
    assert names() == ["data", "home"]


def test_brackets_and_spaces_in_a_folder(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    folder = "my [1] *runs*"
    root = f"'--trainer.default_root_dir={folder}'"
    main(f"fit {root} --trainer.max_epochs=1")
    for command in ("test", "validate", "predict"):
        main(f"{command} --ckpt_path=last {root}")
    assert names() == ["data", folder]
    assert "predictions.csv" in names(Path(folder) / RUN)
    capsys.readouterr()


class DeleteRun(Callback):
    """Deletes the run's folder in the second epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            assert trainer.logger
            trainer.logger.save()
            shutil.rmtree(trainer.logger.log_dir or "")


def test_deleted_run_is_reported_as_deleted(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    callback = f"--trainer.callbacks={__name__}.DeleteRun"
    message = error_line(main, f"fit --trainer.max_epochs=30 {callback}", capsys)
    assert f"{RUN} does not exist, or was deleted meanwhile" in message
    assert "unchanged" not in message


def test_reference_of_another_checkout_stays_as_it_is(main: Main, tmp_path: Path) -> None:
    other = tmp_path / "other" / "lightning_logs" / "reference" / "ds_cnn_v2"
    shutil.copytree(REFERENCE / "ds_cnn_v2", other)
    before = {path: path.stat().st_mtime_ns for path in other.rglob("*")}
    for command in ("test", "predict"):
        main(f"{command} --ckpt_path {other}/checkpoints/last.ckpt")
    assert {path: path.stat().st_mtime_ns for path in other.rglob("*")} == before
    assert names() == ["data", "other", "predictions.csv"]


def printed_config(main: Main, line: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(line)
    assert not end.value.code
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def test_printed_config_is_that_of_the_checkpoint(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --model.backbone=DS_CNN_V2 --model.image_size=16 --data.val_size=40 --trainer.max_epochs=1")
    for line in ("test --ckpt_path=last --print_config", "validate --print_config=skip_null --ckpt_path=last"):
        config = printed_config(main, f"{line} --model.lr=0.5", capsys)
        assert config["model"]["backbone"]["class_path"].endswith("DS_CNN_V2")
        assert (config["model"]["image_size"], config["model"]["lr"], config["data"]["val_size"]) == (16, 0.5, 40)
        assert Path(config["ckpt_path"]).is_file()
    assert printed_config(main, "fit --model.lr=0.5 --print_config", capsys)["model"]["lr"] == 0.5
