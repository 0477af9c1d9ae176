"""Print the commands that come next after a fit: to resume, to test, to show the curves."""

import os
import shlex
import sys
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mnist_lit.callbacks.checkpointing import saved_checkpoint
from mnist_lit.callbacks.record import RunLogger
from mnist_lit.checkpoints.trust import foreign_modules


def print_unsaved(trainer: Trainer) -> None:
    """Print what a run will not save."""
    saved = {"curves": trainer.loggers, "checkpoints": trainer.checkpoint_callbacks}
    if not all(saved.values()):
        print(f"This run saves no {' and no '.join(what for what, savers in saved.items() if not savers)}.")


def print_next(command: str, trainer: Trainer, options: Namespace, logs: Path) -> None:
    """Print how to resume a run ("fit"), or how to test it and show its curves ("test")."""
    commands = []
    if saved := saved_checkpoint(trainer):
        on_nodes = " (on each node)" if command == "fit" and trainer.num_nodes > 1 else ""
        commands.append(next_command(command, saved, options) + on_nodes)
    for logger in trainer.loggers if command == "test" else []:
        if isinstance(logger, TensorBoardLogger):
            folder = logs if isinstance(logger, RunLogger) else logger.root_dir
            commands.append(uv_run(f"tensorboard --logdir {shlex.quote(os.path.relpath(folder))}"))
    if commands:
        heading = "Next:" if command == "test" else "Interrupted. The last complete epoch is saved; to resume:"
        print("\n  ".join([heading, *commands]))


def next_command(command: str, checkpoint: Path, options: Namespace) -> str:
    """The command line that continues from a checkpoint of this run.

    Args:
        command: "fit" or "test".
        checkpoint: The checkpoint.
        options: The options of this run.
    """
    words = ["--ckpt_path", str(checkpoint)]
    if command != "fit" and options.data.source == "mnist" and options.data.data_dir != "data":
        words += ["--data.data_dir", options.data.data_dir]
    modules = foreign_modules([options.model.as_dict(), options.trainer.as_dict() if command == "fit" else {}])
    modules = {module for module in modules if not module.startswith("lightning.")}
    words += ["--trust", *sorted(modules)] if modules else []
    program = "python -m mnist_lit" if Path(sys.argv[0]).name == "__main__.py" else "mnist-lit"
    return uv_run(f"{program} {command} {shlex.join(words)}")


def uv_run(command: str) -> str:
    """The command with the prefix that this program was started with."""
    return f"uv run {command}" if "UV" in os.environ else command  # uv sets UV for its child processes
