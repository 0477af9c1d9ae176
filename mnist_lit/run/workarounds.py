"""Workarounds for faults of Lightning 2.6.6 and jsonargparse 4.53; a test fails when a private name is gone."""

import contextlib
import csv
import logging
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import torch
import yaml
from jsonargparse import _common, set_parsing_settings
from jsonargparse._deprecated import JsonargparseDeprecationWarning
from jsonargparse.typing import register_type
from lightning.fabric.utilities.enums import LightningEnum  # type: ignore[attr-defined]
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from mnist_lit import UserError
from mnist_lit.checkpoints.trust import TRUSTED_MODULES

SILENCED_WARNINGS = (
    "LightningCLI's args parameter",  # `run` takes its arguments from the command line and from `compare`
    "The '.*' does not have many workers",  # whole batches are read from memory: workers would only slow that down
    "The number of training batches",  # only the learning rate is logged in a step
    "Checkpoint directory .* exists and is not empty",  # a resumed run continues in its folder
    "The dirpath has changed from",  # the same folder, spelled differently
    "Be aware that when using `ckpt_path`, callbacks",  # a test has no checkpoint callbacks
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # inside Lightning
    "It is recommended to use `self.log\\(",  # torchmetrics has synchronized the figures already
    "You requested to overfit but enabled train dataloader shuffling",  # Lightning then switches it off
    "`ModelCheckpoint\\(monitor='accuracy/val'\\)` could not find",  # before the first validation
    "You're using the WeightAveraging callback, but loading",  # a test of averaged weights
    "SWA is currently only supported every epoch",  # it replaces the schedule by its own
    "Experiment logs directory .* exists and is not empty",  # keep_csv_rows restores the log
    "You called `self.log\\(.*no logger",  # the user wants none, or the command needs none
)
"""Warnings that a user cannot act on, as regular expressions for their beginnings."""

SILENCED_MESSAGES = (
    "Tip: For seamless",
    "TPU available",
    "Your model can run with static graph",
    "Loading `train_dataloader` to",
    "Restoring states from the checkpoint",
    "Received SIG",
    "`weights_only` was not set",  # AtomicCheckpointIO sets it
    "`Trainer.fit` stopped: `max_epochs=",  # the result says so
)
"""Parts of Lightning's messages that say nothing about this run."""

SILENCED_EVALUATION_MESSAGES = ("Seed set to", "GPU available", "Loaded model weights from")
"""Additional messages that are silenced in validate, test and predict."""


_LOGGERS = (
    *("fabric.utilities.seed", "fabric.utilities.rank_zero", "pytorch.utilities.rank_zero"),
    *("pytorch.trainer.connectors.signal_connector", "pytorch.trainer.connectors.checkpoint_connector"),
)


@contextlib.contextmanager
def silence_warnings(trains: bool = True) -> Iterator[None]:
    """Silence warnings and messages that a user cannot act on, and more messages where nothing is trained.

    TensorBoard's writer thread passes its OSError on to the run, which reports it, so its traceback is silenced too.
    """
    thread_hook = threading.excepthook
    loggers = [logging.getLogger(f"lightning.{name}") for name in _LOGGERS]
    silenced = SILENCED_MESSAGES + (() if trains else SILENCED_EVALUATION_MESSAGES)

    def is_useful(record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in silenced)

    def report(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            thread_hook(args)

    threading.excepthook = report
    for logger in loggers:
        logger.addFilter(is_useful)
    try:
        with warnings.catch_warnings():
            # LightningCLI (2.6.6) calls methods by names that jsonargparse has changed
            warnings.simplefilter("ignore", JsonargparseDeprecationWarning)
            for beginning in SILENCED_WARNINGS:
                warnings.filterwarnings("ignore", beginning)
            yield
    finally:
        threading.excepthook = thread_hook
        for logger in loggers:
            logger.removeFilter(is_useful)


@contextlib.contextmanager
def limit_imports(trusted: Collection[str]) -> Iterator[None]:
    """Let jsonargparse import only classes of trusted modules, however a file spells their names.

    jsonargparse can add entries to its list of allowed imports, but not remove them, so the list is restored here.

    Args:
        trusted: Modules, packages or classes, in addition to `TRUSTED_MODULES`.

    Raises:
        UserError: A trusted name does not have the form of an import path.
    """
    for name in trusted:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"--trust takes packages or modules, as Python imports them, not {name}.")
    keys = ("import_path_verdicts", "import_paths_enforced")
    before = {key: _common.parsing_settings[key] for key in keys}
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*TRUSTED_MODULES, *trusted])
    try:
        yield
    finally:
        _common.parsing_settings.update(before)


def serialize_defaults() -> None:
    """Let config.yaml hold the defaults of StochasticWeightAveraging (a torch.device) and Timer (an enum)."""
    register_type(torch.device, fail_already_registered=False)
    yaml.SafeDumper.add_multi_representer(LightningEnum, lambda dumper, value: dumper.represent_str(value.value))


@rank_zero_only
def keep_csv_rows(loggers: Iterable[Logger], step: int) -> None:
    """Let a resumed run append to the log of a CSVLogger, which deletes a log that exists.

    Args:
        loggers: The loggers, not used so far.
        step: Rows from this step on are removed: a killed run has logged them after its checkpoint.
    """
    for logger in loggers:
        path = Path(logger.log_dir or "") / "metrics.csv"
        if isinstance(logger, CSVLogger) and path.exists():
            with path.open(newline="") as file:
                rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
            logger.experiment.metrics = [row for row in rows if int(row["step"]) < step]
            logger.save()


def stop_sigterm_broadcast(trainer: Trainer) -> None:
    """Do not let processes wait for each other because of SIGTERM: the project's own handler ends them.

    Lightning waits for the other processes inside its handler of SIGTERM, where they may already wait for this one, and
    asks them about SIGTERM before each batch. There is no public switch.
    """
    trainer._signal_connector._sigterm_notifier_fn = _do_nothing  # type: ignore[method-assign, assignment]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing  # type: ignore[method-assign]


def _do_nothing(*_: object) -> None:
    pass
