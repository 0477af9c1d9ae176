"""fit, validate, test and predict: LightningCLI with this project's defaults, callbacks and checkpoints."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from mnist_lit import UserError, files
from mnist_lit.callbacks.processes import child_processes, wait_for_children
from mnist_lit.checkpoints.find import find_checkpoint
from mnist_lit.classifier import DigitClassifier
from mnist_lit.command_parser import TRUST
from mnist_lit.commands import LIGHTNING_HELP
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.files import remove_if_empty
from mnist_lit.run import components, messages, overhead, resume, slurm, workarounds
from mnist_lit.run.options import Parser, check_options, report_errors
from mnist_lit.run.recipe import find_recipes, names_backbone
from mnist_lit.run.restore import check_weights, report_misfit
from mnist_lit.signals import kill_at_exit, stop_after_batches

DEFAULTS = {"max_epochs": 15, "devices": 1, "deterministic": "warn", "use_distributed_sampler": False}
"""Defaults of the Trainer that differ from Lightning's. The data module distributes the images to processes itself."""


def main(args: list[str]) -> None:
    """Run a command line: "fit", "validate", "test" or "predict", and its options."""
    wait_for_children(run(args, print_next=True).trainer)


def run(
    args: list[str], folder: Path | None = None, callbacks: Sequence[Callback] = (), print_next: bool = False
) -> "DigitCLI":
    """Run fit, validate, test or predict in this process, and return the CLI with its model, data module and trainer.

    Args:
        args: The command and its options.
        folder: Folder of the run, if it is part of a comparison or a search.
        callbacks: Additional callbacks.
        print_next: Whether to print the command that comes next, also after an interruption.

    Raises:
        UserError: The command cannot be run.
        SystemExit: The arguments are wrong, or ask for help; or a signal has stopped the command.
    """
    workarounds.serialize_defaults()
    with stop_after_batches(), workarounds.silence_warnings(args[0] == "fit"), report_errors():
        return DigitCLI(args, folder, callbacks, print_next)


