"""fit, validate, test and predict: LightningCLI with this project's defaults."""

import json
import logging
import os
import shlex
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from mnist_lit import UserError
from mnist_lit.callbacks import PredictionWriter, ProgressBar, RunRecord
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data import MNISTDataModule
from mnist_lit.parser import Parser

LOGS = "lightning_logs"

USAGE = {
    "fit": "[--config FILE] [--ckpt_path last] [OPTION ...]",
    "validate": "--ckpt_path FILE|last|best [OPTION ...]",
    "test": "--ckpt_path FILE|last|best [OPTION ...]",
    "predict": "--ckpt_path FILE|last|best [OPTION ...]",
}

HUSHED = (
    "LightningCLI's args parameter",  # `main` takes its arguments from the command line and from `compare` alike
    "The '.*' does not have many workers",  # whole batches are indexed in memory: workers would only slow that down
    "The number of training batches",  # nothing is logged in a step but the learning rate
    "Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its folder
    "The dirpath has changed from",  # nor has it any of the fit's
    "Be aware that when using `ckpt_path`, callbacks",  # a test keeps no checkpoints
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # within Lightning
    "You called `self.log\\(.*no logger",  # the user asked for none, or the command needs none
)
"""Warnings that tell a user nothing to act on, as regular expressions of how they start."""

logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(  # advertisements
    lambda record: "Tip: For seamless" not in record.getMessage()
)


def main(args: list[str]) -> None:
    """Run `args` (fit, validate, test or predict, and its options), and after a fit say what to do next.

    Raises:
        UserError: What was asked for cannot be done.
        SystemExit: The arguments are at fault, or ask for help.
    """
    cli = run(args)
    last = Path(cli.trainer.log_dir or "") / "checkpoints" / "last.ckpt"
    if cli.subcommand == "fit" and cli.trainer.is_global_zero and cli.trainer.logger and last.exists():
        options = ["--ckpt_path", str(last)]
        if cli.datamodule.source == "mnist" and str(cli.datamodule.data_dir) != "data":
            options += ["--data.data_dir", str(cli.datamodule.data_dir)]
        prefix = "uv run " if "UV" in os.environ else ""  # uv sets UV in what it runs
        print(f"Next:\n  {prefix}mnist-lit test {shlex.join(options)}")
        print(f"  {prefix}tensorboard --logdir {os.path.relpath(cli.logs())}")


def run(args: list[str], folder: Path | None = None) -> "DigitCLI":
    """Run fit, validate, test or predict, in the folder if one is given, and hand back what it ran with."""
    with warnings.catch_warnings():
        for start in HUSHED:
            warnings.filterwarnings("ignore", start)
        try:
            return DigitCLI(
                DigitClassifier,
                MNISTDataModule,
                folder=folder,
                args=args,
                parser_class=Parser,
                parser_kwargs={name: {"usage": f"mnist-lit {name} {usage}"} for name, usage in USAGE.items()},
                seed_everything_default=42,
                trainer_defaults={"max_epochs": 15, "deterministic": "warn"},
                save_config_kwargs={"overwrite": True},  # a second run may be given the first one's folder
                auto_configure_optimizers=False,
            )
        except MisconfigurationException as error:  # Lightning's word for what the user asked of the Trainer
            raise UserError(" ".join(str(error).split())) from error


