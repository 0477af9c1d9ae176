"""fit, validate, test and predict: LightningCLI with this project's defaults."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO as TheirCheckpointIO

from mnist_lit import UserError
from mnist_lit.callbacks.checkpointing import DivergenceStop, RandomState, keepers
from mnist_lit.callbacks.figures import pictures
from mnist_lit.callbacks.processes import Together, folder_of_job, heed_signals, join
from mnist_lit.callbacks.record import PredictionWriter, ProgressBar, RunLogger, RunRecord
from mnist_lit.checkpoints import trust
from mnist_lit.checkpoints.io import LOGS, CheckpointIO, find, load, project_path, settings
from mnist_lit.classifier import DigitClassifier
from mnist_lit.commands import LIGHTNING_HELP, TRUST
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.run.errors import check, check_changed, check_unfinished, restorable, told
from mnist_lit.run.hints import curves_command, next_command
from mnist_lit.run.options import Parser, names_backbone, spell_out
from mnist_lit.run.overhead import Unprofiled, drop_idle_hooks, hushed
from mnist_lit.run.signals import Stopped


def main(args: list[str]) -> None:
    """Run `args` (fit, validate, test or predict, and its options), and after a fit say what to do next.

    Raises:
        UserError: What was asked for cannot be done.
        SystemExit: The arguments are at fault, or ask for help.
    """
    cli = run(args, tells_how_to_go_on=True)
    join(cli.trainer)
    if cli.datamodule.failed and cli.trainer.is_global_zero:
        raise SystemExit(1)  # each was told
    if cli.subcommand != "fit" or not cli.trainer.is_global_zero or not cli.trainer.logger:
        return
    last = cli.last()
    if last.exists():
        print(f"Next:\n  {next_command(cli, 'test', last)}\n  {curves_command(cli.logs())}")


def run(
    args: list[str],
    folder: Path | None = None,
    tells_how_to_go_on: bool = False,
    callbacks: Sequence[Callback] = (),
) -> "DigitCLI":
    """Run fit, validate, test or predict, and hand back what it ran with.

    Args:
        args: The command and its options.
        folder: Folder of a run that is one of a comparison's or a search's.
        tells_how_to_go_on: Whether a run that is broken off is kept, and the user told how it goes on.
        callbacks: Those that look on, beside the run's own.

    Raises:
        UserError: What was asked for cannot be done.
        SystemExit: The arguments are at fault, or ask for help; or the process was told to end.
    """
    with hushed(), told(), restorable():
        return DigitCLI(
            DigitClassifier,
            MNISTDataModule,
            folder=folder,
            tells_how_to_go_on=tells_how_to_go_on,
            callbacks=callbacks,
            args=spell_out(args),
            parser_class=Parser,
            parser_kwargs=LIGHTNING_HELP,
            seed_everything_default=42,
            trainer_defaults={
                "max_epochs": 15,
                "devices": 1,
                "deterministic": "warn",
                "use_distributed_sampler": False,
            },
            save_config_kwargs={"overwrite": True},  # a second run may be given the first one's folder
            auto_configure_optimizers=False,
        )


class DigitCLI(LightningCLI):
    """LightningCLI, where a checkpoint stands for the run it came from, and the user's word beats the checkpoint's."""

    def __init__(
        self,
        *args: Any,
        folder: Path | None,
        tells_how_to_go_on: bool,
        callbacks: Sequence[Callback],
        **kwargs: Any,
    ) -> None:
        """Do all that the arguments say.

        Args:
            *args: LightningCLI's.
            folder: Folder of the run; where there is none, a new one to fit, and else that of the checkpoint's run.
            tells_how_to_go_on: As `run` takes it.
            callbacks: As `run` takes them.
            **kwargs: LightningCLI's.
        """
        self.run_folder = folder
        self.stands_alone = folder is None
        self.tells_how_to_go_on = tells_how_to_go_on
        self.lookers_on = callbacks
        self.names_backbone = names_backbone(kwargs["args"])
        self.trained_steps = 0
        self.changed: list[str] = []  # options that are not what the checkpoint was trained with
        with contextlib.ExitStack() as self.limits:
            super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without the option to read a checkpoint with all that it may hold."""
        return {name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """`--trust`; and the network where none is named, as a checkpoint brings its own: testing it needs no recipe.

        Where one is, there is no such default, whose arguments jsonargparse (4.53) would hand on to those of the same
        names.
        """
        parser.add_argument("--trust", nargs="+", default=[], metavar="PACKAGE", help=TRUST)
        if not self.names_backbone:
            parser.set_defaults({"model.backbone": {"class_path": "mnist_lit.backbones.DS_CNN_V1"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with what the checkpoint remembers of its run laid under what the user gives.

        Raises:
            UserError: The checkpoint is not to be had, a run to be resumed would go on with other options, or images
                that were trained on would be measured on.
        """
        super().parse_arguments(parser, args)
        command = self.config.subcommand
        check(self.config[command])
        path = self.config[command].ckpt_path
        if path is None:
            if command != "fit":
                raise UserError(f"{command} needs --ckpt_path: a file, or `last` or `best` of the newest run.")
            return
        backbone = self.config[command].model.backbone.class_path if self.names_backbone else None
        path = find(path, self.logs(), backbone, to_resume=command == "fit")
        checkpoint = load(path)
        given = self.config[command]
        if command == "fit" and "optimizer_states" not in checkpoint:
            raise UserError(f"{path} holds weights alone, from which no run can go on.")
        # what the user names is the user's to trust
        trusted = {*given.trust, *trust.modules([given.model.as_dict(), given.trainer.as_dict()])}
        remembered = settings(checkpoint, path, trusted)
        self.trained_steps = checkpoint["global_step"]
        tracked = {(logs / "reference").resolve() for logs in (self.logs(), project_path(LOGS))}
        is_reference = bool(tracked & set(path.resolve().parents))  # nothing is added
        if path.parent.name == "checkpoints" and (path.parent.parent / "config.yaml").exists() and not is_reference:
            self.run_folder = path.parent.parent
        unknown = remembered["model"].keys() - vars(self.config[command].model).keys()
        if unknown:
            raise UserError(
                f"{path} was saved by another version of mnist-lit, which had --model.{min(unknown)}: use that one, or "
                "train anew."
            )
        if "backbone" not in remembered["model"]:  # of a classifier built in Python
            remembered["model"]["backbone"] = self.config[command].model.backbone.as_dict()
        try:
            begun_with = json.dumps(remembered)
        except TypeError as error:  # a tensor
            raise UserError(f"{path} was not saved by mnist-lit: its settings are no plain values.") from error
        if command == "fit" and self.run_folder:
            begun_with = str(self.run_folder / "config.yaml")  # all of it, such as the number of epochs
            trusted |= {f"lightning.pytorch.{kind}" for kind in ("callbacks", "loggers", "plugins", "profilers")}
            try:
                trust.check(yaml.safe_load(Path(begun_with).read_text()), begun_with, trusted)
            except (UnicodeDecodeError, yaml.YAMLError) as error:
                raise UserError(f"{begun_with} is not a recipe: nothing but plain values may be in one.") from error
        self.limits.enter_context(trust.limited(trusted))
        ours = [command, f"--config={begun_with}"]
        super().parse_arguments(parser, ours)
        begun = self.config[command]
        super().parse_arguments(parser, [*ours, *args[1:], f"--ckpt_path={path}"])
        options = self.config[command]
        self.changed = [f"model.{name}" for name in vars(options.model) if options.model[name] != begun.model[name]]
        self.changed += [f"data.{name}" for name in remembered["data"] if options.data[name] != begun.data[name]]
        check_changed(command, begun, options, self.changed)
        if command == "fit":
            check_unfinished(options, checkpoint)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning's (2.6.6) lets a checkpoint's hyper-parameters silently beat the user's."""

    def logs(self) -> Path:
        """Folder of all runs."""
        return Path(self.config[self.config.subcommand].trainer.default_root_dir or ".") / LOGS

    def last(self) -> Path:
        """The checkpoint of the run's last whole epoch, if it is kept."""
        logger = self.trainer.logger
        return Path((logger and logger.log_dir) or "") / "checkpoints" / "last.ckpt"

    def _model_name(self) -> str:
        class_path: str = self.config[self.config.subcommand].model.backbone.class_path
        return class_path.rpartition(".")[2].lower()

    def before_instantiate_classes(self) -> None:
        """Write down the configuration of a run that begins, and of no other."""
        options = self.config[self.subcommand]
        resumed = options.ckpt_path and self.run_folder
        if self.subcommand != "fit" or resumed or options.trainer.logger is False:
            self.save_config_callback = None

    def _logger(self) -> TensorBoardLogger | Literal[False]:
        """A log in the run's folder: a new run's, or the one that is resumed or tested as it is; none otherwise."""
        command, options = self.config[self.subcommand], self.config[self.subcommand].trainer
        version = None
        if self.subcommand == "fit" and not command.ckpt_path:
            runs = None if self.run_folder else self.logs() / self._model_name()
            version = folder_of_job(Path(options.default_root_dir or "."), runs)
        if self.subcommand == "fit" and not self.run_folder:
            return RunLogger(self.logs(), self._model_name(), version=version, default_hp_metric=False)
        whole = options.limit_test_batches is None and not options.fast_dev_run and not options.overfit_batches
        is_test = self.subcommand == "test" and whole and not self.changed
        if not self.run_folder or not (self.subcommand == "fit" or is_test):
            return False
        # what a killed run logged after its checkpoint is purged: it is drawn anew
        purge_step = self.trained_steps if self.subcommand == "fit" else None
        parent, name = self.run_folder.parent, self.run_folder.name
        return TensorBoardLogger(parent, "", version=name, default_hp_metric=False, purge_step=purge_step)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the log and the callbacks that every run has."""
        options = self.config_init[self.subcommand].trainer
        logger = self._logger() if options.logger in (None, True) else options.logger
        is_new = isinstance(logger, RunLogger) and logger._version is None  # it has no folder yet
        is_new = is_new or (isinstance(logger, TensorBoardLogger) and not Path(logger.log_dir).exists())
        callbacks = [
            *_listed(options.callbacks),
            *self.lookers_on,
            RunRecord(is_new),
            *pictures(),
            RandomState(),
            DivergenceStop(),
            together := Together(),
        ]
        plugins = _listed(options.plugins)
        keeps_own_way = any(isinstance(plugin, TheirCheckpointIO) for plugin in plugins)
        kwargs["plugins"] = plugins if keeps_own_way else [*plugins, CheckpointIO()]
        keeps_own = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        if options.enable_progress_bar is not False:
            callbacks.append(ProgressBar(refresh_rate=2))  # times a second
        if self.subcommand == "fit" and logger:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        if not logger and options.enable_checkpointing is None:
            kwargs["enable_checkpointing"] = False  # there is no folder to keep them in
        elif self.subcommand == "fit" and options.enable_checkpointing is not False and not keeps_own:
            callbacks += keepers()
        if options.profiler is None:
            kwargs["profiler"] = Unprofiled()
        if self.subcommand == "predict":
            of_run = not self.config_init[self.subcommand].data.images  # a person's pictures are none of the run's
            callbacks.append(PredictionWriter((of_run and self.run_folder) or Path()))
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, logger=logger, **kwargs)
        except (TypeError, ValueError) as error:  # Lightning's words for what the user asked of it
            raise UserError(f"--trainer: {' '.join(str(error).split())}") from error
        together.all_are_there = heed_signals(trainer)
        drop_idle_hooks(self.model, trainer.callbacks)  # type: ignore[attr-defined]
        return trainer

    def fit(self, **options: Any) -> None:
        """Fit; where that is broken off, say how it goes on."""
        try:
            self.trainer.fit(**options)
        except Stopped:
            if not self.trainer.is_global_zero:
                raise
            last = self.last()
            if not self.stands_alone:
                print("The finished runs are kept; to go on: the same command with --resume")
            elif self.tells_how_to_go_on and self.trainer.logger:
                kept = f"The last whole epoch is kept; to go on: {next_command(self, 'fit', last)}"
                kept += " on each node" if self.trainer.num_nodes > 1 else ""
                print(kept if last.exists() else "Nothing was kept, for the run had not begun.")
            raise


def _listed(given: Any) -> list[Any]:
    """What a user may give one of, several or none."""
    return given if isinstance(given, list) else [] if given is None else [given]
