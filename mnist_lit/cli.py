"""The command line: pick the command, print errors in one line, set the exit code."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from mnist_lit import UserError, __version__
from mnist_lit.command_parser import RECIPE, closest
from mnist_lit.commands import COMMANDS, EXTRAS, parse
from mnist_lit.extras import require
from mnist_lit.signals import stop_on_signals

HELP = f"""usage: mnist-lit COMMAND [OPTION ...]

Train and test three CNNs of 4,070 to 6,526 parameters that read MNIST digits.

commands:
{chr(10).join(f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items())}

options:
  -h, --help   this text; mnist-lit COMMAND --help lists all options of a command
  --version    the version
  --print_completion bash|zsh   a script that completes commands and files with the Tab key

examples:
  mnist-lit compare --data.source sample              the three networks, on data without a download
  mnist-lit fit --config {RECIPE}                  one network, on the full MNIST
  mnist-lit test --ckpt_path last                     the newest run's accuracy on the test images
  mnist-lit read my_photos                            your own handwriting
  tensorboard --logdir lightning_logs                 the curves
"""

COMPLETION = f"complete -o default -W '{' '.join(COMMANDS)}' mnist-lit"
"""For bash, and for zsh after it has loaded bash's completion."""


def main(args: list[str] | None = None) -> None:
    """Run a command line, `sys.argv` by default."""
    command, *options = (sys.argv[1:] if args is None else args) or ["--help"]
    if command in ("-h", "--help"):
        print(HELP, end="")
    elif command == "--version":
        print(f"mnist-lit {__version__}")
    elif command == "--print_completion":
        if options not in (["bash"], ["zsh"]):
            sys.exit("mnist-lit: error: --print_completion takes bash or zsh.")
        print(
            "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" * (options == ["zsh"])
            + COMPLETION
        )
    elif command not in COMMANDS:
        similar = closest(command, COMMANDS)
        choices = f"did you mean {similar}?" if similar else f"choose from {', '.join(COMMANDS)}."
        sys.exit(f"mnist-lit: error: there is no command {command!r}; {choices}")
    else:
        try:
            with stop_on_signals():
                given = parse(command, options)
                if command in EXTRAS:
                    require(command, *EXTRAS[command])
                # torch reads it when it is imported: threads that wait must not occupy cores that others need
                os.environ.setdefault("OMP_WAIT_POLICY", "passive")
                with _loading_note():  # not before: torch and Lightning take ten seconds
                    run: Callable[[argparse.Namespace | list[str]], object] = import_module(COMMANDS[command][0]).main
                run(given)
        except UserError as error:
            sys.exit(f"mnist-lit: error: {error}")
        except OSError as error:  # such as a full disk or missing permissions
            file = Path(os.fsdecode(error.filename)) if error.filename else None
            if file and isinstance(error, FileNotFoundError):
                while not file.parent.exists():
                    file = file.parent
                sys.exit(f"mnist-lit: error: {file} does not exist, or was deleted meanwhile: create it, or run again.")
            named = f"{file}: " if file else ""
            sys.exit(f"mnist-lit: error: {named}{error.strerror or error}. Existing files are unchanged.")
        finally:
            if args is None:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback if Ctrl-C arrives while Python ends


@contextlib.contextmanager
def _loading_note() -> Iterator[None]:
    """Show a note on a terminal while the imports run, and then erase it."""
    note = "Loading PyTorch and Lightning ..."
    is_first = "LOCAL_RANK" not in os.environ  # which Lightning sets for the other processes of a run
    if not (is_first and sys.stderr.isatty()):
        yield
        return
    print(note, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(f"\r{' ' * len(note)}\r", end="", file=sys.stderr, flush=True)
