"""The commands, their options and their help.

This module needs only the standard library, so that help and errors appear at once: importing torch and Lightning takes
ten seconds. LightningCLI reads the options of fit, validate, test and predict from classes, so their help is stored.
"""

from itertools import takewhile
from pathlib import Path
from typing import Any

from mnist_lit.command_options import PARSERS
from mnist_lit.command_parser import RECIPE

COMMANDS = {
    "fit": ("mnist_lit.run.lightning_cli", "train a network"),
    "validate": ("mnist_lit.run.lightning_cli", "measure a checkpoint on the validation split"),
    "test": ("mnist_lit.run.lightning_cli", "measure a checkpoint on the test images"),
    "predict": ("mnist_lit.run.lightning_cli", "write a checkpoint's predictions for the test images to a file"),
    "read": ("mnist_lit.photos.read", "read handwritten digits in pictures"),
    "compare": ("mnist_lit.experiments.compare", "train several recipes, measure them, and compare their results"),
    "search": ("mnist_lit.experiments.search", "optimize options of a recipe with Optuna"),
    "robustness": ("mnist_lit.evaluation.robustness", "accuracy of checkpoints on distorted images"),
    "export": ("mnist_lit.evaluation.export", "write a checkpoint as ONNX or torch.export, checked against it"),
    "publish": ("mnist_lit.checkpoints.publish", "write a checkpoint's weights as a safetensors file"),
    "demo": ("mnist_lit.photos.demo", "read digits that are drawn on a web page, or photos of them"),
    "benchmark": ("mnist_lit.benchmark.measure", "training speed beside other ways to train"),
}
"""The module of each command, whose `main` takes the result of `parse`, and the command's summary."""

EXTRAS = {
    "read": ("photos", "cv2"),
    "search": ("search", "optuna"),
    "export": ("export", "onnx", "onnxruntime", "onnxscript"),  # torch.onnx.export imports onnxscript
    "demo": ("demo", "cv2"),
}
"""The extra that a command needs, and the extra's modules."""

FIT_OPTIONS = (
    *("--config", "--ckpt_path", "--seed_everything", "--trust", "--watch_test", "--print_config"),
    *("--model", "--data", "--trainer"),
)
"""Options of fit without a dot, which are no misspelled options of the commands that pass options on to it."""

LIGHTNING_HELP = {
    name: {
        "usage": f"mnist-lit {name} {usage} [OPTION ...]",
        "description": f"{COMMANDS[name][1].capitalize()}. Example: mnist-lit {name} {example}",
    }
    for name, usage, example in (
        ("fit", "[--config FILE] [--ckpt_path last]", f"--config {RECIPE} --trainer.max_epochs 5"),
        ("validate", "--ckpt_path FILE|last|best", "--ckpt_path best"),
        ("test", "--ckpt_path FILE|last|best", "--ckpt_path last --data.data_dir ~/datasets"),
        ("predict", "--ckpt_path FILE|last|best", "--ckpt_path last"),
    )
}
"""Beginning of the help of the commands whose options LightningCLI parses."""

LIGHTNING_HELP_FILES = Path(__file__).parent / "run" / "help"
"""The stored help of these commands. `--help --help` builds it from the classes instead; a test compares the two."""


def parse(command: str, args: list[str]) -> Any:
    """Parse the arguments of a command for its `main`.

    Returns:
        The arguments themselves for fit, validate, test and predict, which LightningCLI parses. Else the options:
        `given` holds all arguments, `names` the unknown ones before the first unknown option, such as recipes, and
        `flags` the unknown ones from there on, for `mnist-lit fit`.

    Raises:
        SystemExit: The arguments are wrong, or ask for help.
    """
    if command not in PARSERS:
        if args in (["--help"], ["-h"]):
            print((LIGHTNING_HELP_FILES / f"{command}.txt").read_text(), end="")
            raise SystemExit
        return [command, *args]
    parser = PARSERS[command]()
    options, rest = parser.parse_known_args(args)
    names = [arg.partition("=")[0] for arg in rest if arg.startswith("--")]
    misspelled = [name for name in names if "." not in name and name not in FIT_OPTIONS and parser.similar(name)]
    if rest and (misspelled or not parser.passes_on):
        wrong = misspelled or rest
        parser.error(f"unrecognized arguments: {' '.join(wrong)}{parser.similar(wrong[0])}")
    options.given = args
    options.names = list(takewhile(lambda arg: not arg.startswith("-"), rest))
    options.flags = rest[len(options.names) :]
    return options