class DigitCLI(LightningCLI):
    """LightningCLI in which a checkpoint brings the settings of its run, and the user's options override them."""

    def __init__(
        self, args: list[str], folder: Path | None, extra_callbacks: Sequence[Callback], print_next: bool
    ) -> None:
        args = find_recipes(args)
        self.command = args[0]
        self.run_folder = folder
        self.extra_callbacks = extra_callbacks
        self.print_next = print_next
        self.names_backbone = names_backbone(args)
        self.restored: resume.Restored | None = None
        self.changed: list[str] = []
        """Options that differ from those of the checkpoint's run."""
        with contextlib.ExitStack() as self.contexts:
            super().__init__(
                DigitClassifier,
                MNISTDataModule,
                args=args,
                parser_class=Parser,
                parser_kwargs={args[0]: LIGHTNING_HELP[args[0]]},
                seed_everything_default=42,
                trainer_defaults=DEFAULTS,
                save_config_kwargs={"overwrite": True},  # the user may name the folder of an earlier run
                auto_configure_optimizers=False,
            )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that is run, with no parser for the others, and no option to load a checkpoint unsafely."""
        return {self.command: LightningCLI.subcommands()[self.command] | {"weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--trust", nargs="+", default=[], metavar="PACKAGE", help=TRUST)
        watch = "with fit: also measure the test set after each epoch, to draw its curve; nothing depends on it"
        parser.add_argument("--watch_test", type=bool, default=False, help=watch)
        if not self.names_backbone:
            # not if the user names a network: jsonargparse (4.53) would pass it the arguments of the default network
            parser.set_defaults({"model.backbone": {"class_path": "mnist_lit.backbones.DS_CNN_V1"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the user's options; with a checkpoint, parse them again on top of the settings of its run.

        Raises:
            UserError: An option is out of range, or the checkpoint cannot be used for this command.
        """
        without_print = [arg for arg in args if arg.partition("=")[0] != "--print_config"]
        prints = args != without_print
        super().parse_arguments(parser, without_print)
        command, options = self.config.subcommand, self.config[self.config.subcommand]
        self.draws_seed = options.seed_everything is True
        if options.ckpt_path is None and prints:
            super().parse_arguments(parser, args)  # prints the configuration and exits
        check_options(command, options)
        is_new_fit = command == "fit" and options.ckpt_path is None
        requeued = self._requeued() if is_new_fit and slurm.is_requeued() else None
        if options.ckpt_path is None and requeued is None:
            if command != "fit":
                raise UserError(f"{command} needs --ckpt_path: a file, or `last` or `best` of the newest run.")
            return
        backbone = options.model.backbone.class_path if self.names_backbone else None
        with contextlib.redirect_stdout(sys.stderr if prints else sys.stdout):
            path = requeued or find_checkpoint(options.ckpt_path, self.logs, backbone, to_resume=command == "fit")
            folder = resume.run_folder(path)
            if command == "fit" and folder and not prints:
                self._lock(folder)  # before the checkpoint is loaded, which another process may still replace
            self.restored = restored = resume.restore(command, options, path, folder, backbone)
        self.run_folder = folder or self.run_folder
        self.contexts.enter_context(workarounds.limit_imports(restored.trusted))
        settings = f"--config={restored.config}"
        super().parse_arguments(parser, [command, settings])
        original = self.config[command]
        super().parse_arguments(parser, [command, settings, *args[1:], f"--ckpt_path={restored.path}"])
        options = self.config[command]
        check_options(command, options)
        self.changed = resume.changed_options(original, options, restored.checkpoint)
        resume.check_changes(command, original, options, self.changed)
        if command == "fit":
            try:
                resume.check_unfinished(options, restored.checkpoint)
            except resume.FinishedError as error:
                if not requeued:
                    raise
                rank_zero_only(print)("This run has finished.")  # another run of the job was interrupted
                raise SystemExit(0) from error

    def _requeued(self) -> Path | None:
        """The checkpoint of this run, which belongs to a SLURM job that was requeued, or None if it has not begun."""
        command = self.config.subcommand
        options = self.config[command]
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[command]
        path = slurm.requeued_checkpoint(components.runs_folder(options, self.logs), config)
        if path:
            rank_zero_only(print)(f"Resuming the SLURM job from {path}")
        return path

    def _lock(self, folder: Path) -> None:
        """Let no other process train in the folder of this run, until this one ends."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            self.contexts.enter_context(files.lock_folder(folder, files.LOCK_TIMEOUT_S))

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's method (2.6.6) lets a checkpoint's settings silently override the user's."""

    @property
    def logs(self) -> Path:
        """Folder of all runs."""
        return files.logs_folder(self.config[self.config.subcommand].trainer.default_root_dir)

    def before_instantiate_classes(self) -> None:
        resumes = self.restored is not None and self.restored.run_folder is not None
        if self.subcommand != "fit" or resumes or self.config[self.subcommand].trainer.logger is False:
            self.save_config_callback = None  # config.yaml is written once, by the run that it describes

    def instantiate_classes(self) -> None:
        """Build the model, the data module and the Trainer.

        Raises:
            UserError: They cannot be built from the settings of the checkpoint.
        """
        with contextlib.ExitStack() as stack:
            if self.restored:
                passed = (UserError, MisconfigurationException, OSError)
                stack.enter_context(report_misfit(self.restored.path, self.restored.checkpoint, passed))
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the Trainer with the project's logger, callbacks, strategy and checkpoints.

        Raises:
            UserError: The options of the Trainer cannot be combined, or the checkpoint holds another network.
        """
        command, options = str(self.subcommand), self.config_init[self.subcommand]
        if self.restored:
            check_weights(self.model, self.restored.checkpoint)
        overhead.skip_nan_fill()
        overhead.keep_freed_memory()
        self.contexts.enter_context(overhead.limit_threads(self.model, self.datamodule.batch_size))
        logger, new_folder = self._logger(command, options)
        callbacks = [*components.user_callbacks(command, options), *self.extra_callbacks]
        callbacks += components.own_callbacks(command, options, logger, new_folder, self.run_folder, bool(self.changed))
        try:
            kwargs |= components.trainer_options(options, logger, callbacks)
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (TypeError, ValueError) as error:  # Lightning's, for options that it cannot combine
            raise UserError(f"--trainer: {' '.join(str(error).split())}") from error
        workarounds.stop_sigterm_broadcast(trainer)
        if self.restored and command == "fit":
            workarounds.keep_csv_rows(trainer.loggers, self.restored.checkpoint["global_step"])
        kill_at_exit(lambda: child_processes(trainer))
        return trainer

    def _logger(self, command: str, options: Any) -> tuple[Any, Path | None]:
        """The logger of the command, and the folder of a new run, which has been created for it."""
        if options.trainer.logger not in (None, True):
            return options.trainer.logger, None
        new_folder: Path | None = None
        if command == "fit":
            new_folder = components.new_run_folder(
                self.config[command], self.logs, self.run_folder, bool(self.restored), self.draws_seed
            )
        if new_folder and getattr(rank_zero_only, "rank", 0) == 0:
            self.contexts.callback(remove_if_empty, new_folder)
            self._lock(new_folder)
        step = self.restored.checkpoint["global_step"] if self.restored else None
        folder = new_folder or self.run_folder
        return components.run_logger(command, options, folder, step, bool(self.changed)), new_folder

    def fit(self, **options: Any) -> None:
        """Fit, and print the result and the commands that come next."""
        with contextlib.ExitStack() as stack:
            if self.print_next and self.trainer.is_global_zero:
                stack.enter_context(messages.report_fit(self.trainer, self.config[self.subcommand], self.logs))
            self.trainer.fit(**options)

    def validate(self, verbose: bool, **options: Any) -> None:
        """Validate, and print the metrics."""
        self.trainer.validate(verbose=False, **options)
        self._print_metrics("val", verbose)

    def test(self, verbose: bool, **options: Any) -> None:
        """Test, and print the metrics."""
        self.trainer.test(verbose=False, **options)
        self._print_metrics("test", verbose)

    def _print_metrics(self, stage: str, verbose: bool) -> None:
        if verbose and self.trainer.is_global_zero:
            messages.print_metrics(self.trainer, stage)

    def after_predict(self) -> None:
        """Print where the predictions are."""
        if self.trainer.is_global_zero:
            messages.print_predictions(self.trainer)
