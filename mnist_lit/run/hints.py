"""What a user can type next, as it is told after a run."""

import os
import shlex
import sys
from pathlib import Path

from lightning.pytorch.cli import LightningCLI

from mnist_lit.checkpoints import trust


def next_command(cli: LightningCLI, command: str, checkpoint: Path) -> str:
    """The command that goes on from a checkpoint of the run that the command line has made."""
    given = cli.config[cli.subcommand]
    options = ["--ckpt_path", str(checkpoint)]
    if command != "fit" and cli.datamodule.source == "mnist" and str(cli.datamodule.data_dir) != "data":
        options += ["--data.data_dir", str(cli.datamodule.data_dir)]
    named = trust.modules([given.model.as_dict(), given.trainer.as_dict() if command == "fit" else {}])
    named = {module for module in named if not module.startswith("lightning.")}
    options += ["--trust", *sorted(named)] if named else []
    program = "python -m mnist_lit" if Path(sys.argv[0]).name == "__main__.py" else "mnist-lit"
    return f"{_prefix()}{program} {command} {shlex.join(options)}"


def curves_command(logs: Path) -> str:
    """The command that shows the curves of all runs below a folder."""
    return f"{_prefix()}tensorboard --logdir {os.path.relpath(logs)}"


def _prefix() -> str:
    return "uv run " if "UV" in os.environ else ""  # uv sets UV in what it runs