class DigitCLI(LightningCLI):
    """LightningCLI, where a checkpoint stands for the run it came from, and the user's word beats the checkpoint's."""

    def __init__(self, *args: Any, folder: Path | None = None, **kwargs: Any) -> None:
        """Do all that the arguments say.

        Args:
            *args: LightningCLI's.
            folder: Folder of the run; where there is none, a new one to fit, and else that of the checkpoint's run.
            **kwargs: LightningCLI's.
        """
        self.run_folder = folder
        self.trained_steps = 0
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without the option to read a checkpoint with all that it may hold."""
        return {name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The network where none is named: a checkpoint brings its own, so that testing it needs no configuration."""
        parser.set_defaults({"model.backbone": {"class_path": "mnist_lit.backbones.DS_CNN_V1"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with what the checkpoint remembers of its run laid under what the user gives.

        Raises:
            UserError: The checkpoint is not to be had, or a run to be resumed would go on with another model.
        """
        super().parse_arguments(parser, args)
        command = self.config.subcommand
        path = self.config[command].ckpt_path
        if path is None:
            if command != "fit":
                raise UserError(f"{command} needs --ckpt_path: a file, or `last` or `best` of the newest run.")
            return
        path = self._find_checkpoint(path, args)
        checkpoint = _load(path)
        self.trained_steps = checkpoint["global_step"]
        if path.parent.name == "checkpoints":
            self.run_folder = path.parent.parent
        remembered = {
            part: {name: value for name, value in checkpoint.get(key, {}).items() if not name.startswith("_")}
            for part, key in {"model": "hyper_parameters", "data": "datamodule_hyper_parameters"}.items()
        }
        ours = [command, f"--config={json.dumps(remembered)}"]
        super().parse_arguments(parser, ours)
        begun = self.config[command].model
        super().parse_arguments(parser, [*ours, *args[1:], f"--ckpt_path={path}"])
        model = self.config[command].model
        if command == "fit" and model != begun:
            changed = next(name for name in vars(model) if model[name] != begun[name])
            raise UserError(
                f"A run goes on as it began, and {path} was trained with another --model.{changed}: leave that out, or "
                "start anew without --ckpt_path."
            )

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning's (2.6.6) lets a checkpoint's hyper-parameters silently beat the user's."""

    def _find_checkpoint(self, path: str, args: list[str]) -> Path:
        if path not in ("last", "best"):
            if not Path(path).is_file():
                raise UserError(f"--ckpt_path {path}: there is no such file.")
            return Path(path)
        logs = self.logs()
        named = any(arg.startswith(("-c", "--config", "--model.backbone")) for arg in args)  # then of its runs
        below = logs / self._model_name() if named else logs
        found = [file for file in below.glob(f"**/checkpoints/{path}.ckpt") if logs / "reference" not in file.parents]
        if not found:
            raise UserError(f"--ckpt_path {path}: no run below {below} has kept one. Run mnist-lit fit first.")
        newest = max(found, key=lambda file: file.stat().st_mtime)
        print(f"--ckpt_path {path}: {newest}")
        return newest

    def logs(self) -> Path:
        """Folder of all runs."""
        return Path(self.config[self.config.subcommand].trainer.default_root_dir or ".") / LOGS

    def _model_name(self) -> str:
        class_path: str = self.config[self.config.subcommand].model.backbone.class_path
        return class_path.rpartition(".")[2].lower()

    def before_instantiate_classes(self) -> None:
        """Write down the configuration of a run that begins, and of no other."""
        options = self.config[self.subcommand]
        if self.subcommand != "fit" or options.ckpt_path or options.trainer.logger is False:
            self.save_config_callback = None

    def _logger(self) -> Logger | Literal[False]:
        """A log in the run's folder: a new run's, or the one that is resumed or tested; none otherwise."""
        if self.subcommand == "fit" and not self.run_folder:
            return TensorBoardLogger(self.logs(), self._model_name(), default_hp_metric=False)
        if self.subcommand not in ("fit", "test") or not self.run_folder:
            return False
        # what a killed run logged after its checkpoint is purged: it is drawn anew
        purge_step = self.trained_steps if self.subcommand == "fit" else None
        parent, name = self.run_folder.parent, self.run_folder.name
        return TensorBoardLogger(parent, "", version=name, default_hp_metric=False, purge_step=purge_step)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the log and the callbacks that every run has."""
        trainer = self.config_init[self.subcommand].trainer
        given = trainer.callbacks or []
        callbacks: list[Callback] = [*(given if isinstance(given, list) else [given]), RunRecord()]
        logger = self._logger() if trainer.logger in (None, True) else trainer.logger
        if trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar(refresh_rate=20))  # drawing it at every step costs 0.4 ms a step
        if self.subcommand == "fit" and logger:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        keeps_own = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        if self.subcommand == "fit" and trainer.enable_checkpointing is not False and not keeps_own:
            # Two, because Lightning's (2.6.6) `save_last` saves only when the best one changes. They have no version
            # counter: in a folder that is used twice, the files are the newer run's.
            whole: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
            best = ModelCheckpoint(filename="best", monitor="val/accuracy", mode="max", **whole)
            callbacks += [best, ModelCheckpoint(filename="last", **whole)]
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(self.run_folder or Path()))
        return super().instantiate_trainer(callbacks=callbacks, logger=logger, **kwargs)


def _load(path: Path) -> dict[str, Any]:
    """A checkpoint, read so that nothing but tensors and plain values is let in."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        checkpoint["state_dict"], checkpoint["global_step"]
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise UserError(
            f"{path} is not a checkpoint of mnist-lit: it is damaged, or holds more than weights and plain values."
        ) from error
    return checkpoint
