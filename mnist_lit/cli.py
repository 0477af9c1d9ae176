"""The command line: which commands there are, and how a user's mistake is told."""

import os
import sys
from collections.abc import Callable
from importlib import import_module

from mnist_lit import UserError, __version__
from mnist_lit.stopping import stoppable

COMMANDS = {
    "fit": ("mnist_lit.runner", "train a network"),
    "validate": ("mnist_lit.runner", "measure a checkpoint on the validation split"),
    "test": ("mnist_lit.runner", "measure a checkpoint on the 10,000 test images"),
    "predict": (
        "mnist_lit.runner",
        "write down the digits that a checkpoint reads, in the test images or in your own pictures",
    ),
    "compare": ("mnist_lit.compare", "train and test several recipes; a table and the curves"),
    "search": ("mnist_lit.search", "try other values of a recipe's options, as Optuna proposes them"),
    "robustness": ("mnist_lit.robustness", "accuracy of checkpoints on distorted test images"),
    "export": ("mnist_lit.export", "write a checkpoint as ONNX or torch.export, checked against it"),
    "publish": ("mnist_lit.publish", "write a checkpoint's weights as safetensors"),
    "demo": ("mnist_lit.demo", "a page to draw a digit on, or to drop a photo of one"),
    "benchmark": ("mnist_lit.benchmark", "training speed beside other ways to train"),
}
"""Each command's module, which has a `main(args)`, and what it does."""

HELP = f"""usage: mnist-lit COMMAND [OPTION ...]

Train and test three CNNs of 4,070 to 6,526 parameters that read MNIST digits.

commands:
{chr(10).join(f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items())}

options:
  -h, --help   this text; mnist-lit COMMAND --help: every option of a command
  --version    the version
  --print_completion bash|zsh   a script that completes commands and files with the Tab key

examples:
  mnist-lit compare --data.source sample              the three networks, on data that needs no download
  mnist-lit fit --config configs/ds_cnn_v2.yaml       one network, on the full MNIST
  mnist-lit test --ckpt_path last                     the newest run's accuracy on the test images
  mnist-lit predict --ckpt_path last --data.images photos    your own handwriting
  tensorboard --logdir lightning_logs                 the curves
"""

COMPLETION = f"complete -o default -W '{' '.join(COMMANDS)}' mnist-lit"
"""What bash is told, and zsh, which understands bash's way once it is asked to."""


def main(args: list[str] | None = None) -> None:
    """Run a command line, `sys.argv` by default.

    Raises:
        SystemExit: The command line is at fault, or asked for help; or the process was told to end.
    """
    command, *options = (sys.argv[1:] if args is None else args) or ["--help"]
    if command in ("-h", "--help"):
        print(HELP, end="")
    elif command == "--version":
        print(f"mnist-lit {__version__}")
    elif command == "--print_completion":
        if options not in (["bash"], ["zsh"]):
            sys.exit("mnist-lit: error: --print_completion takes bash or zsh.")
        print("autoload -U +X bashcompinit && bashcompinit\n" * (options == ["zsh"]) + COMPLETION)
    elif command not in COMMANDS:
        sys.exit(f"mnist-lit: error: there is no command {command!r}; choose from {', '.join(COMMANDS)}.")
    else:
        try:
            with stoppable():
                # imported for a command only: torch and Lightning take seconds
                run: Callable[[list[str]], object] = import_module(COMMANDS[command][0]).main
                run([command, *options] if COMMANDS[command][0].endswith("runner") else options)
        except UserError as error:
            sys.exit(f"mnist-lit: error: {error}")
        except OSError as error:  # a folder that cannot be written, a full disk
            named = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            sys.exit(f"mnist-lit: error: {named}{error.strerror or error}. What was kept before is as it was.")
